"""Claims about pairs of earlier iterations that are trained on again."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tasks.replay import drawn, replayed_count, with_replay
from tests.engines.training.test_resume import some_pairs
from tests.rows import a_config
from tests.without_prefect import without_prefect
from tpo.config.judges import PairConfig
from tpo.config.run import RunConfig
from tpo.records import Artifact, Pair
from tpo.storage.store import Stage, read_manifest, read_rows

PAIRS = some_pairs(30)


@pytest.fixture(autouse=True)
def _stages_are_functions() -> Iterator[None]:
    with without_prefect():
        yield


def kept(root: Path, name: str, rows: Sequence[Pair]) -> Artifact:
    stage = Stage(root, name, Pair, inputs={}, config={})
    stage.begin()
    stage.write_shard(0, rows)
    return stage.commit(1)


def a_run(folder: Path, share: float) -> RunConfig:
    return a_config(folder, pair=PairConfig(replay_share=share))


@pytest.mark.parametrize(
    ("own", "share", "count"), [(70, 0.3, 30), (10, 0.5, 10), (9, 0.1, 1), (3, 0.1, 0), (0, 0.5, 0)]
)
def test_replayed_pairs_are_that_share_of_all(own: int, share: float, count: int):
    assert replayed_count(own, share) == count


def test_the_draw_follows_the_seed_alone_and_takes_no_pair_twice():
    taken = drawn(PAIRS, 10, "0 iter_2/replay")
    assert drawn(PAIRS[::-1], 10, "0 iter_2/replay") == taken
    assert len({pair.prompt_id for pair in taken}) == 10
    assert drawn(PAIRS, 10, "1 iter_2/replay") != taken != drawn(PAIRS, 10, "0 iter_3/replay")
    assert sorted(pair.prompt_id for pair in drawn(PAIRS, 99, "0")) == sorted(pair.prompt_id for pair in PAIRS)


def test_own_pairs_stay_and_pairs_of_all_earlier_iterations_are_added(tmp_path: Path):
    config = a_run(tmp_path, 0.5)
    own = kept(config.root, "iter_3/pairs", PAIRS[:10])
    earlier = [kept(config.root, "iter_1/pairs", PAIRS[10:15]), kept(config.root, "iter_2/pairs", PAIRS[15:])]
    mixed = with_replay(config, 3, 1, own, earlier)
    rows = read_rows(mixed, Pair)
    assert rows[:10] == PAIRS[:10] and len(rows) == 20
    added = {pair.prompt_id for pair in rows[10:]}
    assert added & {pair.prompt_id for pair in PAIRS[10:15]} and added & {pair.prompt_id for pair in PAIRS[15:]}
    manifest = read_manifest(mixed.path)
    assert manifest is not None and manifest.facts == {"own": 10, "replayed": 10}
    assert with_replay(config, 3, 1, own, earlier) == mixed


@pytest.mark.parametrize(("share", "iterations"), [(0.0, 1), (0.5, 0)])
def test_without_a_share_or_an_earlier_iteration_nothing_is_made(tmp_path: Path, share: float, iterations: int):
    config = a_run(tmp_path, share)
    own = kept(config.root, "iter_2/pairs", PAIRS[:10])
    earlier = [kept(config.root, "iter_1/pairs", PAIRS[10:])] * iterations
    assert with_replay(config, 2, 1, own, earlier) == own
    assert not (config.root / "iter_2" / "replay").exists()
