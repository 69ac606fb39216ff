"""What each worker runs: TRL's DPO trainer on the token ids as they were sampled, from its last checkpoint on.

In: M_t's folder and a data set of pairs as token ids. Out: a folder of safetensors an epoch, a log line an epoch and a
line a step.

How it differs from TRL's own way stands in `tpo.engines.pair_trainer`.

A training that goes on from a checkpoint ends as one that was never stopped, bit for bit on a CPU. So the reference
log-probs are taken from M_t, before a checkpoint's weights are loaded; every step is logged, since a mean over an
epoch would begin anew with each start; and the checkpoint at an epoch's end is made after the epoch's model stands,
since the library does not come back to the end of that epoch.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpo.config import TrainConfig, TrainerConfig
from tpo.console import say
from tpo.disk import make_folder, remove, write_atomically
from tpo.engines import checkpoints
from tpo.engines.checkpoints import Checkpoint
from tpo.engines.ranks import as_first_worker, rank, wait_for_all
from tpo.engines.tracking import Tracked, tracker_callbacks
from tpo.errors import StageError
from tpo.records import Epoch, Pair

if TYPE_CHECKING:
    from tpo.engines.pair_trainer import PairTrainer

Progress = Callable[[int, int], None]
"""Called with optimiser steps done and to do; to do is 0 as long as the reference log-probs are computed."""
Stop = Callable[[], bool]
"""Whether the training is to save what it has and end before its time."""


@dataclass(frozen=True)
class Step:
    """One line of `steps.jsonl`: what the trainer measured in one optimiser step."""

    step: int
    """1 … N."""
    epoch: float
    """Passes over the pairs so far."""
    loss: float
    """Mean loss over the step's pairs, before the step."""
    margin: float
    """Mean of the pairs' margins (`Epoch.margin`)."""
    accuracy: float
    """Share of pairs whose margin is positive."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    """Of this step."""


def write_dataset(pairs: Sequence[Pair], folder: Path) -> None:
    """The pairs on disk, from where every worker maps them; those of an earlier start stay."""
    from datasets import Dataset, disable_progress_bars

    if folder.exists():
        return
    disable_progress_bars()
    columns = {
        "prompt_ids": [pair.prompt_token_ids for pair in pairs],
        "chosen_ids": [pair.chosen_token_ids for pair in pairs],
        "rejected_ids": [pair.rejected_token_ids for pair in pairs],
    }
    temporary = folder.with_name(f".{folder.name}.tmp")
    remove(temporary)
    make_folder(folder.parent)
    Dataset.from_dict(columns).save_to_disk(temporary)
    checkpoints.publish(temporary, folder)


def train_from_checkpoint(
    model: Path,
    folder: Path,
    *,
    config: TrainConfig,
    trainer: TrainerConfig,
    seed: int,
    on_step: Progress,
    stop: Stop = lambda: False,
    warn: Callable[[str], None] = say,
    tracked: Tracked | None = None,
) -> None:
    """Trains from the newest whole checkpoint in `folder`, or from M_t, to the end; `folder/dataset` holds the pairs.

    Where `stop`, which the first worker asks after each step, says so, it ends with a checkpoint and without a log.
    `warn` is told of what a user should know and the training can do without.

    Every worker calls it. Only one training at a time writes to a folder: one that a dead driver left behind is waited
    for until it has noticed.
    """
    from transformers import set_seed

    with _alone_in(folder):
        start = as_first_worker(lambda: _prepare(folder))
        dpo = make_trainer(
            model,
            folder,
            config=config,
            trainer=trainer,
            seed=seed,
            on_step=on_step,
            stop=stop,
            warn=warn,
            done=start.step if start else 0,
            tracked=tracked,
        )
        on_step(start.step if start else 0, 0)
        set_seed(seed)  # finding the reference log-probs in the cache takes other random numbers than computing them
        dpo.train(resume_from_checkpoint=str(start.folder) if start else None)
        if dpo.state.global_step == dpo.state.max_steps:
            as_first_worker(lambda: _write_log(dpo.state.log_history, folder))


def make_trainer(
    model: Path,
    folder: Path,
    *,
    config: TrainConfig,
    trainer: TrainerConfig,
    seed: int,
    on_step: Progress,
    stop: Stop = lambda: False,
    warn: Callable[[str], None] = say,
    done: int = 0,
    tracked: Tracked | None = None,
) -> "PairTrainer":
    """The trainer on M_t, with the reference log-probs computed; `done` is what `on_step` is told until it trains."""
    from datasets import disable_progress_bars, load_from_disk
    from transformers import AutoTokenizer, PrinterCallback

    from tpo.engines.pair_trainer import PairTrainer
    from tpo.engines.weights import load_for_training

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    dpo = PairTrainer(
        config=config,
        trainer=trainer,
        references=folder / "dataset" / "references.safetensors",
        on_reference=lambda: on_step(done, 0),
        model=load_for_training(model, config),
        args=_arguments(folder, config, trainer, seed),
        train_dataset=load_from_disk(folder / "dataset"),
        processing_class=tokenizer,
        callbacks=[_keeper(folder, tokenizer, config, trainer.checkpoint_share, on_step, stop)],
    )
    dpo.remove_callback(PrinterCallback)
    if rank() == 0 and tracked is not None:
        for callback in tracker_callbacks(tracked, checkpoints.trainer_folder(folder), done=done, warn=warn):
            dpo.add_callback(callback)
    return dpo


def finished(folder: Path, config: TrainConfig) -> bool:
    """Whether a training has ended here: it writes its log last."""
    epochs = [checkpoints.epoch_folder(folder, epoch) for epoch in range(1, config.epochs + 1)]
    return (folder / "log.jsonl").exists() and all(epoch.is_dir() for epoch in epochs)


def read_log(folder: Path) -> list[Epoch]:
    """The log that a finished training left."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [Epoch(**json.loads(line)) for line in lines]


