"""Speed of one epoch of DPO, the reference's pass included, compared with TRL's trainer as its docs configure it.

Both train the same model from the same folder on the same pairs in the same order, in this process, in turn. Prints for
both the pairs' own tokens per second (a prompt counts with each of its two outputs; padding doesn't count), the median
ratio over five rounds, each with other pairs, and the largest difference of the losses of any step, which must stay
below 1e-5.

- The model has SmolLM2-135M's shape and random weights, on which the speed doesn't depend, in float32.
- Lengths are log-normal, like those of thoughts: prompts around 30 tokens (σ 0.5), outputs around 60 with σ 0.8, up to
  300; 8 pairs a step, TRL's default. Longer ones have the same ratio, but not on two cores in minutes.
- TRL: `DPOTrainer` with its own collator and reference model. From its defaults we change bfloat16 (losses would differ
  by rounding), logging (off), and gradient checkpointing, which repeats the forward pass to save memory: off for both
  (`--recompute 1`: on for both, TRL's default). It doesn't tokenize: it gets the token ids.
- Ours: the trainer of a run, packed, from the first reference batch to the last step. Loading models and saving aren't
  counted for either.

    python -m tests.benchmarks.bench_dpo [--json] [--threads 2] [--rounds 5] [--pairs 12] [--recompute 0]
"""

import functools
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import measure
from tests.benchmarks.gpu_trainer import Shape, random_llama
from tests.benchmarks.measure import Timed
from tpo.config.resources import TrainerConfig
from tpo.config.training import TrainConfig
from tpo.models.shape import ModelShape
from tpo.planning.model_flops import Reads, forward_flops, reads_of, step_flops
from tpo.records import Pair

