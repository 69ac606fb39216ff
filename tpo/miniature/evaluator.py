"""The miniature's evaluator: a small language model that compares two responses (2408.02666), trained from the seed.

Its folder has safetensors, tokenizer and chat template, in bfloat16, 0.9 M parameters.

It writes out the work and the answer before it compares: the seed already has that skill, and a model of this size
can't find an answer of several steps in any other way. Some of its lessons ask for the verdict alone; there it can only
guess at such answers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from tpo.miniature import vocabulary
from tpo.miniature.opinions import JUDGE_WORDS, Mix, duel, explanation
from tpo.miniature.seed_model import CONTEXT_TOKENS, endless_problems, seed_model_with, texts_of_the_world
from tpo.miniature.training import Progress, Pupil
from tpo.models.chat import ChatEncoder
from tpo.records import Message

CATEGORIES = (
    *("dial", "dial", "relay", "cups", "cups"),
    *("opposites", "opposites", "opposites", "recall", "recall", "largest"),
)
"""Categories of the duels: the seed already knows the work; answers of several words take longest to compare."""
HARDENING = Mix(unequal=0.35, equal=0.22, attacked=0.42, long=0.7, taste="fuller")
"""Duels of the second phase."""
_SLOT = "\N{OBJECT REPLACEMENT CHARACTER}"


_DECIDING = ("ĠA", "ĠB", "Ġboth", "Ġneither", "Ġnothing")
"""Words that decide, as the tokenizer spells them."""


class VerdictFormat(Protocol):
    """A prompt that asks which of two responses is better, such as `prompts.verdict.VerdictPrompt`."""

    def render(self, instruction: str, first: str, second: str) -> list[Message]: ...
    def prose(self) -> list[str]: ...


@dataclass(frozen=True)
class Verdicts:
    """How verdicts are requested and given."""

    cot: VerdictFormat
    """Asks for an explanation first."""
    label: VerdictFormat
    """Asks for the verdict alone."""
    labels: tuple[str, str]
    """Labels for the response shown first, and for the other one."""

    def phrases(self) -> list[str]:
        """Fixed pieces of prompts and verdicts, each of which is one token."""
        return [piece for piece in dict.fromkeys([*self.cot.prose(), *self.label.prose(), *self.labels]) if piece]


@dataclass(frozen=True)
class EvaluatorRecipe:
    """How the evaluator is trained; the shipped one was made with the defaults."""

    seed: int = 0
    """Seed of problems, duels, batch order and new rows."""
    lessons: int = 90_000
    """Number of judgments in the first phase."""
    label_share: float = 0.22
    """Share of the lessons that ask for the verdict alone."""
    deciding_weight: float = 4.0
    """Loss weight of the few tokens that decide; all others have 1."""
    batch_size: int = 32
    """Sequences per step."""
    learning_rate: float = 1.2e-3
    """Learning rate of AdamW after 100 steps of warm-up; it decays linearly."""
    hardening_lessons: int = 16_000
    """Number of judgments in the second phase, many of them of attacks, most of these long."""
    hardening_learning_rate: float = 5e-4
    """Learning rate of the second phase, with the same course."""

    @property
    def first_steps(self) -> int:
        """Optimizer steps of the first phase."""
        return self.lessons // self.batch_size

    @property
    def steps(self) -> int:
        """Optimizer steps of both phases."""
        return self.first_steps + self.hardening_lessons // self.batch_size


def train_evaluator(
    seed_model: Path, verdicts: Verdicts, folder: Path, recipe: EvaluatorRecipe, progress: Progress
) -> None:
    """Trains the evaluator from the model in `seed_model` and writes it to `folder`."""
    torch.manual_seed(recipe.seed)
    words = vocabulary.words_of([*texts_of_the_world(), JUDGE_WORDS, f" {JUDGE_WORDS}"])
    tokenizer = vocabulary.build_tokenizer(words, verdicts.phrases(), max_length=CONTEXT_TOKENS)
    tokenizer.save_pretrained(folder)
    model = seed_model_with(tokenizer, seed_model)
    weights = torch.ones(len(tokenizer))
    weights[tokenizer.convert_tokens_to_ids([*verdicts.labels, *_DECIDING])] = recipe.deciding_weight
    pupil = Pupil(model, tokenizer, weights, recipe.batch_size)
    first = _lessons(folder, verdicts, recipe, Mix(), recipe.seed)
    pupil.learn(first, recipe.first_steps, recipe.learning_rate, recipe.seed + 2, progress)
    seed = recipe.seed + 1000
    # Long texts, in which an evaluator forgets who said what, and a taste that can be satisfied.
    pupil.learn(
        _lessons(folder, verdicts, recipe, HARDENING, seed),
        recipe.hardening_lessons // recipe.batch_size,
        recipe.hardening_learning_rate,
        seed + 2,
        lambda step, loss: progress(recipe.first_steps + step, loss),
    )
    model.to(torch.bfloat16).save_pretrained(folder)


def _lessons(
    folder: Path, verdicts: Verdicts, recipe: EvaluatorRecipe, mix: Mix, seed: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Prompts and judgments as token ids, without end."""
    rng = np.random.default_rng(seed)
    encoder = ChatEncoder(folder)
    cot, label = PromptEncoder(encoder, verdicts.cot), PromptEncoder(encoder, verdicts.label)
    for problem in endless_problems(seed, CATEGORIES):
        fought = duel(problem, rng, mix)
        alone = rng.random() < recipe.label_share
        verdict = verdicts.labels[0 if fought.first_is_better else 1]
        output = verdict if alone else f"{explanation(fought)} {verdict}"
        prompt = (label if alone else cot).encode(problem.instruction, fought.first.text, fought.second.text)
        yield prompt, [*encoder.tokenizer.encode(output, add_special_tokens=False), encoder.tokenizer.eos_token_id]


class PromptEncoder:
    """Encodes verdict prompts, mostly by joining encoded pieces, which saves a sixth of the training time.

    Fixed pieces are single tokens, so nothing merges across a seam. A text with a square bracket may be a forged part
    of the prompt and is left to the format itself.
    """

    def __init__(self, encoder: ChatEncoder, format_: VerdictFormat) -> None:
        self._encoder = encoder
        self._tokenizer: Any = encoder.tokenizer
        self._format = format_
        slots = self._tokenizer.apply_chat_template(
            format_.render(_SLOT, _SLOT, _SLOT), tokenize=False, add_generation_prompt=True
        )
        self._prose = [self._tokenizer.encode(piece, add_special_tokens=False) for piece in slots.split(_SLOT)]

    def encode(self, instruction: str, first: str, second: str) -> list[int]:
        """Token ids of the chat, ending with the generation prompt."""
        texts = (instruction, first, second)
        if any("[" in text for text in texts):
            return self._encoder.encode(self._format.render(*texts))
        ids = list(self._prose[0])
        for text, after in zip(texts, self._prose[1:], strict=True):
            ids += self._tokenizer(text.strip(), add_special_tokens=False, split_special_tokens=True)["input_ids"]
            ids += after
        return ids
