"""The meter of a stage: which model works on which device at which prices, for the ledger."""

import contextlib
import dataclasses
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Literal

from tpo.config.base import Endpoint
from tpo.config.fine_grained import FineGrainedConfig
from tpo.config.judges import EnsembleJudge, GenerativeJudge, JudgeConfig, ServedJudge, VerifierJudge
from tpo.config.resources import EngineConfig
from tpo.config.run import RunConfig
from tpo.engines.inference.reply import TokenCount
from tpo.errors import InputError
from tpo.models.tensors import read_tensors
from tpo.planning.machine import gpus_here
from tpo.records import Artifact
from tpo.storage.ledger import API, Meter, Worker, read_ledger


def sampling_meter(config: RunConfig, stage: str, model: Path, *, beside: bool = False) -> Meter:
    """For sampling `model`, with `beside` while another stage is shown as the one at work."""
    worker = dataclasses.replace(_engines(config, config.engine, parameters_of(model)), at_once=config.engine.count)
    return Meter(config.root, stage, worker, config.budget, beside=beside)


def generating_meter(config: RunConfig, stage: str, model: Artifact | None) -> Meter:
    """For having `model` write prompts, or a server's model if None."""
    settings = config.data.synthetic
    if model is None and settings is not None and settings.endpoint is not None:
        worker = _server(settings.server, settings.endpoint)
    else:
        assert model is not None
        engines = _engines(config, config.engine, parameters_of(model.path))
        worker = dataclasses.replace(engines, at_once=config.engine.count)
    return Meter(config.root, stage, worker, config.budget)


def judging_meter(config: RunConfig, stage: str, judge: JudgeConfig, *, beside: bool = False) -> Meter:
    """For calling `judge`, which isn't an ensemble: its members have meters; a verifier uses no device.

    `beside` is for a judge that works while another stage is shown as the one at work.
    """
    return Meter(config.root, stage, _judge(config, judge), config.budget, beside=beside)


def booking(meter: Meter) -> Callable[[TokenCount], None]:
    """Books each reply's tokens."""
    return lambda tokens: meter.book(answers=1, tokens_in=tokens.input_tokens, tokens_out=tokens.output_tokens)


def rating_meter(config: RunConfig, stage: str, rater: FineGrainedConfig) -> Meter:
    """For having instructions rated."""
    if rater.endpoint is not None:
        return Meter(config.root, stage, _server(rater.server, rater.endpoint), config.budget)
    assert rater.folder is not None
    worker = _engines(config, config.judge_engine, parameters_of(rater.folder))
    return Meter(config.root, stage, worker, config.budget)


def training_meter(config: RunConfig, stage: str, model: Path) -> Meter:
    """For training `model`."""
    worker = Worker(
        device=device_name(config, config.trainer.device),
        devices=config.trainer.workers,
        parameters=parameters_of(model),
        hour_price=config.prices.gpu_hour if config.trainer.device == "gpu" else 0.0,
    )
    return Meter(config.root, stage, worker, config.budget)


def api_tokens(
    root: Path, verb: Literal["judge", "generate", "rate"] = "judge", server: str | None = None
) -> TokenCount:
    """Tokens that servers have read and written for a run so far, from its ledger: what an endpoint's limits count.

    Those of judges, of the generator or of the rater; only those of one `server`, if it is named as in the ledger.
    """
    paid = [entry for entry in read_ledger(root) if entry.device == API and entry.work.split()[-1] == verb]
    paid = [entry for entry in paid if server is None or entry.server == server]
    return TokenCount(sum(entry.tokens_in for entry in paid), sum(entry.tokens_out for entry in paid))


def parameters_of(folder: Path) -> int:
    """Number of parameters of a model, from the headers of its files; 0 if they don't say."""
    with contextlib.suppress(InputError):
        return sum(prod(tensor.shape) for tensor in read_tensors(folder).values())
    return 0


def device_name(config: RunConfig, device: str) -> str:
    """A device's name in the ledger: `cpu`, or the GPU's name from the config or from this machine."""
    if device == "cpu":
        return device
    found = gpus_here()
    return config.cluster.gpu or (found[0].name if found else device)


def _judge(config: RunConfig, judge: JudgeConfig) -> Worker:
    assert not isinstance(judge, EnsembleJudge)
    if isinstance(judge, VerifierJudge):
        return Worker("cpu")
    if isinstance(judge, ServedJudge) and judge.endpoint is not None:
        return _server(judge.server, judge.endpoint)
    assert judge.folder is not None
    tensor_parallel = config.judge_engine.tensor_parallel if isinstance(judge, GenerativeJudge) else 1
    return _engines(config, config.judge_engine, parameters_of(judge.folder), tensor_parallel=tensor_parallel)


def _server(name: str, endpoint: Endpoint) -> Worker:
    return Worker(API, server=name, input_price=endpoint.input_price, output_price=endpoint.output_price)


def _engines(config: RunConfig, engine: EngineConfig, parameters: int, tensor_parallel: int | None = None) -> Worker:
    on_gpu = engine.device == "gpu"
    each = engine.tensor_parallel if tensor_parallel is None else tensor_parallel
    return Worker(
        device=device_name(config, engine.device),
        devices=engine.count * (each if on_gpu else 1),
        parameters=parameters,
        hour_price=config.prices.gpu_hour if on_gpu else 0.0,
    )
