"""Claims about iterations of several rounds: whole runs through the stages, on mock engines and without Prefect."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.iterate import iterate
from tests.faults.mock_run import Plan, config_of, make_seed, prepared
from tpo.config.run import RunConfig
from tpo.errors import StageError
from tpo.records import Pair, Prompt
from tpo.storage.store import complete_artifact, read_manifest, read_rows

OF_A_ROUND = {"prompts", "samples", "judgments", "scores", "pairs", "train"}
OF_AN_ITERATION = {"validation", "model", "test"}

pytestmark = pytest.mark.filterwarnings("ignore:at rho 0.5")


@pytest.fixture(autouse=True)
def _ready() -> Iterator[None]:
    with prepared(forks=False):
        yield


def a_run(folder: Path, rounds: int, **changes: Mapping[str, Any]) -> RunConfig:
    if not (folder / "seed").exists():
        make_seed(folder / "seed")
    values = config_of(folder / "runs", Plan("verifier", rounds=rounds)).model_dump()
    for section, change in ({"data": {"per_iteration": 12}} | changes).items():
        values[section] |= change
    return RunConfig.model_validate(values)


def stages_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def inputs_of(folder: Path) -> Mapping[str, str]:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest.inputs


def facts_of(folder: Path) -> Mapping[str, Any]:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest.facts


def test_every_round_samples_from_what_the_round_before_made_and_takes_fresh_prompts(tmp_path: Path):
    config = a_run(tmp_path, 3)
    iterate(config, 2)
    prompts = list[str]()
    for t in (1, 2):
        folder = config.root / f"iter_{t}"
        assert stages_in(folder) == OF_AN_ITERATION | {"round_1", "round_2", "round_3"}
        replayed = {"replay"} if t == 2 else set()
        assert all(stages_in(folder / f"round_{number}") == OF_A_ROUND | replayed for number in (1, 2, 3))
        rounds = [folder / f"round_{number}" for number in (1, 2, 3)]
        models = [inputs_of(each / "train")["model"] for each in rounds]
        asked = [inputs_of(each / "samples")["model"] for each in rounds]
        assert len({*models}) == 1 and asked[0] == models[0] and len({*asked}) == 3
        assert ["state" in inputs_of(each / "train") for each in rounds] == [False, True, True]
        prompts += [row.prompt_id for each in rounds for row in read_rows(complete_artifact(each / "prompts"), Prompt)]
    held_out = [config.root / "iter_0" / "prompts" / name for name in ("validation", "test")]
    prompts += [row.prompt_id for each in held_out for row in read_rows(complete_artifact(each), Prompt)]
    assert len(prompts) == len({*prompts}) == 2 * 12 + 10
    earlier = {
        pair.prompt_id for number in (1, 2, 3) for pair in pairs_in(config.root / f"iter_1/round_{number}/pairs")
    }
    mixed = pairs_in(config.root / "iter_2" / "round_1" / "replay")
    assert 0 < sum(pair.prompt_id in earlier for pair in mixed) < len(mixed) / 2


def pairs_in(folder: Path) -> list[Pair]:
    return read_rows(complete_artifact(folder), Pair)


def test_a_report_sums_the_pairs_of_an_iterations_rounds_and_lists_them(tmp_path: Path):
    config = a_run(tmp_path, 2)
    row = iterate(config, 1).models[-1]
    pairs = [pairs_in(config.root / f"iter_1/round_{number}/pairs") for number in (1, 2)]
    assert row.regular_pairs is not None and row.error_pairs is not None and row.judge is not None
    assert row.regular_pairs + row.error_pairs == sum(map(len, pairs))
    assert row.judge.responses == sum(
        facts_of(config.root / f"iter_1/round_{number}/scores")["health"]["responses"] for number in (1, 2)
    )
    assert {"samples", "pairs", "train"} <= row.seconds.keys()
    page = (config.root / "report.html").read_text()
    assert [f'data-round="M_1 {number}"' in page for number in (1, 2, 3)] == [True, True, False]


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1), (3, 2)])
def test_with_another_number_of_rounds_what_is_left_of_them_is_moved_aside_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], first: int, second: int
):
    iterate(a_run(tmp_path, first), 1)
    config = a_run(tmp_path, second)
    capsys.readouterr()
    iterate(config, 1)
    stderr = capsys.readouterr().err
    folder = config.root / "iter_1"
    own = OF_A_ROUND if second == 1 else {f"round_{number}" for number in range(1, second + 1)}
    assert {name for name in stages_in(folder) if ".old-" not in name} == OF_AN_ITERATION | own
    gone = {"train"} if first == 1 else {f"round_{number}" for number in range(1, first + 1)} - own
    for name in gone:
        assert f"iter_1/{name}: made with another train.rounds than {second}, moved to {name}.old-1" in stderr


def test_a_round_without_pairs_stops_the_run_and_is_named(tmp_path: Path):
    config = a_run(tmp_path, 2, pair={"min_margin": 99.0})
    with pytest.raises(StageError, match=r"iteration 1, round 1: 0 pairs from 6 prompts"):
        iterate(config, 1)
