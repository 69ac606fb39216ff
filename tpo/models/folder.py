"""What a model folder must be before anything loads it: safetensors in full, a config, a tokenizer, and no code.

In: a folder, of a seed model or of any judge. Out: its context length in tokens, or an `InputError` that names what was
found. Nothing of the folder is executed or unpickled to find out, no tensor is read, and nothing heavy is imported.

Subfolders are ignored, pickles included: none of our loaders opens them (a test records every file that they open), and
published folders have some (Meta's Llamas keep their first format in `original/*.pth`). Files next to the weights are
refused even if they would not be loaded: they are one flag of a library away from being code that runs, and a user who
wants the model can delete the file.
"""

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tpo.config.hub import hub_folder
from tpo.errors import InputError
from tpo.models.files import read_json, read_text, some_of
from tpo.models.model_config import check_generation_config, check_use, context_tokens, read_model_config, text_part
from tpo.models.template_trial import template_fault
from tpo.models.tensors import INDEX, WEIGHTS, check_tensor_files, read_tensors
from tpo.models.tokenizer_files import check_tokenizer

PICKLES = (
    ".bin",
    ".pt",
    ".pth",
    ".pt2",
    ".ckpt",
    ".pkl",
    ".pickle",
    ".joblib",
    ".dill",
    ".npy",
    ".npz",
    ".mar",
    ".nemo",
)
"""Endings of files that run code when loaded, or may."""
CODE = (".py", ".pyc", ".pyd", ".pyx", ".so", ".dll", ".dylib")
"""Endings of files that are code."""
OTHER_WEIGHTS = (
    *(".h5", ".hdf5", ".keras", ".pb", ".tflite", ".msgpack", ".onnx", ".onnx_data", ".gguf", ".ggml", ".ot"),
    *(".engine", ".plan", ".llamafile", ".pte", ".mlmodel"),
)
"""Endings of weights in formats that we never load, some of which carry code."""
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst", ".lz4", ".jar", ".whl")
"""Endings of archives, which are never unpacked."""
QUANTIZED = (
    *("awq", "bitsandbytes", "compressed-tensors", "fbgemm_fp8", "fp8", "gptq"),
    *("modelopt", "modelopt_fp4", "mxfp4", "mxfp8", "nvfp4"),
)
"""Ways of quantization whose weights are in safetensors and whose code is in the engines."""
MOST_FILES = 10_000
"""Files and folders in a model folder, sub-folders included."""
TEMPLATES = "additional_chat_templates"
"""The sub-folder that transformers reads."""

_RUNS_CODE = ("auto_map", "custom_generate", "custom_pipelines")
_ELSEWHERE = ("speculators_config", "transformers_weights", "kernel_config", "use_kernels")
_KERNELS = re.compile(r"_?(attn|experts)_implementation(_internal)?")
_OTHER_CONFIGS = ("chat_template.json", "modules.json", "special_tokens_map.json")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_DEPTH_SEARCHED = 3
_PACKED_TYPES = re.compile(r"F[468]_|[UI](8|16|32)$")
"""Types of numbers, by the format's names, that only quantized weights are in."""


