"""Attention over a whole packed row in one call a layer: FlexAttention with a block mask that is built once per row.

The GPU's counterpart of `tpo.engines.training.packing`, which makes one call per sequence and layer and is the
reference: the same sequences, and also what they can't have there, windows shorter than a sequence (Mistral, Gemma 3,
OLMo 3), capped logits (Gemma 2) and sinks (gpt-oss). FlexAttention has no backward pass on CPUs: they use the other.

A row has a new length each time. The kernel is compiled with dynamic shapes, once per head size, number of heads and
kind of scores; what differs between rows (lengths, sequences, the window) reaches it as tensors. Blocks of 128 × 128
tokens in which no token attends to another are skipped, and only blocks at the edges evaluate the mask. Which blocks
those are is computed from the sequences, without a mask of the row's square.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from tpo.engines.training.packing import (
    HARMLESS,
    PACKED,
    NotPlainError,
    RowSpans,
    attend_span_by_span,
    hides_its_window,
)

PACKED_IN_ONE_CALL = "tpo_packed_in_one_call"
"""The attention's name in transformers."""
BLOCK = 128
"""Tokens of a block; the kernel's default."""


Kernel = Callable[..., tuple[Tensor, Tensor | None]]
"""A computation of attention, with the arguments of `Compiled`: the output and, if asked for, the normalizers' logs."""


def register_packed_attentions(device: str) -> list[str]:
    """Registers the attentions for packed rows with transformers, and names those for a device, best first.

    A row then needs its `spans`, too.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, attend_span_by_span)
    AttentionInterface.register(PACKED_IN_ONE_CALL, attention_with(Compiled()))
    return [PACKED_IN_ONE_CALL, PACKED] if device == "cuda" else [PACKED]


class Compiled:
    """FlexAttention as a kernel, compiled when it is first used; `backend` is torch.compile's."""

    def __init__(self, backend: str = "inductor") -> None:
        self._backend = backend
        self._compiled: Callable[..., Any] | None = None

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        score_mod: Callable[..., Tensor] | None,
        block_mask: BlockMask,
        scale: float | None,
        with_normalizers: bool,
    ) -> tuple[Tensor, Tensor | None]:
        self._compiled = self._compiled or torch.compile(flex_attention, dynamic=True, backend=self._backend)
        found, more = self._compiled(
            query,
            key,
            value,
            score_mod=score_mod,
            block_mask=block_mask,
            scale=scale,
            enable_gqa=key.shape[1] != query.shape[1],
            return_aux=AuxRequest(lse=with_normalizers),
        )
        return found, more.lse


def attention_with(kernel: Kernel) -> Callable[..., tuple[Tensor, None]]:
    """An attention for transformers that calls a kernel once, with [1, heads, tokens, size] each.

    It raises `NotPlainError` if the model needs anything more than windows, capped logits and sinks.
    """

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        _: Tensor | None,
        *,
        spans: RowSpans,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        dropout: float = 0.0,
        **others: object,
    ) -> tuple[Tensor, None]:
        more = {name for name, wanted in others.items() if wanted is not None and wanted is not False} - HARMLESS
        if more or dropout or not getattr(module, "is_causal", True) or hides_its_window(module, sliding_window):
            raise NotPlainError
        mask = spans.derived(
            ("block mask", sliding_window, query.device), lambda: _mask_on(query, spans, sliding_window)
        )
        found, normalizers = kernel(
            query,
            key,
            value,
            score_mod=None if softcap is None else _capped(softcap),
            block_mask=mask,
            scale=scaling,
            with_normalizers=s_aux is not None,
        )
        if s_aux is not None:
            # A sink is one more logit in the sum, whose value is 0: it makes the others' share of the sum smaller.
            assert normalizers is not None
            found = found * torch.sigmoid(normalizers - s_aux.float()[None, :, None])[..., None].to(found.dtype)
        return found.transpose(1, 2), None

    return attend


