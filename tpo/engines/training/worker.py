"""The training that each worker runs: TRL's DPO or SFT trainer on token ids, from its last checkpoint.

It writes one folder of safetensors and a log line per epoch, and one line per step. `base_trainer` and `dpo_trainer`
say where we depart from TRL.

A training that resumes from a checkpoint ends like one that was never stopped, bit for bit on a CPU. Therefore the
reference log-probs are computed before a checkpoint's weights are loaded; every step is logged, since a mean over an
epoch would restart with each start; and a checkpoint at an epoch's end is made after the epoch's model, since the
library doesn't return to the end of that epoch. An epoch's end is saved no more often than other steps: if the newest
checkpoint is older than an epoch's model, that model is remade.
"""

import contextlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpo.config.resources import TrainerConfig
from tpo.config.training import SftConfig, TrainConfig, TrainingConfig
from tpo.console import say
from tpo.engines.cluster.gpus import give_memory_back
from tpo.engines.training import checkpoints
from tpo.engines.training.checkpoints import Checkpoint
from tpo.engines.training.distributed import as_first_worker, rank, wait_for_all
from tpo.engines.training.rounds import ONLY_ROUND, STATE, TrainingRound
from tpo.engines.training.tracking import Tracked, tracker_callbacks
from tpo.errors import StageError
from tpo.records import Demonstration, Epoch, Pair
from tpo.storage.disk import make_folder, remove, write_atomically

if TYPE_CHECKING:
    from tpo.engines.training.base_trainer import ShareTrainer

ROWS_AT_ONCE = 5000
"""Rows in memory while they are written for the trainer."""
Progress = Callable[[int, int], None]
"""Receives optimizer steps done and to do; to do is 0 while the reference log-probs are computed."""
Stop = Callable[[], bool]
"""Whether the training should save its state and end early."""


@dataclass(frozen=True)
class TrainingStep:
    """One line of `steps.jsonl`: the trainer's measurements in one optimizer step."""

    step: int
    """1 … N."""
    epoch: float
    """Passes over the pairs so far."""
    loss: float
    """Mean loss over the step's rows, before the step."""
    margin: float | None
    """Mean of the pairs' margins (`Epoch.margin`); None for demonstrations."""
    accuracy: float | None
    """Share of pairs whose margin is positive; None for demonstrations."""
    gradient_norm: float
    """Gradient norm before clipping."""
    learning_rate: float
    """Learning rate of this step."""


def write_dataset(rows: Iterable[Pair | Demonstration], folder: Path) -> None:
    """The rows on disk, which every worker maps; those of an earlier start stay. Few of them are in memory at once."""
    from datasets import Dataset, concatenate_datasets, disable_progress_bars, load_from_disk

    if folder.exists():
        return
    disable_progress_bars()
    temporary = folder.with_name(f".{folder.name}.tmp")
    remove(temporary)
    make_folder(temporary)
    columns, parts = map(_columns, rows), list[Path]()
    while some := list(itertools.islice(columns, ROWS_AT_ONCE)):
        parts.append(temporary / f"part_{len(parts)}")
        Dataset.from_dict({name: [each[name] for each in some] for name in some[0]}).save_to_disk(parts[-1])
    if len(parts) > 1:
        whole = concatenate_datasets([load_from_disk(part) for part in parts])
        parts.append(temporary / "whole")
        whole.save_to_disk(parts[-1])
    checkpoints.publish(parts[-1], folder)
    remove(temporary)


def _columns(row: Pair | Demonstration) -> dict[str, list[int]]:
    """A row for `tpo.engines.training.row_inputs`."""
    if isinstance(row, Demonstration):
        return {"prompt_ids": row.prompt_token_ids, "output_ids": row.output_token_ids}
    return {
        "prompt_ids": row.prompt_token_ids,
        "chosen_ids": row.chosen_token_ids,
        "rejected_ids": row.rejected_token_ids,
    }


def train_from_checkpoint(
    model: Path,
    folder: Path,
    *,
    config: TrainingConfig,
    trainer: TrainerConfig,
    seed: int,
    on_step: Progress,
    reference: Path | None = None,
    stop: Stop = lambda: False,
    warn: Callable[[str], None] = say,
    tracked: Tracked | None = None,
    place: TrainingRound = ONLY_ROUND,
) -> None:
    """Trains from the newest whole checkpoint in `folder`, or from `model`, to the end; `folder/dataset` holds the
    rows.

    `reference` is the folder of DPO's reference, if that is another model. In an iteration of several rounds, `place`
    says which this is: it continues from the state that the one before left, and leaves its own in `folder/state`
    unless it is the last, the only one whose earlier epochs leave a model, too.

    If `stop`, which the first worker calls after each step, returns True, it ends with a checkpoint and without a log.
    `warn` receives messages for the user about failures that don't stop the training.

    Every worker calls it. Only one training at a time writes to a folder: one that a dead driver left behind is waited
    for until it has noticed.
    """
    from transformers import set_seed

    with _alone_in(folder):
        start = as_first_worker(lambda: _prepare(folder))
        made = make_trainer(
            model,
            folder,
            config=config,
            trainer=trainer,
            seed=seed,
            on_step=on_step,
            reference=reference,
            stop=stop,
            warn=warn,
            done=start.step if start else 0,
            tracked=tracked,
            place=place,
        )
        made.take_weights()
        on_step(start.step if start else 0, 0)
        set_seed(seed)  # Finding the reference log-probs in the cache takes other random numbers than computing them.
        made.train(resume_from_checkpoint=str(start.folder) if start else None)
        if made.state.global_step == made.state.max_steps:
            if not place.is_last:
                made.hand_on(folder / STATE)
            as_first_worker(lambda: _write_log(made.state.log_history, folder))