def _arguments(folder: Path, config: TrainConfig, trainer: TrainerConfig, seed: int) -> Any:
    from trl import DPOConfig

    return DPOConfig(
        output_dir=str(checkpoints.trainer_folder(folder)),
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup_share,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=max(1, config.batch_size // config.micro_batch_size // trainer.workers),
        max_length=config.max_tokens,
        precompute_ref_log_probs=True,
        gradient_checkpointing=config.gradient_checkpointing,
        bf16=config.precision == "bfloat16",
        use_cpu=trainer.device == "cpu",
        ddp_find_unused_parameters=False,
        ddp_backend="gloo" if trainer.device == "cpu" and trainer.workers > 1 else None,
        save_strategy="no",  # the callback decides
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],  # the tracker's callback is added by hand, so that a resumed training shows no step twice
        disable_tqdm=True,
        seed=seed,
        data_seed=seed,
    )


def _keeper(folder: Path, tokenizer: Any, config: TrainConfig, share: float, on_step: Progress, stop: Stop) -> Any:
    from transformers import TrainerCallback

    from tpo.engines.weights import write_model

    class Keeper(TrainerCallback):
        """Reports steps, writes each epoch's model, and has checkpoints made and sealed."""

        def __init__(self) -> None:
            self._place = folder.stat().st_ino
            self._pace = checkpoints.Pace(share)
            self._began = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                on_step(state.global_step, state.max_steps)
            due, stopped = as_first_worker(lambda: (self._pace.due(), stop()))
            control.should_training_stop |= stopped
            if (due or stopped) and not _ends_epoch(state):
                self._ask_to_save(control)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **kwargs: Any
        ) -> None:
            if logs and not math.isfinite(logs.get("loss", 0.0)):
                raise StageError(
                    f"the loss at step {state.global_step} is {logs['loss']}: the training has diverged; lower "
                    "train.learning_rate"
                )

        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if not _ends_epoch(state):
                return  # stopped within it
            self._check_place()
            write_model(model, tokenizer, checkpoints.epoch_folder(folder, round(state.epoch)), config.precision)
            self._ask_to_save(control)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            path = checkpoints.trainer_folder(folder) / f"checkpoint-{state.global_step}"
            wait_for_all()
            if state.is_world_process_zero:
                self._check_place()
                made = checkpoints.seal_checkpoint(path, step=state.global_step, epochs=math.floor(state.epoch))
                checkpoints.keep_only(folder, made)
                on_step(state.global_step, state.max_steps)
            self._pace.saved(time.monotonic() - self._began)

        def _ask_to_save(self, control: Any) -> None:
            self._check_place()
            self._began = time.monotonic()
            control.should_save = True

        def _check_place(self) -> None:
            """A stage that is begun anew has another folder of this name, and what we write does not belong there."""
            if not folder.exists() or folder.stat().st_ino != self._place:
                raise StageError(f"{folder} was moved away while the training ran: nothing more is written to it")

    return Keeper()


def _ends_epoch(state: Any) -> bool:
    return float(state.epoch).is_integer()


def _prepare(folder: Path) -> Checkpoint | None:
    """Where to go on from, with nothing left that was cut short."""
    remove(folder / "log.jsonl")
    return checkpoints.tidy(folder)


def _write_log(history: Sequence[Mapping[str, float]], folder: Path) -> None:
    """`steps.jsonl` and `log.jsonl`; the trainer's history, which its checkpoints hold, has a line a step."""
    steps = [
        Step(
            step=int(line["step"]),
            epoch=line["epoch"],
            loss=line["loss"],
            margin=line["rewards/margins"],
            accuracy=line["rewards/accuracies"],
            gradient_norm=line["grad_norm"],
            learning_rate=line["learning_rate"],
        )
        for line in history
        if "loss" in line
    ]
    for name, lines in (("steps.jsonl", steps), ("log.jsonl", epochs_of(steps))):
        text = "".join(json.dumps(asdict(line)) + "\n" for line in lines)
        write_atomically(folder / name, text.encode())


def epochs_of(steps: Sequence[Step]) -> list[Epoch]:
    """The means over each epoch's steps."""
    by_epoch: dict[int, list[Step]] = {}
    for step in steps:
        by_epoch.setdefault(math.ceil(step.epoch), []).append(step)
    return [
        Epoch(
            epoch=epoch,
            step=members[-1].step,
            loss=_mean([step.loss for step in members]),
            margin=_mean([step.margin for step in members]),
            accuracy=_mean([step.accuracy for step in members]),
        )
        for epoch, members in by_epoch.items()
    ]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Holds the folder, if this is the first worker."""
    from filelock import FileLock

    if rank() > 0:
        yield
        return
    make_folder(checkpoints.trainer_folder(folder))
    with FileLock(checkpoints.trainer_folder(folder) / "lock"):
        yield
