"""Packing: many sequences in one row without padding, and the attention that keeps them apart.

Each sequence gives what it would give alone, in any transformers decoder whose attention is a plain softmax over all
earlier tokens; a model that needs more (a window shorter than the sequence, capped logits, sinks, distance biases)
raises `NotPlainError`, and a recurrent model never calls the attention at all. On GPUs `tpo.engines.training.flex`
comes first, in one call a layer, which can do more.

transformers has an exact way as well, a mask over the whole row from restarting position ids: it computes the square of
the row and discards most of it. Here attention is computed sequence by sequence, and a common prefix of sequences can
be stored once.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

Derived = TypeVar("Derived")
PACKED = "tpo_packed"
"""The attention's name in transformers."""
HARMLESS = {"dropout", "is_causal", "output_attentions", "position_ids", "use_cache"}
"""Arguments of transformers to an attention that change nothing here."""


class NotPlainError(Exception):
    """This model's attention isn't the one computed here."""


@dataclass(frozen=True)
class Spans:
    """The spans of some sequences with a common prefix in a row."""

    shared: slice
    """The prefix."""
    rests: list[slice]
    """The rest of each sequence."""


class RowSpans:
    """The spans of all sequences of a row, in its order; with what attentions derive from them, once per row."""

    def __init__(self, bundles: Iterable[Spans]) -> None:
        self._bundles = tuple(bundles)
        self._derived: dict[Hashable, Any] = {}

    def __iter__(self) -> Iterator[Spans]:
        return iter(self._bundles)

    def derived(self, name: Hashable, make: Callable[[], Derived]) -> Derived:
        """What `make` returned for that name the first time: a mask is needed in every layer."""
        if name not in self._derived:
            self._derived[name] = make()
        found: Derived = self._derived[name]
        return found


def attend_span_by_span(
    module: "nn.Module",
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    _: "Tensor | None",
    *,
    spans: RowSpans,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: object,
) -> "tuple[Tensor, None]":
    """Causal attention within each sequence of a row; called by transformers with [1, heads, tokens, size] each.

    Raises `NotPlainError` if the model needs anything more.
    """
    import torch

    more = {name for name, wanted in others.items() if wanted is not None and wanted is not False} - HARMLESS
    longest = max(_length(bundle.shared) + _length(rest) for bundle in spans for rest in bundle.rests)
    if more or not getattr(module, "is_causal", True) or hides_its_window(module, sliding_window):
        raise NotPlainError
    if (sliding_window or longest) < longest:
        raise NotPlainError
    mixed = []
    for bundle in spans:
        for i, rest in enumerate(bundle.rests):
            parts = [torch.cat((part[:, :, bundle.shared], part[:, :, rest]), 2) for part in (query, key, value)]
            mixed.append(_attend(*parts, skipped=_length(bundle.shared) if i else 0, scaling=scaling))
    return torch.cat(mixed, 2).transpose(1, 2), None


def hides_its_window(module: "nn.Module", sliding_window: int | None) -> bool:
    """Whether a model has its window in the mask alone, as Phi-3.5-MoE, where packed attentions don't see it."""
    window = getattr(getattr(module, "config", None), "sliding_window", None)
    return bool(window) and sliding_window is None and not hasattr(module, "sliding_window")


def _attend(query: "Tensor", key: "Tensor", value: "Tensor", *, skipped: int, scaling: float | None) -> "Tensor":
    """Causal attention of one sequence, for its tokens after the first `skipped`; [1, heads, tokens, size] each.

    Also computed for the skipped tokens if they are fewer: that is faster than a mask, which causal attention over a
    whole sequence doesn't need.
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
