"""The files of a published model: what others load, with nothing about the machine that trained it.

Weights are hard links if the file system supports them, otherwise copies. Folder names are removed from configs. The
chat template includes the thought prompt, and is verified to encode chats as in training before anything is published.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.publication.finished_model import FinishedModel
from prompts.asking_template import asking_template, check_asking
from prompts.native import NativeThoughts
from prompts.thought import ThoughtPrompt
from tpo.errors import InputError
from tpo.models.files import read_json
from tpo.models.folder import check_writer
from tpo.models.template_check import stop_tokens
from tpo.models.thinking_template import ThinkingTemplate
from tpo.storage.disk import explained

PARSER = Path(__file__).parents[2] / "deploy" / "published_parser.py"
"""Source of the published parser, with the settings of the variant `generic`."""
PARSER_PLACE = "parsers/thought_parser.py"
"""Its path in a published folder: not next to the weights, where our own checks reject code."""
CHAT_TEMPLATE = "chat_template.jinja"
_PLACES = ("_name_or_path", "name_or_path", "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file")
"""Settings that name folders on the machine they were written on."""
_RUN_FILES = ("manifest.json", "plan.json")
_VLLMS = {
    ("hybrid", "<think>"): "qwen3",
    ("prefilled", "<think>"): "deepseek_r1",
    ("hybrid", "<|channel>thought"): "gemma4",
    ("hybrid", "[THINK]"): "mistral",
}
"""vLLM's reasoning parsers, by kind of template and opening tag."""


def native_parser(thinking: ThinkingTemplate) -> str | None:
    """vLLM's own parser for native thoughts; None if there is no known one."""
    if thinking.kind == "channels":
        return "openai_gptoss" if "analysis" in (thinking.opening or "") else None
    return _VLLMS.get((thinking.kind, thinking.opening or ""))


def has_parser(prompt: ThoughtPrompt) -> bool:
    """Whether our parser can split the model's outputs: thoughts are part of the text, not in a channel."""
    channels = isinstance(prompt.native, NativeThoughts) and bool(prompt.native.end_of_message)
    return prompt.response_marker is not None and not channels


def parser_source(prompt: ThoughtPrompt) -> str:
    """The parser's source for one prompt."""
    native = prompt.native if isinstance(prompt.native, NativeThoughts) else None
    settings = {
        "THOUGHT_MARKER": prompt.thought_marker,
        "RESPONSE_MARKER": prompt.response_marker,
        "NATIVE_TAGS": native.tags if native else None,
        "NATIVE_UNWANTED": native is not None and native.use == "unwanted",
        "NATIVE_OPENED": native is not None and native.opened,
    }
    lines = PARSER.read_text(encoding="utf-8").splitlines()
    for name, value in settings.items():
        (place,) = (i for i, line in enumerate(lines) if line.startswith(f"{name}: "))
        lines[place] = f"{lines[place].partition(' = ')[0]} = {value!r}"
    return "\n".join(lines) + "\n"


def write_model(model: FinishedModel, folder: Path) -> None:
    """Writes weights, configs, tokenizer, chat template and parser into an empty folder, and checks them.

    Raises `InputError` if the chat template can't encode chats as in training.
    """
    for name in (file["name"] for file in model.files):
        if name not in _RUN_FILES and name != CHAT_TEMPLATE:
            _link_or_copy(model.folder / name, folder / name)
    template = _template(model)
    (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8", newline="")
    _rewrite(folder / "config.json", {"use_cache": True})  # Training switches it off.
    _rewrite(folder / "tokenizer_config.json", {"chat_template": template})
    _write_json(folder / "generation_config.json", _generation_config(model))
    if has_parser(model.prompt):
        (folder / PARSER_PLACE).parent.mkdir()
        (folder / PARSER_PLACE).write_text(parser_source(model.prompt), encoding="utf-8")
    check_writer(folder, device=model.config.engine.device)
    check_asking(folder, _tokenizer(folder), model.prompt, model.encoder)


def bytes_to_copy(model: FinishedModel, neighbor: Path) -> int:
    """Bytes of weights that must be copied into a folder on the file system of `neighbor`: 0 if they can be linked."""
    if model.folder.stat().st_dev == neighbor.stat().st_dev:
        return 0
    return sum(int(file["bytes"]) for file in model.files)


def _template(model: FinishedModel) -> str:
    own = model.encoder.tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    if not isinstance(own, str):
        raise InputError(f"{model.folder} has several chat templates and none named default: rename one")
    options = model.config.model.chat_template_options
    switch = model.encoder.thinking.variables(thinking=model.prompt.thinks_natively)
    return asking_template(model.prompt, own, {**options, **switch})


def _generation_config(model: FinishedModel) -> dict[str, Any]:
    """The sampling settings: vLLM's `generate` only had temperature, top-p and these stop tokens."""
    config = read_json(model.folder / "generation_config.json") or read_json(model.folder / "config.json")
    stops = sorted(stop_tokens(model.encoder.reading(), model.folder)[0])
    ids = {key: config[key] for key in ("bos_token_id", "pad_token_id") if config.get(key) is not None}
    sample = model.config.sample
    return {
        **ids,
        "eos_token_id": stops if len(stops) > 1 else stops[0],
        "do_sample": True,
        "temperature": sample.temperature,
        "top_p": sample.top_p,
        "top_k": 0,  # The default of transformers is 50.
    }


def _link_or_copy(source: Path, target: Path) -> None:
    with explained(target):
        if source.suffix == ".safetensors":
            try:
                os.link(source, target)
                return
            except OSError:
                pass  # Another file system, or one without hard links.
        shutil.copyfile(source, target)


def _rewrite(path: Path, changes: Mapping[str, Any]) -> None:
    """Rewrites a config without names of folders, and with `changes`."""
    values = {key: value for key, value in read_json(path).items() if key not in _PLACES}
    _write_json(path, {**values, **changes})


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
