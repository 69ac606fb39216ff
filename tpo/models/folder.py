"""Checks of a model folder before anything loads it: complete safetensors, a config, a tokenizer, and no code.

The checks execute and unpickle nothing, read no tensors, and import nothing heavy.

Subfolders are ignored, including pickles in them: none of our loaders opens them (a test records every file that they
open), and published folders have some (Meta's Llamas have their original format in `original/*.pth`). Files next to the
weights are rejected even if they would not be loaded: a single flag of a library would run their code, and users who
trust the model can delete them.
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
"""Endings of files that may run code when loaded."""
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
"""Quantization methods with weights in safetensors and code in the engines."""
MAX_FILES = 10_000
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
"""Dtypes, by the format's names, that only quantized weights have."""


def check_model_folder(folder: Path) -> int:
    """The model's context in tokens, after checking the folder's files; raises `InputError`."""
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
    """The same as `check_model_folder` for a model that generates text on `device` and may be `trained`.

    Raises `InputError` for a model that can't be, judging by its config and its weights' headers.
    """
    context = check_model_folder(folder)
    check_use(folder, read_model_config(folder), trained=trained, device=device)
    if trained:
        packed = {
            tensor.dtype for name, tensor in read_tensors(folder).items() if name.rpartition(".")[2].endswith("weight")
        }
        if kinds := sorted(kind for kind in packed if _PACKED_TYPES.match(kind)):
            raise InputError(
                f"{folder} has quantized weights ({', '.join(kinds)}), but training needs unquantized ones: use the "
                "model's unquantized version (bfloat16)"
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
    """Whether a folder has weights with one of the two names that loaders look for."""
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


def _how_to_get(folder: Path) -> str:
    """The remedy for a missing folder."""
    if folder.is_file():
        return f"it is a file; name its folder, {folder.parent}"
    expected, name = "expected one with safetensors, config and tokenizer", str(folder)
    if folder.parent.name == "models":
        return f"{expected}; download the model, for example with hf download OWNER/{folder.name} --local-dir {folder}"
    if _HUB_NAME.fullmatch(name) and not folder.parent.is_dir():
        place = f"models/{folder.name}"
        return f"{expected}; if it is a name on the model hub, hf download {name} --local-dir {place}, and name {place}"
    return expected


def _model_below(folder: Path) -> str:
    """A subfolder with a model, for the end of a message; empty if there is none."""
    depths = ("*/" * depth + "config.json" for depth in range(1, _DEPTH_SEARCHED + 1))
    found = sorted(path.parent for pattern in depths for path in folder.glob(pattern))
    return f"; there is a model in {found[0]}: name that folder" if found else ""


def _other_weights(folder: Path) -> str:
    """The files that there are instead of weights, for the end of a message."""
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    return f"; it has {some_of(found)}: download the index as well, or rename the file" if found else ""


def _check_kinds(folder: Path) -> None:
    """Rejects anything but files and folders, recursively: reading a pipe would block, and links may lead anywhere."""
    places = [folder.resolve(), *_hub_blobs(folder)]
    for count, path in enumerate(_everything(folder)):
        if count == MAX_FILES:
            raise InputError(
                f"{folder} has more than {MAX_FILES} files, expected a model folder: name the model's own folder"
            )
        kind = path.lstat().st_mode
        if stat.S_ISLNK(kind):
            target = Path(os.path.realpath(path))
            if not target.is_file() or not any(target.is_relative_to(place) for place in places):
                raise InputError(
                    f"{path} is a link to {target}, expected a link to a file in the same folder: copy the file, or "
                    "delete the link"
                )
        elif not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise InputError(f"{path} is neither a file nor a folder (a pipe, a socket or a device): delete it")


def _everything(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *files))


def _hub_blobs(folder: Path) -> list[Path]:
    """The folder with the targets of links, if this is a snapshot in the hub's cache or a folder of ours that links to
    one."""
    snapshot = folder.resolve()
    model = snapshot.parent.parent
    if snapshot.parent.name == "snapshots" and model.name.startswith("models--"):
        return [model / "blobs"]
    if snapshot.is_relative_to(hub_folder().resolve()):
        parents = {path.resolve().parent for path in folder.iterdir() if path.is_symlink()}
        return [parent for parent in parents if parent.name == "blobs"]
    return []


def _check_names(folder: Path) -> None:
    """Rejects files next to the weights by their names."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    if pickles := _ending(names, PICKLES):
        raise InputError(
            f"{folder} contains pickles ({some_of(pickles)}), which run code when loaded: convert weights to "
            "safetensors, and delete them"
        )
    if adapters := [name for name in names if name.startswith(("adapter_config.", "adapter_model."))]:
        raise InputError(
            f"{folder} contains an adapter ({some_of(adapters)}), which applies to a model that it names itself: merge "
            "it into the model (merge_and_unload in peft), and save that"
        )
    for kinds, what in ((OTHER_WEIGHTS, "weights in formats that we do not load"), (ARCHIVES, "archives")):
        if found := _ending(names, kinds):
            raise InputError(f"{folder} contains {what} ({some_of(found)}): delete them, only safetensors are needed")


def _ending(names: list[str], endings: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.lower().endswith(endings)]


def _is_config(path: Path) -> bool:
    return "config" in path.name.lower() or path.name in _OTHER_CONFIGS


def _check_code(folder: Path, configs: Mapping[str, object]) -> None:
    """Rejects code, and configs that refer to code."""
    asking = {
        f"{key} in {name}" for name, config in configs.items() for key, _ in _settings(config) if key in _RUNS_CODE
    }
    names = [path.name for path in folder.iterdir()]
    code = {name for name in names if name.lower().endswith(CODE) or ".so." in name or name == "custom_generate"}
    if asking or code:
        raise InputError(
            f"{folder} contains code ({some_of(asking | code)}), which is not allowed: delete auto_map and similar "
            "settings from the configs, and the files with code; the installed libraries' own code is used instead"
        )


def _check_settings(folder: Path, configs: Mapping[str, object]) -> None:
    """Rejects settings that make a library load weights or code from elsewhere, or need pickles."""
    for name, config in configs.items():
        for key, value in _settings(config):
            if key in _ELSEWHERE and value:
                fault = f"refers to weights or code elsewhere ({key})"
            elif _KERNELS.fullmatch(key) and any(set("/\\:") & set(text) for text in _texts(value)):
                fault = f"refers to code elsewhere ({key} is {value!r}, expected a name such as sdpa)"
            elif key == "quantization_config" and isinstance(value, dict) and not _is_known(value.get("quant_method")):
                fault = f"has quant_method {value.get('quant_method')!r}, expected one of {', '.join(QUANTIZED)}"
            elif key.endswith("_file") and any(_leads_elsewhere(folder, text) for text in _texts(value)):
                fault = f"names a file elsewhere ({key} is {value!r}, expected a file in the folder)"
            else:
                continue
            raise InputError(f"{folder / name} {fault}, which is not allowed: delete the setting, or use another model")


def _is_known(method: object) -> bool:
    return method is None or (isinstance(method, str) and method in QUANTIZED)


def _leads_elsewhere(folder: Path, name: str) -> bool:
    """Whether a name is another file on this machine; published configs contain paths of their authors' machines."""
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
    """Rejects chat templates that reach beyond the chat or don't terminate."""
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
        raise InputError(f"a chat template of {folder} {fault}: use the one published with the model")
