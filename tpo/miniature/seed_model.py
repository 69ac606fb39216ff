"""The seed model M_0 of the miniature: a Llama of under a million parameters, trained from scratch, in three phases.

In: the world and the formats of our prompts. Out: a folder with safetensors, tokenizer and chat template that
transformers and vLLM load like any other. Copying drills come first, then textbook pages, then, at a falling learning
rate, the manners of a model that answers directly. The same seed gives the same weights on the same machine.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tpo.miniature import vocabulary, world
from tpo.miniature.lessons import (
    FILLERS,
    RESPONSE_FORMS,
    Format,
    Lesson,
    Manners,
    copying_drill,
    textbook_page,
    tuned_answer,
)

CONTEXT_TOKENS = 512
FORMAT_SHARES = {"direct": 0.25, "generic": 0.40, "specific": 0.15, "specific_draft": 0.05, "system": 0.15}
"""How often each prompt variant is asked, in both phases."""
TEXTBOOK_CATEGORIES = ("dial", "dial", "relay", "relay", "cups", "cups", "cups", "opposites", "recall", "largest")
"""Problems with steps come more often in the textbook: below 15 % of the pages a skill is never learned."""


@dataclass(frozen=True)
class Recipe:
    """How the seed is trained; the defaults made the shipped one."""

    seed: int = 0
    """Of problems, lessons, initial weights and batch order."""
    drills: int = 32_000
    """Copying drills, the first phase."""
    textbook_lessons: int = 200_000
    """Lessons of the second phase."""
    tuning_lessons: int = 48_000
    """Lessons of the third phase."""
    batch_size: int = 32
    """Sequences a step."""
    learning_rate: float = 1.5e-3
    """Of AdamW, after 200 steps of warm-up and until the third phase, in which it falls to 2 %."""

    @property
    def steps(self) -> int:
        """Optimiser steps of all phases."""
        return (self.drills + self.textbook_lessons + self.tuning_lessons) // self.batch_size


def train_seed_model(
    formats: Mapping[str, Format], folder: Path, recipe: Recipe, progress: Callable[[int, float], None]
) -> None:
    """Trains the seed model and writes it to `folder` in bfloat16.

    `progress(step, loss)` is called after every step.
    """
    torch.manual_seed(recipe.seed)
    tokenizer = _tokenizer(formats)
    model = LlamaForCausalLM(_architecture(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    tuning_steps = recipe.tuning_lessons // recipe.batch_size
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 200, 0.02 + (recipe.steps - step) / tuning_steps)
    )
    model.train()
    with _flushed_denormals():
        for step, batch in enumerate(_batches(tokenizer, _lessons(formats, recipe), recipe)):
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            progress(step + 1, loss.item())
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Rounds the tiniest numbers to 0, on which a CPU is slow, and leaves the process as it was."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _architecture(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        rope_theta=10_000.0,
        tie_word_embeddings=False,
        initializer_range=0.03,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _tokenizer(formats: Mapping[str, Format]) -> PreTrainedTokenizerFast:
    phrases = dict.fromkeys(piece for format_ in formats.values() for piece in format_.prose())
    sample = [problem for problem, _ in zip(world.problems("seed", 0), range(6000), strict=False)]
    texts = [text for problem in sample for text in (problem.instruction, " " + problem.instruction)]
    texts += [f" {step.text}" for problem in sample for step in problem.steps]
    texts += [step.text for problem in sample for step in problem.steps]
    texts += [form.format(problem.reference) for problem in sample[:600] for form in RESPONSE_FORMS]
    texts += [" " + form.format(problem.reference) for problem in sample[:600] for form in RESPONSE_FORMS]
    texts += [form for word in world.WORDS for form in (word, " " + word)]
    texts += [*FILLERS, *(" " + filler for filler in FILLERS), "The user asks:", " The user asks:", "\n"]
    return vocabulary.build_tokenizer(vocabulary.words_of(texts), phrases, max_length=CONTEXT_TOKENS)


def _lessons(formats: Mapping[str, Format], recipe: Recipe) -> Iterator[Lesson]:
    rng = np.random.default_rng(recipe.seed)
    names = list(FORMAT_SHARES)
    shares = list(FORMAT_SHARES.values())
    for _ in range(recipe.drills):
        yield copying_drill(formats["direct"], rng)
    for problem in itertools.islice(_endless(recipe.seed, TEXTBOOK_CATEGORIES), recipe.textbook_lessons):
        yield textbook_page(problem, formats[names[rng.choice(len(names), p=shares)]], rng)
    for problem in itertools.islice(_endless(recipe.seed + 1, None), recipe.tuning_lessons):
        yield tuned_answer(problem, formats[names[rng.choice(len(names), p=shares)]], rng, Manners())


def _endless(seed: int, categories: tuple[str, ...] | None) -> Iterator[world.Problem]:
    """Problems of the seed's split, over and over: each round holds as many as its smallest cells allow."""
    for round_ in itertools.count():
        yield from itertools.islice(world.problems("seed", seed * 1000 + round_, categories), 5000)


def _batches(
    tokenizer: PreTrainedTokenizerFast, lessons: Iterator[Lesson], recipe: Recipe
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of sequences of similar length, in random order within each chunk of 64 batches."""
    rng = np.random.default_rng(recipe.seed + 2)
    while chunk := list(itertools.islice(lessons, 64 * recipe.batch_size)):
        encoded = sorted((_encode(tokenizer, lesson) for lesson in chunk), key=lambda pair: len(pair[0]) + len(pair[1]))
        groups = [encoded[i : i + recipe.batch_size] for i in range(0, len(encoded), recipe.batch_size)]
        for i in rng.permutation(len(groups)):
            if len(groups[i]) == recipe.batch_size:
                yield _collate(groups[i], tokenizer.pad_token_id)


def _encode(tokenizer: PreTrainedTokenizerFast, lesson: Lesson) -> tuple[list[int], list[int]]:
    prompt = tokenizer.apply_chat_template(lesson.messages, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    return prompt_ids, [*tokenizer.encode(lesson.output, add_special_tokens=False), tokenizer.eos_token_id]


def _collate(pairs: Sequence[tuple[list[int], list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    width = max(len(prompt) + len(output) for prompt, output in pairs)
    ids = torch.full((len(pairs), width), pad_id)
    labels = torch.full((len(pairs), width), -100)
    for row, (prompt, output) in enumerate(pairs):
        ids[row, : len(prompt) + len(output)] = torch.tensor(prompt + output)
        labels[row, len(prompt) : len(prompt) + len(output)] = torch.tensor(output)
    return {"input_ids": ids, "attention_mask": (ids != pad_id).long(), "labels": labels}
