"""Many sequences in one row, without padding: where each stands, and the attention that keeps them apart.

In: a row of tokens and its spans. Out: what each sequence would give alone, in any decoder of transformers whose
attention is a plain softmax over all earlier tokens; whatever asks for more (a window shorter than the sequence, capped
logits, sinks, distance biases) raises `NotPlainError`, and a recurrent model never asks at all.

transformers has an exact way of its own, a mask over the whole row from where position ids begin anew: it computes
the square of the row and throws most of it away. Here attention is done sequence by sequence, and what some sequences
begin with can stand in the row once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKED = "tpo_packed"
"""The attention's name in transformers."""
_HARMLESS = {"dropout", "is_causal", "output_attentions", "position_ids", "use_cache"}


class NotPlainError(Exception):
    """This model's attention is not what is computed here."""


@dataclass(frozen=True)
class Spans:
    """Where some sequences that begin alike stand in a row."""

    shared: slice
    """The tokens that they begin with."""
    rests: list[slice]
    """The rest of each sequence."""


def register_packed_attention() -> None:
    """Makes `PACKED` an attention that models of transformers can be set to; a row then needs its `spans` too."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, attend_span_by_span)


def attend_span_by_span(
    module: "nn.Module",
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    _: "Tensor | None",
    *,
    spans: Sequence[Spans],
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: object,
) -> "tuple[Tensor, None]":
    """Causal attention within each sequence of a row; called by transformers with [1, heads, tokens, size] each.

    Raises `NotPlainError` where the model asks for anything more.
    """
    import torch

    more = {name for name, wanted in others.items() if wanted is not None and wanted is not False} - _HARMLESS
    longest = max(_length(bundle.shared) + _length(rest) for bundle in spans for rest in bundle.rests)
    if more or not getattr(module, "is_causal", True) or (sliding_window or longest) < longest:
        raise NotPlainError
    mixed = []
    for bundle in spans:
        for i, rest in enumerate(bundle.rests):
            parts = [torch.cat((part[:, :, bundle.shared], part[:, :, rest]), 2) for part in (query, key, value)]
            mixed.append(_attend(*parts, skipped=_length(bundle.shared) if i else 0, scaling=scaling))
    return torch.cat(mixed, 2).transpose(1, 2), None


def _attend(query: "Tensor", key: "Tensor", value: "Tensor", *, skipped: int, scaling: float | None) -> "Tensor":
    """Causal attention of one sequence, for its tokens after the first `skipped`; [1, heads, tokens, size] each.

    Done for the skipped tokens too where they are the fewer: that is quicker than a mask, which causal attention over
    all of a sequence needs none of.
    """
    import torch

    tokens, grouped = query.shape[2], key.shape[1] != query.shape[1]
    attend = torch.nn.functional.scaled_dot_product_attention
    if 2 * skipped <= tokens:
        return attend(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)[:, :, skipped:]
    mask = torch.ones(tokens - skipped, tokens, dtype=torch.bool, device=query.device).tril(skipped)
    return attend(query[:, :, skipped:], key, value, attn_mask=mask, scale=scaling, enable_gqa=grouped)


def _length(span: slice) -> int:
    return int(span.stop - span.start)
