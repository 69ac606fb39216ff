"""Claims about how the best checkpoint is chosen."""

from pathlib import Path

import pytest

from tasks.lineage import Answers
from tasks.validate import Standing, choose, stand
from tests.rows import a_sample, a_score
from tpo.errors import StageError
from tpo.records import Sample, Score
from tpo.store import Stage


@pytest.mark.parametrize(
    ("standings", "epoch"),
    [
        ([(0.5, 1.0), (0.7, 1.0), (0.6, 1.0)], 1),
        ([(0.5, 1.0), (0.4, 1.0)], 0),
        ([(0.5, 1.0), (0.5, 1.0)], 0),
        ([(0.5, 1.0), (0.7, 1.0), (0.7, 1.0)], 1),
        ([(0.5, 1.0), (0.9, 0.89), (0.6, 0.9)], 2),
        ([(0.5, 0.5), (0.9, 0.5)], 0),
        ([(0.5, 0.5), (0.2, 0.95)], 1),
        ([(None, 1.0), (-0.3, 1.0)], 1),
        ([(-0.2, 1.0), (-0.1, 1.0)], 1),
    ],
    ids=[
        "the best",
        "the incumbent where nothing is better",
        "the incumbent of equals",
        "the earlier epoch of equals",
        "the best that keeps the format",
        "the incumbent where none keeps the format",
        "one that keeps the format before one that does not",
        "one that was scored",
        "the best of negative scores",
    ],
)
def test_what_is_chosen_is(standings: list[tuple[float | None, float]], epoch: int):
    candidates = [Standing(i, score, parse_rate) for i, (score, parse_rate) in enumerate(standings)]
    assert choose(candidates, min_parse_rate=0.9).epoch == epoch


def test_nothing_is_chosen_where_nobody_was_scored():
    with pytest.raises(StageError, match="scored none of the answers"):
        choose([Standing(0, None, 1.0), Standing(1, None, 1.0)], 0.9)


def test_a_standing_averages_answers_that_parse_and_counts_first_tries_alone(tmp_path: Path):
    samples = [
        a_sample("p"),
        a_sample("q", tries=2),
        a_sample("r", parse_error="x", tries=8),
        a_sample("s"),
    ]
    scores = [a_score("p", value=1.0), a_score("q", value=0.5), a_score("r", value=0.0), a_score("s", value=None)]
    artifacts = []
    for name, record, rows in (("samples", Sample, samples), ("scores", Score, scores)):
        stage = Stage(tmp_path, name, record, inputs={}, config={})
        stage.begin()
        stage.write_shard(0, rows)
        artifacts.append(stage.commit())
    assert stand(3, Answers(*artifacts)) == Standing(epoch=3, score=0.75, parse_rate=0.5)