def make_trainer(
    model: Path,
    folder: Path,
    *,
    config: TrainingConfig,
    trainer: TrainerConfig,
    seed: int,
    on_step: Progress,
    reference: Path | None = None,
    stop: Stop = lambda: False,
    warn: Callable[[str], None] = say,
    done: int = 0,
    tracked: Tracked | None = None,
    place: TrainingRound = ONLY_ROUND,
) -> "ShareTrainer":
    """The trainer on a model, with the reference log-probs computed if there is a reference; `done` is the
    number of steps that `on_step` receives until it trains."""
    from datasets import disable_progress_bars, load_from_disk
    from transformers import AutoTokenizer, PrinterCallback

    from tpo.engines.training.base_trainer import ShareTrainer
    from tpo.engines.training.weights import load_for_training

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    rows = load_from_disk(folder / "dataset")

    def make(folder_of_weights: Path, **options: Any) -> Any:
        kind, arguments = _kind_of(config)
        return kind(
            config=config,
            trainer=trainer,
            place=place,
            model=load_for_training(folder_of_weights, config, spread=trainer.strategy == "fsdp"),
            args=arguments(**_arguments(folder, config, trainer, seed, rows=len(rows))),
            train_dataset=rows,
            processing_class=tokenizer,
            **options,
        )

    callbacks = [_keeper(folder, tokenizer, config, trainer.checkpoint_share, on_step, stop, place)]
    if isinstance(config, TrainConfig):
        references = checkpoints.references_of(folder)
        kept = {"references": references, "on_reference": lambda: on_step(done, 0)}
        if reference is not None and not as_first_worker(lambda: checkpoints.sealed(references) is not None):
            # It leaves its log-probs on disk, where the trainer of the model finds them.
            as_kept = make(reference, is_reference=True, **kept)
            del as_kept
            give_memory_back()
        made = make(model, is_reference=reference is None, callbacks=callbacks, **kept)
    else:
        made = make(model, callbacks=callbacks)
    assert isinstance(made, ShareTrainer)
    made.remove_callback(PrinterCallback)
    if rank() == 0 and tracked is not None:
        for callback in tracker_callbacks(tracked, checkpoints.trainer_folder(folder), done=done, warn=warn):
            made.add_callback(callback)
    return made


def _kind_of(config: TrainingConfig) -> tuple[type, type]:
    """The trainer's class and that of its arguments."""
    from trl import DPOConfig, SFTConfig

    from tpo.engines.training.dpo_trainer import PairTrainer
    from tpo.engines.training.sft_trainer import DemonstrationTrainer

    return (DemonstrationTrainer, SFTConfig) if isinstance(config, SftConfig) else (PairTrainer, DPOConfig)


def finished(folder: Path, passes: int, place: TrainingRound = ONLY_ROUND) -> bool:
    """Whether a training of that many epochs has ended here: it writes its log last."""
    epochs = [checkpoints.epoch_folder(folder, epoch) for epoch in range(1 if place.is_last else passes, passes + 1)]
    return (folder / "log.jsonl").exists() and all(epoch.is_dir() for epoch in epochs)


