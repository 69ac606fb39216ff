"""The models that the installed transformers and vLLM support, read from the source of their tables.

Importing either library takes seconds, and a check of files should take milliseconds. If a table isn't found, since a
library is missing or has moved it, the result is `None`: nothing is known, so nothing is rejected.
"""

import importlib.util
import re
from functools import lru_cache
from pathlib import Path

_AUTO = "models/auto"
_REGISTRY = "model_executor/models/registry.py"


@lru_cache(maxsize=1)
def model_types() -> frozenset[str] | None:
    """Each `model_type` that transformers has a config for."""
    text = _source("transformers", f"{_AUTO}/auto_mappings.py")
    aliases = _source("transformers", f"{_AUTO}/configuration_auto.py")
    found = _pairs(text, "CONFIG_MAPPING_NAMES") | frozenset(re.findall(r'\*\*{"([\w.-]+)":', aliases))
    return found if "llama" in found else None


@lru_cache(maxsize=1)
def causal_model_types() -> frozenset[str] | None:
    """Each `model_type` for which transformers has a causal language model, which our trainer can load."""
    found = _pairs(_source("transformers", f"{_AUTO}/modeling_auto.py"), "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
    return found if "llama" in found else None


@lru_cache(maxsize=1)
def architectures_that_write() -> frozenset[str] | None:
    """Each architecture with which vLLM generates text, including those that also read images or sound."""
    registry = _source("vllm", _REGISTRY)
    found = frozenset[str]().union(
        *(_keys(registry, table) for table in ("_TEXT_GENERATION_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")),
        multimodal_architectures(),
    )
    return found if "LlamaForCausalLM" in found else None


@lru_cache(maxsize=1)
def multimodal_architectures() -> frozenset[str]:
    """Each architecture that can read images or sound in vLLM."""
    return _keys(_source("vllm", _REGISTRY), "_MULTIMODAL_MODELS")


@lru_cache(maxsize=1)
def architectures_that_score() -> frozenset[str]:
    """Each architecture that vLLM only uses for scores or embeddings."""
    registry = _source("vllm", _REGISTRY)
    tables = ("_REWARD_MODELS", "_TOKEN_CLASSIFICATION_MODELS", "_SEQUENCE_CLASSIFICATION_MODELS")
    return frozenset[str]().union(*(_keys(registry, table) for table in tables))


def _source(package: str, file: str) -> str:
    """The source of a library's module; empty if it doesn't exist."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return ""
    path = Path(found.origin).parent / file
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _pairs(text: str, table: str) -> frozenset[str]:
    """The first part of each pair in a table of transformers': `NAME = OrderedDict([("first", …), …])`."""
    _, _, rest = text.partition(f"\n{table} = OrderedDict(")
    return frozenset(re.findall(r'\(\s*"([\w.-]+)",', rest.partition("\n)")[0]))


def _keys(text: str, table: str) -> frozenset[str]:
    """The keys of a table of vLLM's: `NAME = {"key": …, …}`."""
    _, _, rest = text.partition(f"\n{table} = {{")
    return frozenset(re.findall(r'^    "(\w+)":', rest.partition("\n}")[0], re.M))
