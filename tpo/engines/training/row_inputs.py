"""Token ids as a model's inputs, padded or packed, and the log-probabilities of the outputs in them.

From rows of a prompt and its outputs (chosen and rejected, or one to imitate) come the tensors for one call of a model
with TRL's fused head, and from that call one log-probability per token of every output.

Packed, all outputs of a micro-batch are in one row: a prompt once, then its outputs. The prompt's last token precedes
each, since what follows it differs and a position has one label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from tpo.engines.training.batches import MicroBatch
from tpo.engines.training.head import NO_LABEL
from tpo.engines.training.packing import RowSpans, Spans

PROMPT = "prompt_ids"
"""The column of the prompts."""
PAIR = ("chosen_ids", "rejected_ids")
"""The columns of a pair's outputs."""
DEMONSTRATION = ("output_ids",)
"""The column of an output to imitate."""
Row = Mapping[str, Any]
"""The model's arguments, except for `use_cache` and `fused_lm_head`."""


@dataclass(frozen=True)
class OutputLogProbs:
    """Log-probabilities of the outputs of B rows, token by token; all first outputs, then all second ones."""

    values: Tensor
    """[outputs × B, T], 0 after an output's end."""
    mask: Tensor
    """[outputs × B, T], whether there is a token."""
    outputs: int
    """Outputs per row."""

    def sums(self, desensitization: float | None = None) -> Tensor:
        """Of whole outputs, [outputs, B].

        With `desensitization` those tokens of a pair's longer output count so much that are past the shorter one's
        length (α of LD-DPO, 2409.06411).
        """
        lengths = self.mask.sum(dim=1)
        if desensitization is None:
            weighed = self.values
        else:
            shared = torch.minimum(*lengths.chunk(2)).repeat(2)
            past = torch.arange(self.values.shape[1], device=shared.device) >= shared[:, None]
            weighed = torch.where(past, desensitization * self.values, self.values)
        return weighed.sum(dim=1).view(-1, self._rows)

    @property
    def first(self) -> Tensor:
        """Of the first outputs' tokens, [tokens]: the chosen ones, or those to imitate."""
        return self.values[: self._rows][self.mask[: self._rows]]

    @property
    def _rows(self) -> int:
        return len(self.values) // self.outputs


class ShareInputs(TypedDict):
    """One micro-batch on its way to the device; transformers moves the tensors in mappings."""

    row: Row
    """The model's arguments."""
    references: Tensor
    """The reference's log-probabilities of the outputs, [outputs, B]; empty without a reference."""
    share: MicroBatch
    """The rows and their weight."""


class ShareDataset(Dataset[ShareInputs]):
    """Micro-batches of the rows, by `MicroBatch`."""

    def __init__(
        self, rows: Any, columns: Sequence[str], references: Tensor | None, *, pad_token_id: int, packing: bool
    ) -> None:
        self._rows = rows
        self._columns = columns
        self._references = torch.zeros(0, len(rows)) if references is None else references
        self._pad_token_id = pad_token_id
        self._packing = packing

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, share: MicroBatch) -> ShareInputs:
        rows = [self._rows[i] for i in share.indices]
        if self._packing:
            row = packed_row(rows, self._columns)
        else:
            row = padded_row(rows, self._columns, self._pad_token_id)
        return {"row": row, "references": self._references[:, list(share.indices)], "share": share}


def padded_row(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], pad_token_id: int) -> Row:
    """All first outputs, then all second ones, each after its prompt and padded to the longest."""
    whole, labels = [], []
    for column in columns:
        for row in rows:
            prompt, output = row[PROMPT], row[column]
            whole.append(torch.tensor([*prompt, *output]))
            labels.append(torch.tensor([*[NO_LABEL] * len(prompt), *output]))
    return {
        "input_ids": pad_sequence(whole, batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in whole], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=NO_LABEL),
        "outputs": len(columns),
    }


def packed_row(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Row:
    """One row of all of them without padding, for the attention `tpo.engines.training.packing.PACKED`."""
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

    for row in rows:
        begun, last = row[PROMPT][:-1], row[PROMPT][-1]
        shared = append(begun, 0, ())
        outputs = [row[column] for column in columns]
        spans.append(Spans(shared, [append([last, *output], len(begun), output) for output in outputs]))
    return {
        "input_ids": torch.tensor([token_ids]),
        "position_ids": torch.tensor([position_ids]),
        "shift_labels": torch.tensor([labels]),
        "spans": RowSpans(spans),
        "outputs": len(columns),
    }


def output_log_probs(model: nn.Module, row: Row) -> OutputLogProbs:
    """Log-probabilities of the outputs in a row, from a model with TRL's fused head."""
    asked = {name: value for name, value in row.items() if name != "outputs"}
    found: Tensor = model(**asked, use_cache=False, fused_lm_head=True).log_probs
    if "spans" in row:
        # The last position of an output has no label.
        each = [found[0, spans.rests[i]][:-1] for i in range(row["outputs"]) for spans in row["spans"]]
    else:
        each = [values[here] for values, here in zip(found, row["labels"][:, 1:] != NO_LABEL, strict=True)]
    masks = [torch.ones_like(values, dtype=torch.bool) for values in each]
    return OutputLogProbs(pad_sequence(each, batch_first=True), pad_sequence(masks, batch_first=True), row["outputs"])