def check_model_folder(folder: Path) -> int:
    """The model's context in tokens, after checking that the folder holds what we load and nothing that we refuse."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: {_how_to_get(folder)}")
    _check_kinds(folder)
    _check_names(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a model: it has no config.json{_model_below(folder)}")
    configs = {path.name: read_json(path) for path in sorted(folder.glob("*.json")) if _is_config(path)}
    _check_code(folder, configs)
    _check_settings(folder, configs)
    config = read_model_config(folder)
    context = context_tokens(folder, config)
    check_generation_config(folder)
    if not has_weights(folder):
        raise InputError(
            f"{folder} is not a model: it has no .safetensors file named {WEIGHTS}, nor {INDEX}{_other_weights(folder)}"
        )
    check_tensor_files(folder)
    check_tokenizer(folder, text_part(config).get("vocab_size"))
    _check_templates(folder, configs)
    return context


def check_writer(folder: Path, *, trained: bool = False, device: str = "gpu") -> int:
    """What `check_model_folder` does, for a model that writes text on a `device` and may be `trained`.

    Raises `InputError` for a model that can't be used so, as far as its config and its weights' headers tell.
    """
    context = check_model_folder(folder)
    check_use(folder, read_model_config(folder), trained=trained, device=device)
    if trained:
        packed = {
            tensor.dtype for name, tensor in read_tensors(folder).items() if name.rpartition(".")[2].endswith("weight")
        }
        if kinds := sorted(kind for kind in packed if _PACKED_TYPES.match(kind)):
            raise InputError(
                f"{folder} holds weights of type {', '.join(kinds)}, which are quantized, and training needs plain "
                "ones: take the model's unquantized version (bfloat16)"
            )
    return context


def without_code(name: str, content: bytes) -> bytes | None:
    """A config without the settings that ask for code (`auto_map`); None if it has none, or isn't a config.

    For files that come from a hub: the code itself never does, and a user can't edit what is in a shared cache.
    """
    if not _is_config(Path(name)) or not any(f'"{key}"'.encode() in content for key in _RUNS_CODE):
        return None
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        return None  # refused where it is read
    waiting, found = [config], False
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            asking = value.keys() & set(_RUNS_CODE)
            found = found or bool(asking)
            for key in asking:
                del value[key]
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n" if found else None


def has_weights(folder: Path) -> bool:
    """Whether a folder has weights under one of the two names that loaders look for."""
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


def _how_to_get(folder: Path) -> str:
    """What to do about a folder that isn't there."""
    if folder.is_file():
        return f"it is a file; name the folder that it is in, {folder.parent}"
    expected, name = "expected one with safetensors, config and tokenizer", str(folder)
    if folder.parent.name == "models":
        return f"{expected}; fetch the model, for example with hf download OWNER/{folder.name} --local-dir {folder}"
    if _HUB_NAME.fullmatch(name) and not folder.parent.is_dir():
        place = f"models/{folder.name}"
        return f"{expected}; if it is a name on the model hub, hf download {name} --local-dir {place}, and name {place}"
    return expected


def _model_below(folder: Path) -> str:
    """Where a model is instead, for the end of a message; empty if none is found."""
    depths = ("*/" * depth + "config.json" for depth in range(1, _DEPTH_SEARCHED + 1))
    found = sorted(path.parent for pattern in depths for path in folder.glob(pattern))
    return f"; there is a model in {found[0]}: name that folder" if found else ""


def _other_weights(folder: Path) -> str:
    """What there is instead of weights, for the end of a message."""
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    return f"; it holds {some_of(found)}: fetch the index as well, or name the file so" if found else ""


def _check_kinds(folder: Path) -> None:
    """Files and folders alone, here and below: a pipe would never end, and a link may lead anywhere."""
    places = [folder.resolve(), *_hub_blobs(folder)]
    for count, path in enumerate(_everything(folder)):
        if count == MOST_FILES:
            raise InputError(f"{folder} holds more than {MOST_FILES} files, expected a model's: name its own folder")
        kind = path.lstat().st_mode
        if stat.S_ISLNK(kind):
            target = Path(os.path.realpath(path))
            if not target.is_file() or not any(target.is_relative_to(place) for place in places):
                raise InputError(
                    f"{path} is a link to {target}, expected one to a file in the folder itself: copy the file, or "
                    "delete the link"
                )
        elif not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise InputError(f"{path} is neither a file nor a folder (a pipe, a socket or a device): delete it")


def _everything(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *files))


def _hub_blobs(folder: Path) -> list[Path]:
    """Where the files are that a snapshot in the model hub's cache, or a folder of ours that it was fetched to, links
    to."""
    snapshot = folder.resolve()
    model = snapshot.parent.parent
    if snapshot.parent.name == "snapshots" and model.name.startswith("models--"):
        return [model / "blobs"]
    if snapshot.is_relative_to(hub_folder().resolve()):
        parents = {path.resolve().parent for path in folder.iterdir() if path.is_symlink()}
        return [parent for parent in parents if parent.name == "blobs"]
    return []


