"""The kinds of instruction that M_t wins and loses against M_0 answering directly (2410.10630, §3.4).

Writes the tables as Markdown to the run folder, anew each time; no stage depends on them.
"""

from collections.abc import Sequence

from tasks.handles import JudgedSamples
from tasks.kinds import by_kind, wins_of
from tasks.stage import stage_task
from tpo.config.run import RunConfig
from tpo.records import Artifact
from tpo.report.fine_grained import as_markdown
from tpo.report.summary import FineGrained
from tpo.report.table import DIRECT
from tpo.storage.disk import write_atomically

FINE_GRAINED = "fine_grained.md"
"""The tables' name in the run folder, as Markdown."""


@stage_task("fine_grained", run_name="win rates by kind")
def measure_kinds(
    config: RunConfig, prompts: Artifact, ratings: Artifact, tests: Sequence[JudgedSamples], direct: JudgedSamples
) -> FineGrained:
    """Win rates of M_0 … M_T over M_0 answering directly, by kind of test prompt.

    `tests` are the models' answers: compared with those of `direct`, if the evaluation judge compares, otherwise with
    their scores.
    """
    wins = {f"M_{t}": wins_of(config, test, direct) for t, test in enumerate(tests)}
    found = by_kind(config, prompts, ratings, wins, against=DIRECT)
    write_atomically(config.root / FINE_GRAINED, as_markdown(found).encode())
    return found
