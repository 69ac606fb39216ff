"""Checks of a folder's tokenizer files: valid values, and token ids within the model's embedding.

transformers trusts these files: a chat template that is a number, or a token that is a list, ends in an internal
traceback. A token without a row in the embedding ends in an index error on a CPU, and on a GPU in an error without any
cause.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tpo.errors import InputError
from tpo.models.files import MAX_VOCABULARY_BYTES, check_fetched, read_json
from tpo.models.model_config import is_number, shown

VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json", "tekken.json")
"""Files that hold a vocabulary as JSON."""
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")
"""Files that name special tokens."""
_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_SEVERAL = ("additional_special_tokens", "extra_special_tokens")


def check_tokenizer(folder: Path, rows: int | None) -> None:
    """Raises `InputError` if there is no tokenizer, if its files are invalid, or if tokens have no row in the
    embedding.

    `rows` is the number of rows of the embedding, or None if the config doesn't have it. Special tokens beyond it are
    allowed: Gemma 3 1B is published with one, for images. The check of the chat template would notice their use.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise InputError(f"{folder} has no tokenizer: expected tokenizer.json or tokenizer.model")
    if (model := folder / "tokenizer.model").is_file():
        with model.open("rb") as file:
            check_fetched(model, file.read(100))
    vocabularies = {name: read_json(folder / name, MAX_VOCABULARY_BYTES) for name in VOCABULARIES}
    for name in CONFIGS:
        fault = next(_faults(read_json(folder / name)), None)
        if fault is not None:
            raise InputError(f"{folder / name} has {fault}; fetch the file again, or correct it")
    highest = _highest_token(vocabularies["tokenizer.json"])
    if rows is not None and highest >= rows:
        raise InputError(
            f"{folder / 'tokenizer.json'} has tokens up to number {highest}, and the model's embedding has {rows} rows "
            "(vocab_size in config.json): they are of different models; download both again, or, if tokens were added, "
            "resize the embedding (resize_token_embeddings) and save"
        )


def _faults(config: Mapping[str, Any]) -> Iterator[str]:
    """The fault of a tokenizer's config, to follow "tokenizer_config.json has"; None if there is none."""
    for key in _TOKENS:
        if config.get(key) is not None and not _is_token(config[key]):
            yield f"{key} = {shown(config[key])}, expected the token's text"
    for key in _SEVERAL:
        found = config.get(key)
        tokens = found.values() if isinstance(found, dict) else found
        if found is not None and not (isinstance(found, list | dict) and all(map(_is_token, tokens or ()))):
            yield f"{key} = {shown(found)}, expected a list of tokens' texts"
    known = config.get("added_tokens_decoder")
    if known is not None and not (isinstance(known, dict) and all(isinstance(token, dict) for token in known.values())):
        yield f"added_tokens_decoder = {shown(known)}, expected an object of tokens by their ids"
    elif known and not all(id_.isdigit() and isinstance(known[id_].get("content"), str) for id_ in known):
        yield "an added_tokens_decoder with an id that is not a number or a token without content"
    if (name := config.get("tokenizer_class")) is not None and not isinstance(name, str):
        yield f"tokenizer_class = {shown(name)}, expected a name"
    if (longest := config.get("model_max_length")) is not None and not (is_number(longest) and longest > 0):
        yield f"model_max_length = {shown(longest)}, expected a number of tokens"
    if (side := config.get("padding_side")) is not None and side not in ("left", "right"):
        yield f"padding_side = {shown(side)}, expected left or right"
    yield from _template_faults(config.get("chat_template"))


def _template_faults(template: object) -> Iterator[str]:
    """Templates are one text, a list of named ones or, in recent files, an object of them."""
    if template is None or isinstance(template, str):
        return
    named: dict[object, object] = {}
    if isinstance(template, dict):
        named = {**template}
    elif isinstance(template, list) and all(isinstance(each, dict) for each in template):
        named = {each.get("name"): each.get("template") for each in template}
    if not named or not all(isinstance(part, str) for pair in named.items() for part in pair):
        yield f"chat_template = {shown(template)}, expected a text, or a list of objects with name and template"
    elif "default" not in named:
        yield f"chat templates named {', '.join(map(str, named))} and none named default, which would be used"


def _is_token(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str))


def _highest_token(tokenizer: Mapping[str, Any]) -> int:
    """The highest id of a token that text can produce; -1 if the file has an unknown format."""
    model = tokenizer.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(words, dict):
        numbers = [number for number in words.values() if type(number) is int]
    else:
        numbers = [len(words) - 1] if isinstance(words, list) else []
    added = [token for token in tokenizer.get("added_tokens") or () if isinstance(token, dict)]
    special = {token.get("id") for token in added if token.get("special")}
    numbers += [token["id"] for token in added if type(token.get("id")) is int]
    return max((number for number in numbers if number not in special), default=-1)
