"""Fine-grained evaluation in a run: prompts are rated once, then every model's wins are counted by kind of prompt."""

from collections.abc import Sequence

from tasks.fine_grained import measure_kinds
from tasks.handles import JudgedSamples, against_direct_spec
from tasks.judge import judge
from tasks.rate import RATINGS, rate
from tpo.config.judges import compares
from tpo.config.run import RunConfig
from tpo.records import Artifact
from tpo.report.summary import FineGrained


def rate_prompts(config: RunConfig, prompts: Artifact, folder: str = RATINGS) -> Artifact | None:
    """The ratings of some prompts; None if the profile wants none."""
    return None if config.evaluation.fine_grained is None else rate(config, folder, prompts)


def kinds_of_run(
    config: RunConfig,
    prompts: Artifact,
    ratings: Artifact | None,
    tests: Sequence[JudgedSamples],
    direct: JudgedSamples,
) -> FineGrained | None:
    """Win rates of M_0 … M_T over M_0 answering directly by kind of prompt; None without ratings.

    A judge that compares has compared `tests` with M_0's answers, so it compares them with the direct ones, too.
    """
    if ratings is None:
        return None
    if compares(config.evaluation.judge):
        tests = [
            judge(config, against_direct_spec(config, t), test.samples, prompts, direct.samples)
            for t, test in enumerate(tests)
        ]
    return measure_kinds(config, prompts, ratings, tests, direct)