def attention_without_kernel() -> Callable[..., tuple[Tensor, None]]:
    """An attention that computes nothing: for a model on the meta device, which shows what it asks for."""

    def kernel(query: Tensor, *_: Tensor, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.empty_like(query), query.new_empty(query.shape[:-1])

    return attention_with(kernel)


def _capped(most: float) -> Callable[..., Tensor]:
    def score(value: Tensor, *_: Tensor) -> Tensor:
        return most * torch.tanh(value / most)

    return score


def _mask_on(query: Tensor, spans: RowSpans, window: int | None) -> BlockMask:
    return block_mask(spans, window=window, device=query.device)


def block_mask(spans: RowSpans, *, window: int | None, device: torch.device | str) -> BlockMask:
    """Which tokens of a row attend to which: those before them in their sequence, at most `window` with themselves."""
    tokens = _Tokens(spans)
    farthest = torch.tensor(window or len(tokens.segments) + 1)
    some, all_ = tokens.blocks(int(farthest))
    segments, prefixes, places = (each.to(device) for each in (tokens.segments, tokens.prefixes, tokens.places))
    reach = farthest.to(device)

    def attends(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        before = places[query] - places[key]
        ours = (segments[key] == segments[query]) | (segments[key] == prefixes[query])
        return ours & (before >= 0) & (before < reach)

    partial, full = (_listed(which.to(device)) for which in (some & ~all_, all_))
    length = len(tokens.segments)
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=BLOCK, mask_mod=attends, seq_lengths=(length, length))


def _listed(which: Tensor) -> tuple[Tensor, Tensor]:
    """From which blocks of keys each block of queries needs, [queries, keys], their numbers and, first, indices."""
    order = which.int().argsort(dim=1, descending=True, stable=True).int()
    return which.sum(1).int()[None, None], order[None, None].contiguous()


class _Tokens:
    """What a row's tokens belong to, [tokens] each.

    A segment is a prefix or the rest of a sequence; segments are numbered in the order of the row.
    """

    segments: Tensor
    """Each token's segment."""
    prefixes: Tensor
    """The segment of the prefix before it; a prefix's own."""
    places: Tensor
    """Its position in its sequence."""

    def __init__(self, spans: RowSpans) -> None:
        prefixes, lengths, begins = list[int](), list[int](), list[int]()
        for bundle in spans:
            prefix = len(lengths)
            shared = bundle.shared.stop - bundle.shared.start
            for length in (shared, *(rest.stop - rest.start for rest in bundle.rests)):
                prefixes.append(prefix)
                begins.append(0 if len(lengths) == prefix else shared)
                lengths.append(length)
        self._of_segments = torch.tensor(prefixes)
        repeats = torch.tensor(lengths)
        self.segments = torch.arange(len(lengths)).repeat_interleave(repeats)
        self.prefixes = self._of_segments[self.segments]
        first = (repeats.cumsum(0) - repeats)[self.segments]
        self.places = torch.arange(len(self.segments)) - first + torch.tensor(begins)[self.segments]

    def blocks(self, window: int) -> tuple[Tensor, Tensor]:
        """In which pairs of blocks, [of queries, of keys], some token may attend to another, and in which all do.

        The first may be true for a pair in which none does because of the window, which only costs time.
        """
        tokens, segments = len(self.segments), len(self._of_segments)
        count = -(-tokens // BLOCK)
        held = torch.zeros(count, segments)
        held[torch.arange(tokens) // BLOCK, self.segments] = 1.0
        needed = torch.eye(segments)
        needed[torch.arange(segments), self._of_segments] = 1.0
        related = held @ needed @ held.T  # pairs of segments in two blocks of which one attends to the other
        some = (related > 0) & torch.ones(count, count, dtype=torch.bool).tril()
        held_in_block = held.sum(1)
        # In a block before this one, what a token's segment attends to lies before it. The row's last block may be
        # shorter than others, for which the kernel needs the mask.
        complete = (torch.arange(1, count + 1) * BLOCK <= tokens)[:, None].tile(1, count).tril(-1)
        every = (related == held_in_block[:, None] * held_in_block[None, :]) & complete
        if window < tokens:
            # A block within one segment has its positions in order: its ends tell the distances.
            first, last = self.places[::BLOCK], self.places[(torch.arange(1, count + 1) * BLOCK).clamp(max=tokens) - 1]
            single = (held_in_block[:, None] == 1) & (held_in_block[None, :] == 1)
            some &= ~(single & (first[:, None] - last[None, :] >= window))
            every &= single & (last[:, None] - first[None, :] < window)
        return some, some & every