def _check_names(folder: Path) -> None:
    """No file beside the weights that is refused by its name alone."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    if pickles := _ending(names, PICKLES):
        raise InputError(
            f"{folder} holds pickles ({some_of(pickles)}), which run code when loaded: convert weights to safetensors, "
            "and delete them"
        )
    if adapters := [name for name in names if name.startswith(("adapter_config.", "adapter_model."))]:
        raise InputError(
            f"{folder} holds an adapter ({some_of(adapters)}), which is loaded over a model of its own choice: merge "
            "it into the model (merge_and_unload in peft), and save that"
        )
    for kinds, what in ((OTHER_WEIGHTS, "weights in formats that we do not load"), (ARCHIVES, "archives")):
        if found := _ending(names, kinds):
            raise InputError(f"{folder} holds {what} ({some_of(found)}): delete them, safetensors are all we need")


def _ending(names: list[str], endings: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.lower().endswith(endings)]


def _is_config(path: Path) -> bool:
    return "config" in path.name.lower() or path.name in _OTHER_CONFIGS


def _check_code(folder: Path, configs: Mapping[str, object]) -> None:
    """No code, and no config that asks for some."""
    asking = {
        f"{key} in {name}" for name, config in configs.items() for key, _ in _settings(config) if key in _RUNS_CODE
    }
    names = [path.name for path in folder.iterdir()]
    code = {name for name in names if name.lower().endswith(CODE) or ".so." in name or name == "custom_generate"}
    if asking or code:
        raise InputError(
            f"{folder} holds code of its own ({some_of(asking | code)}), which is refused: delete auto_map and its "
            "like from the configs, and the files with code; nothing of them is needed, our own code takes their place"
        )


def _check_settings(folder: Path, configs: Mapping[str, object]) -> None:
    """No setting by which a library would fetch weights or code from elsewhere, or need pickles."""
    for name, config in configs.items():
        for key, value in _settings(config):
            if key in _ELSEWHERE and value:
                fault = f"asks for weights or code from elsewhere ({key})"
            elif _KERNELS.fullmatch(key) and any(set("/\\:") & set(text) for text in _texts(value)):
                fault = f"asks for code from elsewhere ({key} is {value!r}, expected a name such as sdpa)"
            elif key == "quantization_config" and isinstance(value, dict) and not _is_known(value.get("quant_method")):
                fault = f"has quant_method {value.get('quant_method')!r}, expected one of {', '.join(QUANTIZED)}"
            elif key.endswith("_file") and any(_leads_elsewhere(folder, text) for text in _texts(value)):
                fault = f"names a file elsewhere ({key} is {value!r}, expected a file in the folder)"
            else:
                continue
            raise InputError(f"{folder / name} {fault}, which is refused: delete the setting, or use another model")


def _is_known(method: object) -> bool:
    return method is None or (isinstance(method, str) and method in QUANTIZED)


def _leads_elsewhere(folder: Path, name: str) -> bool:
    """Whether a name is another file of this machine; published configs hold such of their makers' machines."""
    return Path(name).name != name and (Path(name).exists() or (folder / name).exists())


def _texts(value: object) -> Iterator[str]:
    return (text for text in (value.values() if isinstance(value, dict) else [value]) if isinstance(text, str))


def _settings(config: object) -> Iterator[tuple[str, object]]:
    """All names and values in a config, at any depth."""
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _check_templates(folder: Path, configs: Mapping[str, dict[str, Any]]) -> None:
    """No chat template that reaches beyond the chat, or that doesn't end."""
    texts = [
        read_text(path)
        for path in (folder / "chat_template.jinja", *sorted((folder / TEMPLATES).glob("*")))
        if path.is_file()
    ]
    waiting = [config.get("chat_template") for config in configs.values()]
    while waiting:
        found = waiting.pop()
        if isinstance(found, str):
            texts.append(found)
        elif isinstance(found, list | dict):
            waiting += found if isinstance(found, list) else found.values()
    fault = template_fault(tuple(texts)) if texts else None
    if fault:
        raise InputError(f"a chat template of {folder} {fault}: use the one that the model was published with")
