"""A config as earlier code wrote it to `config.json`: with the old names of keys, and a section for each recipe."""

from typing import Any

from pydantic import BaseModel

from tpo.config.base import Section
from tpo.config.benchmarks import EvaluationConfig
from tpo.config.data import FileSource, ModelConfig, PromptConfig
from tpo.config.judges import HealthConfig, PairConfig, RewardModelJudge
from tpo.config.recipes import Tpo
from tpo.config.renamed import as_noted
from tpo.config.resources import EngineConfig, JudgeEngineConfig
from tpo.config.run import RunConfig
from tpo.config.training import TrainConfig

NEWER: dict[type[BaseModel], set[str]] = {
    EngineConfig: {"quantization"},
    JudgeEngineConfig: {"quantization"},
    EvaluationConfig: {"benchmarks", "fine_grained", "second_opinion", "verifier"},
    ModelConfig: {"chat_template_options", "thinking"},
    PairConfig: {"replay_share"},
    RewardModelJudge: {"score"},
    TrainConfig: {"rounds"},
    FileSource: {"rubric_column"},
    HealthConfig: {"max_attacked", "attacked_prompts"},
    PromptConfig: {"thought_marker", "response_marker", "prefill"},
}
"""Fields that didn't exist then."""


def as_before(config: RunConfig) -> dict[str, Any]:
    """The values of that `config.json`; raises `AssertionError` if a newer field doesn't have its default."""
    recipe = config.recipe
    values = _named_as_before(config.model_copy(update={"recipe": Tpo()}))
    del values["recipe"], values["report"], values["gate"], values["metrics"], values["storage"]["cache"]
    values["model"] |= {"hub_id": None, "hub_revision": "main"}
    own = {} if isinstance(recipe, Tpo) else _named_as_before(recipe)
    sft, kind = own.pop("sft", None), own.pop("kind", None)
    return values | {"sft": sft, "thinkpo": None, "self_train": None} | ({kind: own} if kind else {})


def _named_as_before(section: BaseModel) -> dict[str, Any]:
    assert isinstance(section, Section)
    inner = {name: _named_as_before(value) for name, value in section if isinstance(value, BaseModel)}
    newer = NEWER.get(type(section), set())
    assert not newer & section.model_dump(exclude_defaults=True).keys()
    return as_noted(section, exclude=newer) | inner
