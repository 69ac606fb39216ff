"""Reward models in Ray actors, computed by torch: from chats as token ids to the values of a model's heads.

The chats of a batch are concatenated in a single row, without padding, with a common prefix stored once: the linear
layers, where most of the time goes, process every token once, and attention is computed chat by chat, on GPUs in one
call. That is exact, and always faster, since no padded batch has fewer tokens. A model whose attention is more than a
softmax over all earlier tokens (distance biases; on CPUs also a window shorter than the chat, capped logits, sinks)
gets padded batches of similar lengths instead. What applies is tested when the model is loaded: a few chats must give
the same values.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpo.config.resources import ClusterConfig, JudgeEngineConfig
from tpo.engines.cluster.actor_pool import ActorPool, JobSpec, Remedies
from tpo.engines.cluster.gpus import GpuMeter, give_memory_back
from tpo.engines.cluster.placement import Role
from tpo.engines.cluster.processes import environment, start_ray
from tpo.engines.cluster.room import Room
from tpo.engines.training.packing import PACKED, NotPlainError, RowSpans, Spans
from tpo.metrics.live import GpuReading

if TYPE_CHECKING:
    from torch import Tensor, nn

_PORTIONS = 4
"""Portions of prompts per scorer, so that all scorers finish at about the same time."""


@dataclass(frozen=True)
class Chat:
    """One chat to score."""

    token_ids: tuple[int, ...]
    """Its tokens."""
    positions: tuple[int, ...]
    """The tokens whose hidden states the heads read; the same number for every chat."""


Values = list[float]
"""The heads' values for one chat."""


@dataclass(frozen=True)
class Reader:
    """A model as a scorer uses it; created in the process that computes."""

    model: "nn.Module"
    """The whole model, which the scorer moves to its device."""
    backbone: Any
    """Its part from tokens to hidden states: a transformers decoder without a head."""
    heads: "Callable[[Tensor], Tensor]"
    """From the hidden states at the positions of B chats, [B, positions, hidden], to their values, [B, values]."""


Load = Callable[[Path, str], Reader]
"""Loads the model in a folder, in a dtype. A module-level function, so that it can be sent to an actor."""


