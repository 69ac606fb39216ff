"""Time of an epoch with the checkpoints that a resumed training starts from, compared with one without any.

The same training of the shipped seed model, in this process, in turn: as a run trains, with `trainer.checkpoint_share`
at its default, and without checkpoints. Both leave the epoch's model, which a run needs. Prints the median ratio over
five rounds and the number of checkpoints; the losses of all steps must be the same bit for bit.

    python -m tests.benchmarks.bench_checkpoints [--json] [--threads 2] [--rounds 5] [--pairs 2000]
"""

import functools
import itertools
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks import measure
from tests.benchmarks.bench_dpo import quiet
from tests.benchmarks.measure import Timed
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.resources import TrainerConfig
from tpo.config.training import TrainConfig
from tpo.records import Pair

GOAL = 1.05
TRAIN = TrainConfig(epochs=1)


def main() -> None:
    """Measures and prints."""
    asked = measure.options(__doc__, rounds=5, pairs=2000)
    print(measure.describe_machine(asked.threads))
    quiet()
    pairs = some_pairs(asked.pairs)
    trainer = TrainerConfig(threads=asked.threads)
    ways = {
        "with": functools.partial(train, pairs, trainer, True),
        "without": functools.partial(train, pairs, trainer, False),
    }
    # The numbers of checkpoints differ, and the losses must not.
    found = measure.alternate(ways, asked.rounds, warm_up=1)
    saves = [len(each.found) - 1 for each in found["with"]]
    losses = {tuple(each.found[-1]) for each in itertools.chain(*found.values())}
    assert len(losses) == 1, "checkpoints change a training"
    for name, rounds in found.items():
        seconds = measure.spread([each.seconds for each in rounds])
        print(f"{name:8s} {seconds} s")
    print(f"{min(saves)} to {max(saves)} checkpoints an epoch")
    ratio = measure.ratio_of_seconds(found["with"], found["without"])
    measure.report(
        measure.Row(
            row=10,
            what=f"an epoch of {asked.pairs} pairs with its checkpoints",
            peer="the same epoch without",
            goal=f"≤ {GOAL}",
            median=ratio.median,
            low=ratio.low,
            high=ratio.high,
            limit=f"by setting: trainer.checkpoint_share = {trainer.checkpoint_share}",
        ),
        as_json=asked.json,
    )


def train(pairs: Sequence[Pair], trainer: TrainerConfig, saving: bool, _: int) -> Timed[list[list[float]]]:
    """The steps at which a checkpoint was saved, each as a list, and last the losses."""
    from transformers import TrainerCallback

    from tpo.engines.training import checkpoints
    from tpo.engines.training.worker import make_trainer, write_dataset

    class Counter(TrainerCallback):
        """Notes when checkpoints are saved."""

        def on_save(self, args: object, state: object, control: object, **_: object) -> None:
            saved.append([float(state.global_step)])  # type: ignore[attr-defined]

    saved: list[list[float]] = []
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        write_dataset(pairs, run / "dataset")
        dpo = make_trainer(
            SHIPPED_SEED_MODEL, run, config=TRAIN, trainer=trainer, seed=0, on_step=lambda done, total: None
        )
        (keeper,) = [each for each in dpo.callback_handler.callbacks if type(each).__name__ == "Keeper"]
        if not saving:
            keeper._pace = checkpoints.Pace(1.0, clock=itertools.count(0, -1).__next__)  # runs backwards: never due
        dpo.add_callback(Counter())
        took = measure.timed(dpo.train)
    losses = [line["loss"] for line in dpo.state.log_history if "loss" in line]
    return Timed([*saved, losses], took.seconds, took.cpu_seconds)


def some_pairs(count: int) -> list[Pair]:
    """Pairs as long as the miniature's."""
    draw = random.Random(0)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(10, 400) for _ in range(draw.randint(low, high))]

    return [Pair(str(i), "regular", ids(40, 80), ids(10, 60), ids(10, 60), 0, 1, 1.0, 0.0, 1.0) for i in range(count)]


if __name__ == "__main__":
    main()
