"""Claims about how the best checkpoint is chosen."""

from pathlib import Path

import pytest

from tasks.handles import Candidate, JudgedSamples
from tasks.validate import Standing, choose, stand, validate
from tests.rows import a_config, a_sample, a_score, stored
from tpo.errors import StageError
from tpo.storage.store import folder_artifact


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
        "the incumbent if nothing is better",
        "the incumbent among equals",
        "the earlier epoch among equals",
        "the best that keeps the format",
        "the incumbent if none keeps the format",
        "one that keeps the format before one that does not",
        "one that was scored",
        "the best of negative scores",
    ],
)
def test_the_best_checkpoint_that_keeps_the_format_is_chosen(standings: list[tuple[float | None, float]], epoch: int):
    candidates = [Standing(i, score, parse_rate) for i, (score, parse_rate) in enumerate(standings)]
    assert choose(candidates, min_parse_rate=0.9).epoch == epoch


@pytest.mark.parametrize(
    ("scored", "epoch"),
    [([1500, 1], 0), ([1500, 1199], 0), ([1500, 1200], 1), ([700, 700], 1), ([1, 1500], 1), ([1, 1000, 1500], 2)],
)
def test_a_candidate_scored_on_far_fewer_prompts_than_another_is_not_chosen(scored: list[int], epoch: int):
    """Later candidates score better, except the third."""
    standings = [Standing(i, (0.8, 0.95, 0.9)[i], 1.0, count) for i, count in enumerate(scored)]
    assert choose(standings, min_parse_rate=0.9, min_scored_share=0.8).epoch == epoch


def test_nothing_is_chosen_if_nothing_was_scored():
    with pytest.raises(StageError, match="scored no answer"):
        choose([Standing(0, None, 1.0, parsed=5), Standing(1, None, 1.0)], 0.9)


def test_if_no_answer_keeps_the_format_the_remedy_is_about_the_format():
    with pytest.raises(StageError, match=r"follows the format.*evaluation_max_attempts"):
        choose([Standing(0, None, 0.0), Standing(1, None, 0.0)], 0.9)


def test_a_standing_averages_parsed_answers_and_counts_only_first_tries(tmp_path: Path):
    samples = [
        a_sample("p"),
        a_sample("q", tries=2),
        a_sample("r", parse_error="x", tries=8),
        a_sample("s"),
    ]
    scores = [a_score("p", value=1.0), a_score("q", value=0.5), a_score("r", value=0.0), a_score("s", value=None)]
    answers = JudgedSamples(stored(tmp_path, "samples", samples), stored(tmp_path, "scores", scores))
    assert stand(3, answers) == Standing(epoch=3, score=0.75, parse_rate=0.5, scored=2, parsed=3)


def test_a_pairwise_judge_compares_each_checkpoint_with_the_incumbent_at_one_half(tmp_path: Path):
    def answered(name: str, value: float) -> Candidate:
        model = tmp_path / name / "model"
        model.mkdir(parents=True)
        (model / "model.safetensors").write_bytes(name.encode())
        place = tmp_path / name
        answers = JudgedSamples(stored(place, "samples", [a_sample()]), stored(place, "scores", [a_score(value=value)]))
        return Candidate(folder_artifact(model), answers)

    # The incumbent's own scores are against the model before it, and must not count.
    incumbent, worse, better = answered("incumbent", 0.9), answered("worse", 0.4), answered("better", 0.6)
    config = a_config(tmp_path, judge={"kind": "pairwise"})
    assert validate.fn(config, 1, incumbent, [worse, better]).validation == better.validation
    assert validate.fn(config, 2, incumbent, [worse]).validation == incumbent.validation
    pointwise = a_config(tmp_path, judge={"kind": "armorm"}, name="pointwise")
    assert validate.fn(pointwise, 1, incumbent, [worse, better]).validation == incumbent.validation