class Scorer:
    """One model on one device; lives in a Ray actor."""

    def __init__(self, load: Load, folder: Path, config: JudgeEngineConfig) -> None:
        self._device = "cuda" if config.device == "gpu" else "cpu"
        self._batch_tokens = config.batch_tokens
        self._reader = load(folder, config.dtype)
        self.wake()
        self._own_attention = self._reader.backbone.config._attn_implementation
        self._packed_attention = PACKED
        self.packs = self._finds_an_exact_attention(1e-4 if config.dtype == "float32" else 0.1)

    def wake(self) -> None:
        """Moves the model to its device."""
        self._reader.model.to(self._device)

    def sleep(self) -> None:
        """Moves the model to the machine's memory, from where `wake` returns it."""
        self._reader.model.to("cpu")
        give_memory_back()

    def score(self, groups: Iterable[Sequence[Chat]]) -> list[list[Values]]:
        """The values of each chat of each group; how chats are batched changes only rounding.

        The chats of a group, e.g. those of one prompt, are likely to share a prefix. A chat longer than a batch is
        scored alone, duplicates once.
        """
        import torch

        groups = [list(group) for group in groups]
        values: dict[Chat, Values] = {}
        with torch.inference_mode():
            if self.packs:
                for batch in _batches([list(dict.fromkeys(group)) for group in groups if group], self._batch_tokens):
                    with contextlib.suppress(NotPlainError):
                        values |= self._values(_chats_of(batch), self._packed_hidden(batch))
            unread = {chat: None for group in groups for chat in group if chat not in values}
            for alike in _padded_batches(list(unread), self._batch_tokens):
                values |= self._values(alike, self._padded_hidden(alike))
        return [[values[chat] for chat in group] for group in groups]

    def _values(self, chats: Sequence[Chat], hidden: "Tensor") -> dict[Chat, Values]:
        return dict(zip(chats, self._reader.heads(hidden).tolist(), strict=True))

    def _packed_hidden(self, batch: "Sequence[_Bundle]") -> "Tensor":
        """Hidden states at the positions of a batch's chats, computed as one row; [chats, positions, hidden]."""
        import torch

        row = _row(batch)
        self._attend_with(self._packed_attention)
        hidden: Tensor = self._reader.backbone(
            input_ids=torch.tensor([row.token_ids], device=self._device),
            position_ids=torch.tensor([row.position_ids], device=self._device),
            use_cache=False,
            spans=RowSpans(row.spans),
        ).last_hidden_state[0]
        return hidden[torch.tensor(row.marks, device=self._device)]

    def _padded_hidden(self, chats: Sequence[Chat]) -> "Tensor":
        """The same, computed as a padded batch."""
        import torch

        longest = max(len(chat.token_ids) for chat in chats)
        token_ids = torch.zeros(len(chats), longest, dtype=torch.long)
        mask = torch.zeros_like(token_ids)
        for row, chat in enumerate(chats):
            token_ids[row, : len(chat.token_ids)] = torch.tensor(chat.token_ids)
            mask[row, : len(chat.token_ids)] = 1
        self._attend_with(self._own_attention)
        hidden: Tensor = self._reader.backbone(
            input_ids=token_ids.to(self._device), attention_mask=mask.to(self._device), use_cache=False
        ).last_hidden_state
        rows = torch.arange(len(chats), device=self._device)[:, None]
        return hidden[rows, torch.tensor([chat.positions for chat in chats], device=self._device)]

    def _attend_with(self, attention: str) -> None:
        if self._reader.backbone.config._attn_implementation != attention:
            self._reader.backbone.set_attn_implementation(attention)

    def _finds_an_exact_attention(self, tolerance: float) -> bool:
        """Sets the attention for packed rows to the first for this device that is exact, if there is one."""
        from tpo.engines.training.flex import register_packed_attentions

        for attention in register_packed_attentions(self._device):
            self._packed_attention = attention
            if self._packing_is_exact(tolerance):
                return True
        return False

    def _packing_is_exact(self, tolerance: float) -> bool:
        """Whether a few chats give the same values packed and one at a time; `tolerance` is relative."""
        import torch

        size = self._reader.backbone.config.get_text_config().vocab_size
        ids = [(7 + 31 * i) % size for i in range(60)]
        groups = [
            [Chat((*ids[:begin], *ids[end - 6 : end]), (2, begin + 5)) for end in (30, 50)]
            + [Chat((*ids[:begin], *ids[17:40]), (begin, begin + 22))]
            for begin in (9, 31)
        ]
        (batch,) = _batches(groups, 1000)
        with torch.inference_mode():
            try:
                packed = self._packed_hidden(batch)
            except (NotPlainError, RuntimeError, TypeError):
                return False
            apart = torch.cat([self._padded_hidden([chat]) for chat in _chats_of(batch)])
        return bool((packed.float() - apart.float()).norm() <= tolerance * apart.float().norm())


@dataclass(frozen=True)
class _Bundle:
    """Chats with a common prefix."""

    shared: int
    """The prefix's tokens."""
    chats: list[Chat]
    """The chats; never empty."""

    @property
    def tokens(self) -> int:
        """Tokens to process."""
        return self.shared + sum(len(chat.token_ids) - self.shared for chat in self.chats)


@dataclass(frozen=True)
class _Row:
    """A batch as one row of tokens."""

    token_ids: list[int]
    """The tokens."""
    position_ids: list[int]
    """The place of each token in its chat."""
    spans: list[Spans]
    """The spans of each bundle."""
    marks: list[list[int]]
    """The indices of each chat's positions."""


def _batches(groups: Sequence[Sequence[Chat]], batch_tokens: int) -> Iterator[list[_Bundle]]:
    """The groups' chats in batches of up to `batch_tokens` tokens; a longer group is split."""
    batch: list[_Bundle] = []
    for bundle in itertools.chain.from_iterable(_bundles(group, batch_tokens) for group in groups):
        if batch and sum(bundle.tokens for bundle in batch) + bundle.tokens > batch_tokens:
            yield batch
            batch = []
        batch.append(bundle)
    if batch:
        yield batch


