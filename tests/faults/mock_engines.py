"""Engines and a trainer that answer at once and deterministically, so that thousands of runs can be broken and
compared.

Outputs, verdicts and checkpoints depend only on the model's content and the seed; they come a shard at a time, in an
order that differs from run to run, as with real engines.
"""

import hashlib
import itertools
import json
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from prompts.instructions import CLOSE, OPEN
from prompts.thought import VARIANTS
from tpo.config.data import SampleConfig
from tpo.engines.engines import Engines
from tpo.engines.inference.forcing import Rule
from tpo.engines.inference.reply import Decoding, Reply
from tpo.engines.inference.sampler import Accept, Output, Request
from tpo.engines.training.checkpoints import epoch_folder, publish
from tpo.engines.training.job import TrainingJob
from tpo.engines.training.rounds import STATE
from tpo.records import Artifact, Epoch
from tpo.storage.disk import make_folder, write_atomically

T = TypeVar("T")

ENGINES = 2
"""Shards in progress at the same time."""
_WORDS = ["river", "stone", "quiet", "seven", "lamp", "over", "green", "walk", "paper", "near"]


class MockPool:
    """Replaces `SamplerPool`."""

    def generate(
        self,
        model: Artifact,
        shards: Iterable[Sequence[Request]],
        sample: SampleConfig,
        *,
        n: int,
        tries: int,
        accept: Accept,
        rules: Sequence[Rule] = (),
        shard_count: int | None = None,
    ) -> Iterator[tuple[int, list[list[Output]]]]:
        """Outputs, one in eight of which breaks the format; the prompt writer accepts any."""
        if accept(Output([], "", False, 1), decode):
            yield from MockWriter().generate(model, shards, sample, n=n, tries=tries, accept=accept)
            return
        for i, shard in _as_engines_free_up(shards):
            yield i, [[_output(model, request, j, tries, accept) for j in range(n)] for request in shard]

    def reply(
        self, model: Artifact, shards: Sequence[Sequence[list[int]]], decoding: Decoding, labels: Sequence[list[int]]
    ) -> Iterator[tuple[int, list[Reply]]]:
        """Verdicts, a few of which are unparsable."""
        for i, shard in _as_engines_free_up(shards):
            yield i, [_verdict(model, ids) for ids in shard]


class MockWriter(MockPool):
    """The same for the prompt writer: some aren't instructions, some resemble an earlier one."""

    def generate(
        self,
        model: Artifact,
        shards: Iterable[Sequence[Request]],
        sample: SampleConfig,
        *,
        n: int,
        tries: int,
        accept: Accept,
        rules: Sequence[Rule] = (),
        shard_count: int | None = None,
    ) -> Iterator[tuple[int, list[list[Output]]]]:
        """One or two instructions each."""
        for i, shard in _as_engines_free_up(shards):
            yield i, [[_writing(model, request)] for request in shard]


class MockEngines(Engines):
    """Replaces a run's engines, with one pool for everything."""

    def __init__(self, pool: Any = None) -> None:
        super().__init__()
        self._pool = MockPool() if pool is None else pool

    def sampler_pool(self, *_: Any, **__: Any) -> Any:
        return self._pool

    def train_model(self, job: TrainingJob, *, progress: Callable[..., None], **_: Any) -> list[Epoch]:
        return mock_train_model(job, progress)


def mock_train_model(job: TrainingJob, progress: Callable[..., None]) -> list[Epoch]:
    """Replaces `train_model`: makes a model folder per epoch, keeping those finished by an earlier call.

    Between rounds it makes the last epoch's only, and a state that the next round depends on.
    """
    model, rows, folder, place = job.model, job.rows, job.folder, job.place
    weights = (model / "model.safetensors").read_bytes()
    if place.carried is not None:
        weights += (place.carried / "worker_0.safetensors").read_bytes()
    epochs, passes = [], job.config.passes(len(rows))
    for epoch in range(1, passes + 1):
        weights = hashlib.sha256(weights + repr(list(rows)).encode()).digest() * 8
        epochs.append(Epoch(epoch, epoch * 3, 0.7 - epoch / 10, 0.1 * epoch, 0.5))
        progress(epoch * 3, passes * 3)
        if epoch < passes and not place.is_last:
            continue
        saved = folder / f".epoch_{epoch}.tmp"
        make_folder(saved)
        for path in sorted(model.iterdir()):
            if path.name not in ("plan.json", "manifest.json"):
                data = weights if path.suffix == ".safetensors" else path.read_bytes()
                write_atomically(saved / path.name, data)
        publish(saved, epoch_folder(folder, epoch))
    if not place.is_last:
        make_folder(folder / STATE)
        write_atomically(folder / STATE / "worker_0.safetensors", b"state of " + weights)
    write_atomically(folder / "log.jsonl", b"".join(json.dumps(asdict(line)).encode() + b"\n" for line in epochs))
    return epochs


def _as_engines_free_up(shards: Iterable[T]) -> Iterator[tuple[int, T]]:
    """The shards with their indices, as they finish: each is taken when an engine has finished another."""
    numbered, dice = enumerate(shards), random.Random(os.getpid())
    under_way = list(itertools.islice(numbered, ENGINES))
    while under_way:
        sys.audit("tests.shard")
        yield under_way.pop(dice.randrange(len(under_way)))
        under_way += itertools.islice(numbered, 1)


def _output(model: Artifact, request: Request, index: int, tries: int, accept: Accept) -> Output:
    for attempt in range(1, tries + 1):
        dice = random.Random(f"{model.fingerprint} {request.seed} {index} {attempt}")
        words = [" ".join(dice.choices(_WORDS, k=dice.randint(1, most))) for most in (12, 30)]
        prompt = VARIANTS["generic"]
        text = f"{prompt.thought_marker} {words[0]}\n{prompt.response_marker} {words[1]}"
        if dice.random() < 1 / 8:
            text = words[0]
        output = Output(list(text.encode()), text, True, attempt)
        if accept(output, decode):
            break
    return output


def decode(ids: Sequence[int]) -> str:
    """The text of a mock's tokens, which are its bytes."""
    return bytes(ids).decode()


def _writing(model: Artifact, request: Request) -> Output:
    dice = random.Random(f"{model.fingerprint} {request.seed}")
    tasks = [" ".join(dice.choices(_WORDS, k=dice.randint(2, 7))) for _ in range(dice.randint(1, 2))]
    text = "".join(f"{OPEN}\n{task}?\n{CLOSE}\n" for task in tasks)
    if dice.random() < 1 / 8:
        text = text.removesuffix(f"{CLOSE}\n")
    return Output(list(text.encode()), text, True, 1)


def _verdict(model: Artifact, token_ids: Sequence[int]) -> Reply:
    dice = random.Random(f"{model.fingerprint} {list(token_ids)}")
    text = dice.choices(["Because. [[A]]", "Because. [[B]]", "I do not know."], [9, 9, 1])[0]
    return Reply(text, True, len(token_ids), 5)
