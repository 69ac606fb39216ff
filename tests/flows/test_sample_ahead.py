"""Claims about validation answers that are sampled while later epochs train: the same run, whatever happens meanwhile.

On mock engines, in a subprocess without Prefect. The trainer waits after each epoch until its samples are there.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.apart import found_apart, remade_stages, stage_times
from tests.faults import mock_run

pytestmark = [pytest.mark.story("validation beside training", 35), pytest.mark.slow]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return found_apart("tests.flows.test_sample_ahead", tmp_path_factory.mktemp("ahead"))


def test_epochs_are_sampled_while_the_next_trains_and_the_run_is_the_same(found: dict[str, Any]):
    run, plain = found["ahead"], found["in turn"]
    assert run["there"] == [[], ["epoch_1"], ["epoch_1", "epoch_2"]], "before each epoch's model is written"
    assert plain["there"] == [[], [], []]
    assert run["error"] == "" and run["fingerprints"] == plain["fingerprints"]
    assert run["outputs"] == plain["outputs"], "each output is booked once"
    assert run["threads"] == []


@pytest.mark.parametrize("why", ["no room", "a budget", "one epoch"])
def test_epochs_wait_where_they_have_to(found: dict[str, Any], why: str):
    assert not any(found[why]["there"]) and found[why]["error"] == ""


def test_a_training_that_fails_ends_sampling_after_a_shard_and_the_next_start_goes_on(found: dict[str, Any]):
    run = found["stopped"]
    assert run["error"] == "StageError: the trainer gave up" and run["threads"] == []
    assert 1 <= run["shards"] < 3, "of the epoch that was being sampled"
    again = found["stopped, again"]
    assert again["error"] == "" and again["fingerprints"] == found["in turn"]["fingerprints"]
    assert again["outputs"] == found["in turn"]["outputs"], "shards that were there are not sampled again"


def test_an_engine_that_fails_meanwhile_ends_sampling_ahead_and_not_the_run(found: dict[str, Any]):
    run = found["failing engine"]
    assert run["error"] == "" and run["fingerprints"] == found["in turn"]["fingerprints"]
    assert "validation waits until all is trained (StageError: no engine)" in run["said"]


def test_another_training_in_the_same_folder_samples_its_own_epochs(found: dict[str, Any]):
    run = found["other settings"]
    assert run["error"] == "" and run["there"] == found["ahead"]["there"]
    assert "iter_1/validation/epoch_1/samples" in run["remade"]
    assert run["fingerprints"]["iter_1/train"] != found["ahead"]["fingerprints"]["iter_1/train"]


def test_with_rounds_only_the_last_ones_epochs_are_sampled(found: dict[str, Any]):
    run = found["rounds"]
    assert run["error"] == "" and run["fingerprints"] == found["rounds in turn"]["fingerprints"]
    assert run["there"] == [[], [], [], [], ["epoch_1"], ["epoch_1", "epoch_2"]]


# The runs


@mock_run.prepared(forks=False)
def main(parent: Path) -> None:
    """Makes the runs and writes what they found."""
    mock_run.make_seed(parent / "seed")
    found = dict[str, Any]()
    found["in turn"] = _made(parent / "turn", room=False)
    found["ahead"] = _made(parent / "ahead")
    found["other settings"] = _made(parent / "ahead", sample={"k": 4, "evaluation_max_attempts": 2})
    found["no room"] = _made(parent / "small", room=False)
    found["a budget"] = _made(parent / "budget", budget={"hours": 9.0})
    found["one epoch"] = _made(parent / "short", train={"epochs": 1})
    found["stopped"] = _made(parent / "stopped", fails="trainer")
    found["stopped, again"] = _made(parent / "stopped")
    found["failing engine"] = _made(parent / "failing", fails="engine")
    found["rounds in turn"] = _made(parent / "rounds-turn", room=False, rounds=2)
    found["rounds"] = _made(parent / "rounds", rounds=2)
    (parent / "found.json").write_text(json.dumps(found))


def _made(
    folder: Path,
    *,
    room: bool = True,
    fails: str = "",
    rounds: int = 1,
    train: dict[str, Any] | None = None,
    **other: Any,
) -> dict[str, Any]:
    import contextlib
    import io
    import threading

    from flows.iterate import iterate
    from tests.faults.mock_engines import MockEngines, MockPool
    from tpo.config.run import RunConfig
    from tpo.engines.training.job import TrainingJob
    from tpo.errors import StageError
    from tpo.records import Epoch
    from tpo.run_context import RunContext, using
    from tpo.storage.ledger import read_ledger
    from tpo.storage.store import read_manifest

    folder.mkdir(exist_ok=True)
    plan = mock_run.Plan("verifier", iterations=1, rounds=rounds)
    values = mock_run.config_of(folder, plan).model_dump(mode="json")
    config = RunConfig.model_validate(values | other | {"train": values["train"] | {"epochs": 3} | (train or {})})
    validation = config.root / "iter_1/validation"
    there, before = list[list[str]](), stage_times(folder)

    def sampled() -> list[str]:
        made = remade_stages(folder, before)
        found = [re.fullmatch(r"run/iter_1/validation/(epoch_\d)/samples", stage) for stage in made]
        return [match[1] for match in found if match]

    def at_work() -> list[str]:
        return [each.name for each in threading.enumerate() if each.name.startswith("sampling ahead")]

    def shards() -> int:
        return len([*validation.glob("epoch_1/samples/part-*.seal.json")])

    class Pool(MockPool):
        def generate(self, *arguments: Any, **settings: Any) -> Iterator[tuple[int, Any]]:
            ahead = threading.current_thread().name.startswith("sampling ahead")
            if ahead and fails == "engine":
                raise StageError("no engine")
            for each in super().generate(*arguments, **settings):
                if ahead and fails == "trainer":
                    _wait(lambda: bool(gave_up))
                    if shards():
                        _wait(threading.current_thread().interrupted.is_set)  # type: ignore[attr-defined]
                yield each

    gave_up = list[bool]()

    class Watched(MockEngines):
        def fit_beside_training(self, config: RunConfig) -> bool:
            return room

        def train_model(self, job: TrainingJob, *, progress: Callable[..., None], **settings: Any) -> list[Epoch]:
            def waiting(step: int, steps: int) -> None:
                progress(step, steps)
                epoch, last = step // 3, job.place.is_last
                if fails == "engine" and epoch == 2:
                    _wait(lambda: not at_work())
                elif room and last and epoch > 1 and fails != "engine" and not config.budget.is_set:
                    if fails == "trainer":
                        _wait((validation / "epoch_1/samples/plan.json").exists)
                        gave_up.append(True)
                        _wait(lambda: shards() > 0)
                        raise StageError("the trainer gave up")
                    _wait(lambda: f"epoch_{epoch - 1}" in sampled())
                there.append(sampled())

            return super().train_model(job, progress=waiting, **settings)

    error, said = "", io.StringIO()
    with using(RunContext(engines=Watched(Pool()))), contextlib.redirect_stderr(said):
        try:
            iterate.fn(config, 1)
        except StageError as stopped:
            error = f"{type(stopped).__name__}: {stopped}"
    stages = sorted(stage.removeprefix("run/") for stage in stage_times(folder))
    manifests = {stage: read_manifest(config.root / stage) for stage in stages}
    return {
        "error": error,
        "said": said.getvalue(),
        "there": there,
        "shards": shards(),
        "threads": at_work(),
        "remade": [stage.removeprefix("run/") for stage in remade_stages(folder, before)],
        "fingerprints": {stage: manifest.fingerprint for stage, manifest in manifests.items() if manifest is not None},
        "outputs": sum(entry.answers for entry in read_ledger(config.root) if entry.stage.endswith("/samples")),
    }


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not until():
        if time.monotonic() > deadline:
            raise AssertionError("nothing came")
        time.sleep(0.01)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
