"""Our own time for judging 5,000 prompts with 8 responses each by comparisons, with an engine that answers at once.

Prints seconds of the whole stage (groups, questions, tokens of every comparison, journal, verdicts, shards, ratings,
health) for every ordered pair, 280,000 comparisons, and for the adaptive tournament. The texts have realistic lengths
(log-normal, medians 60 and 150 words) and the tokenizer is the miniature evaluator's; only the engine's replies aren't
real. Run with `python -m tests.benchmarks.bench_pairwise`.
"""

import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from judges.askers import ComparisonEncoder, ResponsePair
from judges.base import Group, Response
from judges.health import measure_health
from judges.pairwise import Pairwise
from prompts.verdict import PROMPTS
from tpo.config.judges import PairwiseJudge, VerifierJudge
from tpo.engines.inference.reply import Reply
from tpo.miniature.world import WORDS
from tpo.models.chat import ChatEncoder
from tpo.records import Judgment, Score
from tpo.storage.journal import Journal
from tpo.storage.store import Stage, read_rows

PROMPTS_COUNT, K, SHARD = 5000, 8, 50


class Instant:
    """Encodes as an engine's asker does, and answers at once: the longer response wins."""

    def __init__(self) -> None:
        folder = PairwiseJudge().folder
        assert folder is not None
        self._encoder = ComparisonEncoder(PROMPTS["cot"], ChatEncoder(folder))

    def ask(self, comparisons: Sequence[ResponsePair]) -> Iterator[tuple[int, Reply]]:
        """A reply to each comparison."""
        for i, (comparison, ids) in enumerate(zip(comparisons, self._encoder.encode(comparisons), strict=True)):
            label = "[[A]]" if len(comparison.first) > len(comparison.second) else "[[B]]"
            yield i, Reply(f"{'One of them says more than the other. ' * 8}{label}", True, len(ids), 60)


def main() -> None:
    """Measures and prints."""
    groups = _groups()
    for tournament in ("all_pairs", "adaptive"):
        judge = Pairwise(PairwiseJudge.model_validate({"tournament": tournament}), Instant())
        with tempfile.TemporaryDirectory() as folder:
            started, computing = time.perf_counter(), time.process_time()
            judgments = _judge(judge, groups, Path(folder))
            judged = time.perf_counter()
            scores = _score(judge, groups, judgments)
            health = measure_health(groups, judgments, scores, VerifierJudge())
            done, computed = time.perf_counter(), time.process_time()
        print(
            f"{tournament:10s} {len(judgments):7d} comparisons: {done - started:5.1f} s of our own time "
            f"({computed - computing:.1f} s of CPU; {judged - started:.1f} s until the judgments stand, "
            f"{done - judged:.1f} s for scores and health); "
            f"swap agreement {health.swap_agreement:.3f}"
        )


def _judge(judge: Pairwise, groups: Sequence[Group], folder: Path) -> list[Judgment]:
    stage = Stage(folder, "judgments", Judgment, inputs={}, config={})
    stage.begin(shard_size=SHARD)
    for i, start in enumerate(range(0, len(groups), SHARD)):
        with Journal(stage.folder / f"journal-{i:05d}.jsonl") as journal:
            judgments = judge.judge(groups[start : start + SHARD], journal)
            stage.write_shard(i, [judgment for each in judgments for judgment in each])
    return read_rows(stage.commit(-(-len(groups) // SHARD)), Judgment)


def _score(judge: Pairwise, groups: Sequence[Group], judgments: Sequence[Judgment]) -> list[Score]:
    by_prompt = {key: list(rows) for key, rows in itertools.groupby(judgments, key=lambda judgment: judgment.prompt_id)}
    return [score for group in groups for score in judge.score(group, by_prompt[group.prompt_id])]


def _groups() -> list[Group]:
    rng = np.random.default_rng(0)

    def text(median: float) -> str:
        return " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=int(min(600, median * rng.lognormal(0, 0.5)))))

    return [
        Group(f"p{i}", text(60), None, tuple(Response(k, text(150)) for k in range(K))) for i in range(PROMPTS_COUNT)
    ]


if __name__ == "__main__":
    main()
