"""Pairs of token ids as a model's inputs, padded or packed, and the log-probabilities that it gives their outputs.

In: rows of `prompt_ids`, `chosen_ids`, `rejected_ids`. Out: tensors for one call of a model with TRL's fused head, and
from that call one log-probability an output.

Packed, all outputs of a share stand in one row: a pair's prompt once, then chosen and rejected. The prompt's last token
stands before either, since what follows it differs and a position has one label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from trl.trainer.dpo_trainer import DataCollatorForPreference

from tpo.engines.batches import Share
from tpo.engines.packing import Spans

NO_LABEL = -100
Row = Mapping[str, Any]
"""What a model is called with, but for `use_cache` and `fused_lm_head`."""


@dataclass(frozen=True)
class PairLogProbs:
    """Summed log-probabilities of B pairs' outputs, [B] each."""

    chosen: Tensor
    """Of the chosen ones."""
    rejected: Tensor
    """Of the rejected ones."""


class ShareInputs(TypedDict):
    """One share on its way to the device; transformers moves the tensors in mappings."""

    row: Row
    """What the model is called with."""
    references: Tensor
    """The reference's log-probabilities of the chosen and of the rejected outputs, [2, B]."""
    share: Share
    """Which pairs, and what they count."""


class PairDataset(Dataset[ShareInputs]):
    """Shares of the pairs, by `Share`."""

    def __init__(self, pairs: Any, references: Tensor, *, pad_token_id: int, packing: bool) -> None:
        self._pairs = pairs
        self._references = references
        self._pad_token_id = pad_token_id
        self._packing = packing

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, share: Share) -> ShareInputs:
        rows = [self._pairs[i] for i in share.indices]
        row = packed_row(rows) if self._packing else padded_row(rows, self._pad_token_id)
        return {"row": row, "references": self._references[:, list(share.indices)], "share": share}


def padded_row(pairs: Sequence[Mapping[str, Any]], pad_token_id: int) -> Row:
    """All chosen outputs, then all rejected ones, each behind its prompt and padded to the longest."""
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    found = DataCollatorForPreference(pad_token_id)([{name: pair[name] for name in columns} for pair in pairs])
    labels = found["input_ids"].masked_fill(found["completion_mask"] == 0, NO_LABEL)
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"], "labels": labels}


def packed_row(pairs: Sequence[Mapping[str, Any]]) -> Row:
    """One row of all pairs without padding; to be read with the attention `tpo.engines.packing.PACKED`."""
    token_ids: list[int] = []
    position_ids: list[int] = []
    labels: list[int] = []
    spans = []

    def append(ids: Sequence[int], first_position: int, following: Sequence[int]) -> slice:
        begin = len(token_ids)
        token_ids.extend(ids)
        position_ids.extend(range(first_position, first_position + len(ids)))
        labels.extend([*following, *[NO_LABEL] * (len(ids) - len(following))])
        return slice(begin, len(token_ids))

    for pair in pairs:
        begun, last = pair["prompt_ids"][:-1], pair["prompt_ids"][-1]
        shared = append(begun, 0, ())
        outputs = (pair["chosen_ids"], pair["rejected_ids"])
        spans.append(Spans(shared, [append([last, *output], len(begun), output) for output in outputs]))
    return {
        "input_ids": torch.tensor([token_ids]),
        "position_ids": torch.tensor([position_ids]),
        "shift_labels": torch.tensor([labels]),
        "spans": spans,
    }


def pair_log_probs(model: nn.Module, row: Row) -> PairLogProbs:
    """What a model with TRL's fused head gives the outputs in a row."""
    found: Tensor = model(**row, use_cache=False, fused_lm_head=True).log_probs
    if "spans" not in row:
        chosen, rejected = found.sum(dim=1).chunk(2)
        return PairLogProbs(chosen, rejected)
    outputs = torch.stack([found[0, rest].sum() for spans in row["spans"] for rest in spans.rests])
    return PairLogProbs(outputs[0::2], outputs[1::2])