def read_log(folder: Path) -> list[Epoch]:
    """The log of a finished training."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [Epoch(**json.loads(line)) for line in lines]


def _arguments(folder: Path, config: TrainingConfig, trainer: TrainerConfig, seed: int, *, rows: int) -> dict[str, Any]:
    falls_to_a_share = config.min_lr_ratio > 0
    arguments = {
        "output_dir": str(checkpoints.trainer_folder(folder)),
        "num_train_epochs": config.epochs,
        "max_steps": -1 if config.max_steps is None else config.steps(rows),
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "cosine_with_min_lr" if falls_to_a_share else config.lr_scheduler,
        "lr_scheduler_kwargs": {"min_lr_rate": config.min_lr_ratio} if falls_to_a_share else None,
        "warmup_steps": config.warmup_ratio,
        "weight_decay": config.weight_decay,
        "per_device_train_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": max(1, config.batch_size // config.micro_batch_size // trainer.workers),
        "max_length": config.max_tokens,
        "gradient_checkpointing": config.gradient_checkpointing,
        "bf16": config.precision == "bfloat16",
        "use_cpu": trainer.device == "cpu",
        "ddp_find_unused_parameters": False,
        "ddp_backend": "gloo" if trainer.device == "cpu" and trainer.workers > 1 else None,
        "save_strategy": "no",  # The callback decides.
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],  # The tracker's callback is added by hand, so that a resumed training reports no step twice.
        "disable_tqdm": True,
        "seed": seed,
        "data_seed": seed,
    }
    if isinstance(config, TrainConfig):
        arguments["precompute_ref_log_probs"] = True
    return arguments


def _keeper(
    folder: Path,
    tokenizer: Any,
    config: TrainingConfig,
    share: float,
    on_step: Progress,
    stop: Stop,
    place: TrainingRound,
) -> Any:
    from transformers import TrainerCallback

    from tpo.engines.training.weights import write_model

    section = "recipe.sft" if isinstance(config, SftConfig) else "train"

    class Keeper(TrainerCallback):
        """Reports steps, writes each epoch's model, and has checkpoints saved and sealed."""

        def __init__(self) -> None:
            self._place = folder.stat().st_ino
            self._pace = checkpoints.Pace(share)
            self._began = 0.0
            self._stopped = False

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                on_step(state.global_step, state.max_steps)
            due, stopped = as_first_worker(lambda: (self._pace.due(), stop()))
            control.should_training_stop |= stopped
            self._stopped |= stopped
            if (due or stopped) and not _ends_epoch(state):
                self._ask_to_save(control)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **kwargs: Any
        ) -> None:
            if logs and not math.isfinite(logs.get("loss", 0.0)):
                raise StageError(
                    f"the loss at step {state.global_step} is {logs['loss']}: the training has diverged; lower "
                    f"{section}.learning_rate"
                )

        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if not _ends_epoch(state):
                return  # stopped within it
            self._check_place()
            if place.is_last or state.global_step >= state.max_steps:
                epoch = math.ceil(state.epoch)
                write_model(model, tokenizer, checkpoints.epoch_folder(folder, epoch), config.precision)
            if state.global_step >= state.max_steps:
                return  # Nothing is left to resume.
            if self._stopped or as_first_worker(self._pace.due):
                self._ask_to_save(control)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            path = checkpoints.trainer_folder(folder) / f"checkpoint-{state.global_step}"
            wait_for_all()
            if state.is_world_process_zero:
                self._check_place()
                epochs = math.ceil(state.epoch) if _ends_epoch(state) else math.floor(state.epoch)
                if not place.is_last:
                    epochs = 0  # None of those before the last leaves a model.
                made = checkpoints.seal_checkpoint(path, step=state.global_step, epochs=epochs)
                checkpoints.keep_only(folder, made)
                on_step(state.global_step, state.max_steps)
            self._pace.saved(time.monotonic() - self._began)

        def _ask_to_save(self, control: Any) -> None:
            self._check_place()
            self._began = time.monotonic()
            control.should_save = True

        def _check_place(self) -> None:
            """A stage that is started over has another folder of this name, into which our files don't belong."""
            if not folder.exists() or folder.stat().st_ino != self._place:
                raise StageError(f"{folder} was moved away while the training ran: nothing more is written to it")

    return Keeper()


def _ends_epoch(state: Any) -> bool:
    """Whether an epoch is over: at its last row, or at the end of the training."""
    return float(state.epoch).is_integer() or state.global_step >= state.max_steps


def _prepare(folder: Path) -> Checkpoint | None:
    """The checkpoint to resume from, with incomplete files removed."""
    remove(folder / "log.jsonl")
    return checkpoints.tidy(folder)


def _write_log(history: Sequence[Mapping[str, float]], folder: Path) -> None:
    """Writes `steps.jsonl` and `log.jsonl`; the trainer's history, which its checkpoints hold, has a line per step."""
    steps = [
        TrainingStep(
            step=int(line["step"]),
            epoch=line["epoch"],
            loss=line["loss"],
            margin=line.get("rewards/margins"),
            accuracy=line.get("rewards/accuracies"),
            gradient_norm=line["grad_norm"],
            learning_rate=line["learning_rate"],
        )
        for line in history
        if "loss" in line
    ]
    for name, lines in (("steps.jsonl", steps), ("log.jsonl", epochs_of(steps))):
        text = "".join(json.dumps(asdict(line)) + "\n" for line in lines)
        write_atomically(folder / name, text.encode())


def epochs_of(steps: Sequence[TrainingStep]) -> list[Epoch]:
    """The means over each epoch's steps."""
    by_epoch: dict[int, list[TrainingStep]] = {}
    for step in steps:
        by_epoch.setdefault(math.ceil(step.epoch), []).append(step)
    return [
        Epoch(
            epoch=epoch,
            step=members[-1].step,
            loss=_mean([step.loss for step in members]),
            margin=_mean_or_none([step.margin for step in members]),
            accuracy=_mean_or_none([step.accuracy for step in members]),
        )
        for epoch, members in by_epoch.items()
    ]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if len(known) == len(values) else None


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
