"""The gate between iterations: on which scores M_t must not be worse than M_{t-1}, and by how much it may be."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field, model_validator

from tpo.config.base import Section
from tpo.config.benchmarks import Benchmark
from tpo.config.judges import JudgeConfig, VerifierJudge, compares

VALIDATION, SECOND_JUDGE, VERIFIER = "validation", "second_judge", "verifier"
"""The validation answers' scores by the run's judge, by `evaluation.judge`, and by `evaluation.verifier`."""
OF_VALIDATION = (VALIDATION, SECOND_JUDGE, VERIFIER)
"""The scores that a gate has besides benchmarks."""


class GateConfig(Section):
    """When the loop may continue from M_t: only if a paired test shows that it isn't worse than M_{t-1} on each of
    these scores (docs/gate.md)."""

    scores: tuple[str, ...] = ()
    """The scores: `validation` (the run's judge on the validation prompts), `second_judge` (`evaluation.judge` on the
    same answers), `verifier` (`evaluation.verifier` on the same answers), or the name of a benchmark. Without any there
    is no gate."""
    margin: float = Field(0.02, ge=0)
    """How much worse M_t may be and still count as not worse: 0.02 is two points of a share, accuracy or win rate."""
    margins: Mapping[str, Annotated[float, Field(ge=0)]] = {}
    """Another margin for some of the scores, by their names."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Confidence of the one-sided bound on the difference, for each score."""
    min_scored_share: float = Field(0.8, ge=0, le=1)
    """Minimum share of the prompts scored for M_{t-1} that are scored for M_t too."""
    accept: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Iterations t whose M_t you promote whatever the test says."""

    @property
    def is_on(self) -> bool:
        """Whether there is a gate."""
        return bool(self.scores)

    def margin_of(self, score: str) -> float:
        """The margin for one of the scores."""
        return self.margins.get(score, self.margin)

    @model_validator(mode="after")
    def _scores_are_named_once(self) -> "GateConfig":
        if twice := sorted({name for name in self.scores if self.scores.count(name) > 1}):
            raise ValueError(f"scores has {twice[0]} twice: name each score once")
        if unused := sorted(self.margins.keys() - set(self.scores)):
            named = f"scores has {', '.join(self.scores)}" if self.scores else "scores is empty"
            raise ValueError(f"margins has {unused[0]}, but {named}: add it there, or leave out its margin")
        return self


def unknown_score(name: str, benchmarks: Sequence[str]) -> str | None:
    """What is wrong with the name of a score, or None."""
    known = [*OF_VALIDATION, *benchmarks]
    if name in known:
        return None
    kept = " (the test prompts are kept for the report, so that no decision depends on them)" if name == "test" else ""
    return f"gate.scores has {name}, which is no score{kept}: expected some of {', '.join(known)}"


def counts_wins(judge: JudgeConfig, benchmark: Benchmark | None = None) -> bool:
    """Whether a score of two models is compared by the share of prompts that the new one wins, rather than by means:
    if the judge saw both answers together, or if its scores are in a unit of its own."""
    if isinstance(judge, VerifierJudge):
        return False
    return benchmark is None or not (benchmark.compares or compares(judge))


def loss_of_a_prompt(*, wins: bool) -> float:
    """What a lost prompt costs: a right answer, or a draw's half."""
    return 0.5 if wins else 1.0