GOAL, TOLERANCE = 2.5, 1e-5
BATCH, LEARNING_RATE, MAX_TOKENS, SEED = 8, 1e-4, 2048, 7
SHAPE = Shape(
    {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    tokens=(8, 2048),
    product=2048,
)
"""SmolLM2-135M."""


def main() -> None:
    """Measures and prints."""
    asked = measure.options(__doc__, rounds=5, pairs=12, recompute=0)
    print(measure.describe_machine(asked.threads))
    quiet()
    with tempfile.TemporaryDirectory() as name:
        folder = random_llama(Path(name) / "model", SHAPE, SHAPE.sizes["num_hidden_layers"], "cpu", precision="float32")
        draws = {number: some_pairs(asked.pairs, number) for number in range(asked.rounds)}
        draws[-1] = some_pairs(2, -1)  # to warm up
        ways = {
            "TRL": functools.partial(train_with_trl, folder, draws, bool(asked.recompute)),
            "ours": functools.partial(train_with_ours, folder, draws, bool(asked.recompute), asked.threads),
        }
        found = measure.alternate(ways, asked.rounds, warm_up=1)
        peak = measure.peak_product()
    worst = max(
        abs(ours - trls)
        for a, b in zip(found["TRL"], found["ours"], strict=True)
        for trls, ours in zip(a.found, b.found, strict=True)
    )
    tokens = [sum(map(tokens_of, draws[number])) for number in range(asked.rounds)]
    for name, rounds in found.items():
        rates = measure.spread([n / each.seconds for n, each in zip(tokens, rounds, strict=True)])
        print(f"{name:5s} {rates.median:6.0f} [{rates.low:.0f}, {rates.high:.0f}] tokens/s")
    print(f"losses differ by at most {worst:.1e} in {sum(len(each.found) for each in found['ours'])} steps")
    assert worst < TOLERANCE, "the two don't train the same"
    shares = [flops_of(draws[i]) / each.seconds / peak for i, each in enumerate(found["ours"])]
    print(f"CPU seconds: {measure.ratio_of_seconds(found['TRL'], found['ours'], cpu=True)}")
    ratio = measure.ratio_of_seconds(found["TRL"], found["ours"])
    measure.report(
        measure.Row(
            row=8,
            what="DPO real tokens/s, 135M model, one epoch with its reference pass",
            peer=f"DPOTrainer, {measure.versions('trl')}",
            goal=f"≥ {GOAL}",
            median=ratio.median,
            low=ratio.low,
            high=ratio.high,
            limit=f"arithmetic: needed operations at {measure.spread(shares)} of the "
            f"{peak / 1e9:.0f} GFLOP/s of a float32 product",
        ),
        as_json=asked.json,
    )


def train_with_ours(
    folder: Path, draws: Mapping[int, Sequence[Pair]], recompute: bool, threads: int, number: int
) -> Timed[list[float]]:
    """The losses of our trainer's steps, from the first batch of the reference to the end."""
    from tpo.engines.training.worker import make_trainer, write_dataset

    begun: list[float] = []
    cpu: list[float] = []

    def note(done: int, total: int) -> None:
        begun.append(time.perf_counter())
        cpu.append(time.process_time())

    config = TrainConfig(
        epochs=1, batch_size=BATCH, micro_batch_size=BATCH, max_tokens=MAX_TOKENS, learning_rate=LEARNING_RATE,
        lr_scheduler="constant", warmup_ratio=0, packing=True, gradient_checkpointing=recompute,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        write_dataset(draws[number], run / "dataset")
        dpo = make_trainer(folder, run, config=config, trainer=TrainerConfig(threads=threads), seed=SEED, on_step=note)
        _without_saving(dpo)
        dpo.train()
        # The callback is called before each batch of the reference.
        seconds, cpu_seconds = time.perf_counter() - begun[0], time.process_time() - cpu[0]
    losses = [line["loss"] for line in dpo.state.log_history if "loss" in line]
    return Timed(losses, seconds, cpu_seconds)


def _without_saving(dpo: Any) -> None:
    for callback in [each for each in dpo.callback_handler.callbacks if type(each).__name__ == "Keeper"]:
        dpo.remove_callback(callback)


def train_with_trl(
    folder: Path, draws: Mapping[int, Sequence[Pair]], recompute: bool, number: int
) -> Timed[list[float]]:
    """The losses of TRL's steps; its reference is computed with each."""
    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback
    from trl import DPOConfig, DPOTrainer

    losses: list[Any] = []

    class Recording(DPOTrainer):
        """Gets token ids, and keeps each step's loss."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            found = super().compute_loss(*arguments, **options)
            losses.append(found.detach())
            return found

    with tempfile.TemporaryDirectory() as name:
        arguments = DPOConfig(
            output_dir=name, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant", max_length=MAX_TOKENS, bf16=False, gradient_checkpointing=recompute,
            logging_strategy="no", save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, seed=SEED,
        )  # fmt: skip
        rows = {
            "prompt_ids": [pair.prompt_token_ids for pair in draws[number]],
            "chosen_ids": [pair.chosen_token_ids for pair in draws[number]],
            "rejected_ids": [pair.rejected_token_ids for pair in draws[number]],
        }
        trainer = Recording(
            model=str(folder),
            args=arguments,
            train_dataset=Dataset.from_dict(rows),
            processing_class=AutoTokenizer.from_pretrained(folder),
        )
        trainer.remove_callback(PrinterCallback)
        took = measure.timed(trainer.train)
    return Timed([float(loss) for loss in losses], took.seconds, took.cpu_seconds)


def some_pairs(count: int, seed: int) -> list[Pair]:
    """Pairs of random tokens with lengths like those of thoughts."""
    draw = random.Random(seed)

    def ids(median: float, spread: float) -> list[int]:
        length = int(min(300, max(4, median * draw.lognormvariate(0, spread))))
        return [draw.randrange(2, SHAPE.sizes["vocab_size"]) for _ in range(length)]

    return [
        Pair(str(i), "regular", ids(30, 0.5), ids(60, 0.8), ids(60, 0.8), 0, 1, 1.0, 0.0, 1.0) for i in range(count)
    ]


def tokens_of(pair: Pair) -> int:
    """A pair's own tokens; its prompt counts with each output."""
    return 2 * len(pair.prompt_token_ids) + len(pair.chosen_token_ids) + len(pair.rejected_token_ids)


def flops_of(pairs: Sequence[Pair]) -> float:
    """The operations that an epoch needs, the reference's pass included; a prompt is read once."""
    sizes = SHAPE.sizes
    reads = sum((reads_of(pair, packed=True) for pair in pairs), Reads(0, 0, 0))
    shape = ModelShape(
        layers=sizes["num_hidden_layers"],
        hidden=sizes["hidden_size"],
        heads=sizes["num_attention_heads"],
        kv_heads=sizes["num_key_value_heads"],
        head_dim=sizes["hidden_size"] // sizes["num_attention_heads"],
        intermediate=sizes["intermediate_size"],
        vocabulary=sizes["vocab_size"],
        context=sizes["max_position_embeddings"],
    )
    return step_flops(shape, reads, TrainConfig()) + forward_flops(shape, reads)


def quiet() -> None:
    import warnings

    from datasets import disable_progress_bars
    from transformers.utils import logging

    warnings.simplefilter("ignore")
    disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()


if __name__ == "__main__":
    main()
