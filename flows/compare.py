"""Thinking against its direct baseline (2410.10630, Figure 3): two runs that differ only in the prompt, side by side.

Each run is a run of `iterate` in its own folder, reused if `make iterate` has made it. The page is in the thinking
run's folder.
"""

from prefect import flow

from flows.iterate import iterate
from flows.prefect_ops import name_subflows_as_tasks
from flows.recipes import direct_baseline, reached
from tasks.compare import Arm, compare
from tasks.handles import JudgedSamples, against_spec, judged, measuring_spec
from tasks.judge import judge
from tasks.rate import RATINGS
from tpo.config.judges import compares
from tpo.config.run import RunConfig
from tpo.records import Artifact
from tpo.report.comparison import Comparison
from tpo.storage.lock import only_writer
from tpo.storage.mirror import writing
from tpo.storage.store import complete_artifact, remaking_damaged


@flow(name="compare", flow_run_name="{config.name} against direct, to M_{iterations}")
def compare_with_direct(config: RunConfig, iterations: int) -> Comparison:
    """Brings a run and its direct baseline to M_T, T = `iterations`, and compares them."""
    arms = []
    for each in (config, direct_baseline(config)):
        # A run that is past M_T keeps the report of all that it has.
        if (summary := reached(each, iterations)) is None:
            summary = iterate(each, iterations)
            name_subflows_as_tasks()
        answers = [judged(each, measuring_spec(each, t)) for t in range(iterations + 1)]
        arms.append(Arm(each, summary, answers))
    thinking, direct = arms
    prompts = complete_artifact(config.root / "iter_0" / "prompts" / "test")
    rated = config.evaluation.fine_grained is not None
    ratings = complete_artifact(config.root / RATINGS) if rated else None
    with only_writer(config.root), writing(config):
        return remaking_damaged(
            lambda: compare(thinking, direct, prompts, head_to_head(thinking, direct, prompts), ratings)
        )


def head_to_head(thinking: Arm, direct: Arm, prompts: Artifact) -> list[JudgedSamples]:
    """Comparisons of both runs' answers by a judge that compares; empty if it reads one response at a time."""
    config = thinking.config
    if not compares(config.evaluation.judge):
        return []
    return [
        judge(config, against_spec(config, t), ours.samples, prompts, theirs.samples)
        for t, (ours, theirs) in enumerate(zip(thinking.tests, direct.tests, strict=True))
    ]
