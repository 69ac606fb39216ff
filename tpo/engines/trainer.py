"""The DPO step: TRL's trainer on Ray Train's workers, on the token ids as they were sampled.

In: M_t's folder and a Parquet file of pairs as token ids. Out: a folder of safetensors an epoch and a log line each.

Two things differ from TRL's own way. Its `_prepare_dataset` tokenises text: decoding and encoding again can give
other tokens than those that were sampled, so ours hands the ids through. And before the first optimiser step policy
and reference are the same model, so the loss must be ln 2: that is asserted, because a reference that is not M_t, a
doubled BOS or dropout left on all show there and nowhere else so early.
"""

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpo.config import ClusterConfig, TrainConfig, TrainerConfig
from tpo.engines.processes import environment, start_ray
from tpo.errors import StageError
from tpo.records import Epoch, Pair

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import DPOTrainer

Progress = Callable[[int, int], None]
"""Called with optimiser steps done and to do."""


def train_dpo(
    model: Path,
    pairs: Sequence[Pair],
    folder: Path,
    *,
    config: TrainConfig,
    trainer: TrainerConfig,
    cluster: ClusterConfig,
    seed: int,
    progress: Progress,
) -> list[Epoch]:
    """Trains M_{t+1} from M_t on some pairs; `folder/epoch_<n>` holds the model after each epoch.

    Raises `StageError` where a worker fails, with the worker's own error.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    start_ray(cluster)
    folder = folder.resolve()
    _write_dataset(pairs, folder / "dataset")
    counter = ray.remote(_Counter).options(num_cpus=0).remote()
    on_gpu = trainer.device == "gpu"
    run = TorchTrainer(
        _work,
        train_loop_config={
            "model": str(model.resolve()),
            "folder": str(folder),
            "config": config.model_dump(mode="json"),
            "trainer": trainer.model_dump(mode="json"),
            "seed": seed,
            "counter": counter,
        },
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=trainer.workers, use_gpu=on_gpu, resources_per_worker={"GPU": 1} if on_gpu else {"CPU": 1}
        ),
        run_config=RunConfig(
            storage_path=str(folder / "ray"),
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env={"env_vars": environment(trainer.threads)},
        ),
    )
    with _watched(counter, progress):
        try:
            run.fit()
        except Exception as error:
            raise StageError(f"training failed: {error}") from error
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [Epoch(**json.loads(line)) for line in lines]


class _Counter:
    """Steps done and to do, where both workers and driver can see them."""

    def __init__(self) -> None:
        self._steps = (0, 0)

    def set(self, done: int, total: int) -> None:
        self._steps = (done, total)

    def get(self) -> tuple[int, int]:
        return self._steps


@contextlib.contextmanager
def _watched(counter: Any, progress: Progress) -> Iterator[None]:
    import ray

    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            with contextlib.suppress(ray.exceptions.RayError):
                progress(*ray.get(counter.get.remote()))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
        progress(*ray.get(counter.get.remote()))
    finally:
        stop.set()
        thread.join()


def _write_dataset(pairs: Sequence[Pair], folder: Path) -> None:
    """The pairs on disk, from where every worker maps them: TRL's cache of reference log-probs needs a file."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    columns = {
        "prompt_ids": [pair.prompt_token_ids for pair in pairs],
        "chosen_ids": [pair.chosen_token_ids for pair in pairs],
        "rejected_ids": [pair.rejected_token_ids for pair in pairs],
    }
    Dataset.from_dict(columns).save_to_disk(folder)


def _work(arguments: Mapping[str, Any]) -> None:
    """What each worker of Ray Train runs."""
    import ray
    import torch
    from datasets import load_from_disk
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_flush_denormal(True)
    config = TrainConfig.model_validate(arguments["config"])
    trainer_config = TrainerConfig.model_validate(arguments["trainer"])
    model = AutoModelForCausalLM.from_pretrained(
        arguments["model"], dtype=getattr(torch, config.precision), local_files_only=True, use_safetensors=True
    )
    tokenizer = AutoTokenizer.from_pretrained(arguments["model"], local_files_only=True)
    folder = Path(arguments["folder"])
    trainer = _dpo_trainer(
        model,
        tokenizer,
        load_from_disk(folder / "dataset"),
        folder,
        config=config,
        trainer=trainer_config,
        seed=arguments["seed"],
        on_step=lambda done, total: ray.get(arguments["counter"].set.remote(done, total)),
    )
    trainer.train()


def _dpo_trainer(
    model: Any,
    tokenizer: Any,
    dataset: "Dataset",
    folder: Path,
    *,
    config: TrainConfig,
    trainer: TrainerConfig,
    seed: int,
    on_step: Progress,
) -> "DPOTrainer":
    from trl import DPOConfig, DPOTrainer

    class SampledIdsDPOTrainer(DPOTrainer):
        """TRL's trainer on ids as sampled, with the loss before the first step asserted."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            if self.state.global_step == 0 and config.loss == "dpo":
                check_first_loss((loss[0] if isinstance(loss, tuple) else loss).item(), config)
            return loss

    loss_type, loss_weights = (
        (["sigmoid", "sft"], [1.0, config.alpha]) if config.loss == "irpo" else (["sigmoid"], None)
    )
    arguments = DPOConfig(
        output_dir=str(folder / "trainer"),
        beta=config.beta,
        loss_type=loss_type,
        loss_weights=loss_weights,
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
        ddp_backend="gloo" if trainer.device == "cpu" else None,
        save_strategy="no",
        logging_strategy="epoch",
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        data_seed=seed,
    )
    return SampledIdsDPOTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[_epoch_writer(folder, tokenizer, on_step)],
    )


def check_first_loss(loss: float, config: TrainConfig) -> None:
    """Raises `StageError` unless the DPO loss before the first optimiser step is ln 2."""
    tolerance = 1e-4 if config.precision == "float32" else 2e-2
    if not math.isclose(loss, math.log(2), abs_tol=tolerance):
        raise StageError(
            f"the DPO loss before the first step is {loss:.6f}, expected ln 2 = {math.log(2):.6f}: the reference "
            "log-probs are not those of the model that is trained"
        )


def _epoch_writer(folder: Path, tokenizer: Any, on_step: Progress) -> Any:
    from transformers import TrainerCallback

    class EpochWriter(TrainerCallback):
        """Reports steps, and writes model and log line at the end of each epoch."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                on_step(state.global_step, state.max_steps)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **kwargs: Any
        ) -> None:
            if not state.is_world_process_zero or not logs or "loss" not in logs:
                return
            line = Epoch(
                epoch=round(state.epoch),
                step=state.global_step,
                loss=logs["loss"],
                margin=logs["rewards/margins"],
                accuracy=logs["rewards/accuracies"],
            )
            with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(line)) + "\n")

        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                place = folder / f"epoch_{round(state.epoch)}"
                getattr(model, "module", model).save_pretrained(place)
                tokenizer.save_pretrained(place)

    return EpochWriter()