def _bundles(group: Sequence[Chat], batch_tokens: int) -> Iterator[_Bundle]:
    columns = zip(*(chat.token_ids for chat in group), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    bundle = _Bundle(shared, [])
    for chat in group:
        if bundle.chats and bundle.tokens + len(chat.token_ids) - shared > batch_tokens:
            yield bundle
            bundle = _Bundle(shared, [])
        bundle.chats.append(chat)
    yield bundle


def _row(batch: Sequence[_Bundle]) -> _Row:
    row = _Row([], [], [], [])

    def append(chat: Chat, start: int, end: int) -> slice:
        begin = len(row.token_ids)
        row.token_ids.extend(chat.token_ids[start:end])
        row.position_ids.extend(range(start, end))
        return slice(begin, len(row.token_ids))

    for bundle in batch:
        shared = append(bundle.chats[0], 0, bundle.shared)
        rests = [append(chat, bundle.shared, len(chat.token_ids)) for chat in bundle.chats]
        row.spans.append(Spans(shared, rests))
        for chat, rest in zip(bundle.chats, rests, strict=True):
            begins = (shared.start, rest.start - bundle.shared)
            row.marks.append([begins[position >= bundle.shared] + position for position in chat.positions])
    return row


def _chats_of(batch: Sequence[_Bundle]) -> list[Chat]:
    return [chat for bundle in batch for chat in bundle.chats]


def _padded_batches(chats: Sequence[Chat], batch_tokens: int) -> Iterator[list[Chat]]:
    """The chats by length, longest first, in batches of up to `batch_tokens` tokens including padding."""
    batch: list[Chat] = []
    for chat in sorted(chats, key=lambda chat: len(chat.token_ids), reverse=True):
        if batch and (len(batch) + 1) * len(batch[0].token_ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(chat)
    if batch:
        yield batch


class ScorerActor:
    """A scorer in a Ray actor, which loads its model on request."""

    def __init__(self, load: Load, folder: Path, config: JudgeEngineConfig) -> None:
        self._make = functools.partial(Scorer, load, folder, config)
        self._gpus = GpuMeter() if config.device == "gpu" else None
        self._scorer: Scorer | None = None

    def load(self) -> None:
        """Loads the model, unless it is loaded, and wakes it up."""
        self._scorer = self._scorer or self._make()
        self._scorer.wake()

    def sleep(self) -> None:
        """Frees the GPU; the next `load` wakes it up."""
        if self._scorer is not None:
            self._scorer.sleep()

    def score(self, groups: Sequence[Sequence[Chat]]) -> list[list[Values]]:
        """Like `Scorer.score`."""
        assert self._scorer is not None
        return self._scorer.score(groups)

    def read_gpus(self) -> list[GpuReading]:
        """How busy its GPU was since the last call, and its memory."""
        return self._gpus.read() if self._gpus else []


class ScorerPool:
    """Scorers that share the work of a run; started at first use, kept until `close`."""

    def __init__(
        self, load: Load, folder: Path, config: JudgeEngineConfig, cluster: ClusterConfig, *, room: Room
    ) -> None:
        self._folder = folder.resolve()
        self._config = config
        self._cluster = cluster
        role = Role(
            name="scorer",
            make=ScorerActor,
            arguments=(load, self._folder, config),
            cpus=0,  # A CPU scorer is idle while a run samples and trains.
            gpus=1 if config.device == "gpu" else 0,
            environment=environment(config.threads),
            sleeps=config.device == "gpu",
        )
        self.actor_pool = ActorPool(role, config.count, room)

    def score(self, groups: Iterable[Sequence[Chat]]) -> Iterator[list[Values]]:
        """The values of each group's chats, in order, as soon as they and all before them are done.

        Groups are taken as scorers become free. Raises `StageError` if scorers keep failing on the same groups, or
        don't start.
        """
        start_ray(self._cluster)
        size = math.ceil(self._config.shard_prompts / (self._config.count * _PORTIONS))
        done: dict[int, list[list[Values]]] = {}
        following = 0
        for index, values in self.actor_pool.work(_portions(groups, size), self._orders()):
            done[index] = values
            while following in done:
                yield from done.pop(following)
                following += 1

    def _orders(self) -> JobSpec[list[Sequence[Chat]]]:
        def fault(portion: Sequence[Sequence[Chat]], values: Sequence[Sequence[Values]]) -> str | None:
            asked, found = sum(map(len, portion)), sum(map(len, values))
            same = list(map(len, portion)) == list(map(len, values))
            return None if same else f"values for {found} chats, expected one each for {asked}"

        return JobSpec(
            prepare=lambda scorer: scorer.load.remote(),
            submit=lambda scorer, portion: scorer.score.remote(portion),
            fault=fault,
            seconds=self._config.shard_seconds,
            start_seconds=self._config.start_seconds,
            model=str(self._folder),
            remedies=Remedies(
                memory="If memory ran out, lower judge_engine.batch_tokens",
                late="Lower judge_engine.shard_prompts, or raise judge_engine.shard_seconds",
            ),
        )

    def close(self) -> None:
        """Stops all scorers and releases their memory."""
        self.actor_pool.close()


def _portions(groups: Iterable[Sequence[Chat]], size: int) -> Iterator[list[Sequence[Chat]]]:
    rest = iter(groups)
    while portion := list(itertools.islice(rest, size)):
        yield portion
