"""Which class answers to which judge config: a new judge is a file, a config class in the union, and a line here."""

from collections.abc import Callable, Mapping
from typing import Any

from judges.base import Judge
from judges.verifier import Verifier
from tpo.config import JudgeConfig

_JUDGES: Mapping[str, Callable[[Any], Judge]] = {"verifier": Verifier}


def build_judge(config: JudgeConfig) -> Judge:
    """The judge that a config asks for."""
    return _JUDGES[config.kind](config)
