"""Training loop shared by the miniature's models: batches, padding and gradient descent.

Everything is a function of seeds: the same seed gives the same weights on the same machine.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

T = TypeVar("T")

Progress = Callable[[int, float], None]
"""Called after every step with its number, from 1, and its loss."""


def descend(
    parameters: Iterable[torch.nn.Parameter],
    batches: Iterable[T],
    loss_of: Callable[[T], torch.Tensor],
    *,
    learning_rate: float,
    course: Callable[[int], float],
    progress: Progress,
) -> None:
    """Takes one AdamW step per batch; `course` maps a step, from 0, to a multiplier of the learning rate."""
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, course)
    with _flushed_denormals():
        for step, batch in enumerate(batches):
            loss = loss_of(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            progress(step + 1, loss.item())


class Pupil:
    """A language model that learns to write judgments."""

    def __init__(
        self, model: LlamaForCausalLM, tokenizer: Any, weights: torch.Tensor, batch_size: int, *, half: bool = True
    ) -> None:
        """`weights` has the loss weight of each token, (V,)."""
        self._model, self._tokenizer, self._weights, self._batch_size = model, tokenizer, weights, batch_size
        self._half = half

    def learn(
        self,
        lessons: Iterator[tuple[list[int], list[int]]],
        steps: int,
        learning_rate: float,
        seed: int,
        progress: Progress,
    ) -> None:
        """Takes `steps` steps on lessons, each a prompt and an output as token ids; the order is drawn by `seed`."""
        self._model.train()
        batches = batches_of_similar_length(lessons, self._batch_size, seed, total_tokens)
        descend(
            self._model.parameters(),
            itertools.islice(batches, steps),
            self._loss,
            learning_rate=learning_rate,
            course=falling(steps),
            progress=progress,
        )

    def _loss(self, batch: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        padded = collate(batch, self._tokenizer.pad_token_id)
        expected = padded.pop("labels")[:, 1:]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._half):
            hidden = self._model.model(**padded, use_cache=False).last_hidden_state[:, :-1]
            logits = self._model.lm_head(hidden[expected != -100])
        return cross_entropy(logits.float(), expected[expected != -100], weight=self._weights)


def falling(steps: int, warmup: int = 100) -> Callable[[int], float]:
    """A course with `warmup` steps of linear warm-up and a linear decay to 2 %."""
    return lambda step: min((step + 1) / warmup, 0.02 + 0.98 * (1 - step / steps))


def batches_of_similar_length(
    examples: Iterator[T], batch_size: int, seed: int, length: Callable[[T], int]
) -> Iterator[list[T]]:
    """Full batches of examples of similar length, in random order within each chunk of 64 batches."""
    rng = np.random.default_rng(seed)
    while chunk := list(itertools.islice(examples, 64 * batch_size)):
        ordered = sorted(chunk, key=length)
        groups = [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
        for i in rng.permutation(len(groups)):
            if len(groups[i]) == batch_size:
                yield groups[i]


def total_tokens(pair: tuple[list[int], list[int]]) -> int:
    """Number of tokens in a prompt and its output."""
    return len(pair[0]) + len(pair[1])


def collate(pairs: Sequence[tuple[list[int], list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """One batch of prompts and outputs, right-padded, with labels on the outputs only; each tensor is [B, L]."""
    width = max(len(prompt) + len(output) for prompt, output in pairs)
    ids = torch.full((len(pairs), width), pad_id)
    labels = torch.full((len(pairs), width), -100)
    for row, (prompt, output) in enumerate(pairs):
        ids[row, : len(prompt) + len(output)] = torch.tensor(prompt + output)
        labels[row, len(prompt) : len(prompt) + len(output)] = torch.tensor(output)
    return {"input_ids": ids, "attention_mask": (ids != pad_id).long(), "labels": labels}


@contextlib.contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Rounds denormal numbers to 0, since CPUs are slow on them, and turns that off again at the end."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
