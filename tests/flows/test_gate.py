"""Claims about runs with a gate: one that it stops, the next start of it, and how it continues; on mock engines."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flows.cli.main import NOT_PROMOTED, ended
from flows.iterate import iterate
from flows.publication.finished_model import find_tpo_model
from flows.recipes import finished
from tests.faults.mock_run import Plan, config_of, make_seed, prepared
from tpo.config.run import RunConfig
from tpo.errors import GateError, InputError
from tpo.report.summary import SUMMARY, Summary, read_summary
from tpo.storage.ledger import read_ledger

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:at rho 0.5")]


def a_run(folder: Path, *, evaluation: Mapping[str, Any] | None = None, **gate: Any) -> RunConfig:
    """A run whose judge likes length, and whose answers the other judges always find wrong, so that only a wide margin
    lets a model pass that they find no better."""
    values = config_of(folder / "runs", Plan("verifier")).model_dump()
    values["seed"] = 7
    values["data"]["validation"] = 12
    values["evaluation"] = evaluation or {"benchmarks": [_benchmark(folder)]}
    values["gate"] = {"scores": ["validation", "second_judge"] + ([] if evaluation else ["mine"])} | gate
    return RunConfig.model_validate(values)


def _benchmark(folder: Path) -> dict[str, Any]:
    path = folder / "mine.jsonl"
    rows = [{"instruction": f"What is {i}?", "answer": str(i)} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"kind": "custom", "name": "mine", "path": str(path), "reference_column": "answer"}


def times(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("manifest.json")}


@dataclass
class Story:
    """What became of a run."""

    stopped: str = ""
    status: int = 0
    again: str = ""
    summaries: list[Summary] = field(default_factory=list)
    page: str = ""
    unpublished: str = ""
    made: list[list[str]] = field(default_factory=list)
    work: set[str] = field(default_factory=set)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A run to M_2 that the gate stops at M_1; the same with a wider margin; the same with its models accepted."""
    folder, told = tmp_path_factory.mktemp("gate"), Story()
    make_seed(folder / "seed")
    with prepared(forks=False):
        config = a_run(folder)
        told.status = ended(lambda: bool(iterate(config, 2)))
        before = times(config.root)
        told.summaries.append(read_summary(config.root / SUMMARY))
        told.page = (config.root / "report.html").read_text()
        with pytest.raises(GateError) as stop:
            finished(config, 2)
        told.again = str(stop.value)
        with pytest.raises(GateError) as stop:
            iterate(config, 2)
        told.stopped = str(stop.value)
        told.made.append(_made(config.root, before))
        with pytest.raises(InputError) as refused:
            find_tpo_model(config.root, config, None)
        told.unpublished = str(refused.value)
        for changed in (a_run(folder, margin=2.0), a_run(folder, accept=[1, 2])):
            before = times(config.root)
            told.summaries.append(iterate(changed, 2))
            told.made.append(_made(config.root, before))
        told.work = {entry.stage for entry in read_ledger(config.root) if entry.work == "test judge"}
        yield told


def _made(root: Path, before: Mapping[str, int]) -> list[str]:
    """The stages made since; those moved aside are left out."""
    return sorted(
        name.removesuffix("/manifest.json")
        for name, time in times(root).items()
        if before.get(name) != time and ".old-" not in name
    )


def test_a_run_stops_at_a_model_that_is_not_shown_to_be_as_good(story: Story):
    assert story.status == NOT_PROMOTED
    last = story.summaries[0].models[-1]
    assert (last.model, last.promoted, last.chosen_epoch) == ("M_1", False, 2)
    assert last.gate is not None
    assert [each.score for each in last.gate.scores] == ["validation", "second_judge", "mine"]
    assert "doesn't promote M_1, so the loop stops before M_2" in story.stopped
    assert "second_judge, by verifier (exact): 0.0 → 0.0 on 12 prompts" in story.stopped


def test_the_next_start_says_the_same_and_makes_nothing(story: Story):
    assert story.again == story.stopped
    assert story.made[0] == []


def test_with_a_wider_margin_it_goes_on_and_makes_only_the_decision_again(story: Story):
    assert [row.promoted for row in story.summaries[1].models] == [True] * 4
    assert story.summaries[1].models[-1].model == "M_2"
    assert [name for name in story.made[1] if not name.startswith("iter_2/")] == ["iter_1/gate"]


def test_a_model_that_is_accepted_is_promoted_against_the_test(story: Story):
    decisions = [row.gate for row in story.summaries[2].models if row.gate]
    assert all(each.accepted for each in decisions) and all(each.promoted for each in decisions)
    assert story.made[2] == ["iter_1/gate", "iter_2/gate"]


def test_the_judges_of_the_validation_answers_are_shown_side_by_side(story: Story):
    row = story.summaries[0].models[-1]
    assert [each.name for each in row.opinions] == ["validation", "second_judge"]
    scores = [each.score for each in row.opinions]
    assert scores[0] is not None and scores[1] is not None and (scores[0].n, scores[1].value) == (12, 0.0)
    assert [f'data-judges="M_{t}"' in story.page for t in (0, 1)] == [True, True]
    assert 'data-gate="M_1 mine"' in story.page and "The gate doesn" in story.page


def test_a_model_that_was_not_promoted_is_published_only_by_its_number(story: Story):
    assert "doesn't promote M_1" in story.unpublished and "ITER=1" in story.unpublished


def test_other_judges_of_the_validation_answers_are_booked_with_the_test(story: Story):
    assert {f"iter_{t}/validation/second_judge/judgments" for t in (0, 1, 2)} <= story.work


def test_a_comparing_second_judge_compares_each_model_with_the_one_before_it(tmp_path: Path):
    make_seed(tmp_path / "seed")
    evaluation = {"judge": {"kind": "pairwise"}, "verifier": {}}
    with prepared(forks=False):
        summary = iterate(a_run(tmp_path, evaluation=evaluation, margin=9.0), 1)
    opinions = {each.name: each for each in summary.models[-1].opinions}
    assert list(opinions) == ["validation", "second_judge", "verifier"]
    share, change = opinions["second_judge"].score, opinions["second_judge"].change
    assert share is not None and change is not None and change.value == pytest.approx(share.value - 0.5)
    found = summary.models[-1].gate
    assert found is not None and [each.compared for each in found.scores] == ["scores", "wins"]
