"""A seed model that thinks natively: the miniature's M_0, taught `<think>` blocks and a switch for them.

Asked without a switch or with `enable_thinking`, it opens a block itself and writes the same thoughts, good and bad,
that M_0 writes between markers. With `enable_thinking=false` the template puts an empty block into the prompt, as
Qwen3's does, and the model responds at once. So it is of the kind `hybrid` (docs/models.md). The same seed gives the
same weights on the same machine.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from tpo.miniature import vocabulary
from tpo.miniature.lessons import Manners, tuned_answer
from tpo.miniature.seed_model import CONTEXT_TOKENS, endless_problems, seed_model_with, texts_of_the_world
from tpo.miniature.training import Progress, batches_of_similar_length, collate, descend, falling, total_tokens
from tpo.records import Message

OPENING, CLOSING = "<think>", "</think>"
CHAT = vocabulary.ChatStyle(
    bos="<|begin|>",
    eos="<|end|>",
    pad="<|pad|>",
    control=("<|system|>", "<|user|>", "<|assistant|>"),
    template=(
        "{{ bos_token }}{% for message in messages %}"
        "{% set content = message['content'] %}"
        "{% if message['role'] == 'assistant' and '</think>' in content %}"
        "{% set content = content.split('</think>')[-1].lstrip() %}{% endif %}"
        "{{ '<|' + message['role'] + '|>' + content }}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}"
        "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}{% endif %}"
    ),
)


@dataclass(frozen=True)
class NativeRecipe:
    """How the model is trained from M_0; the defaults made the shipped one."""

    seed: int = 0
    """Seed of problems, lessons and batch order."""
    lessons: int = 32_000
    """Lessons, half of them with thinking switched on."""
    batch_size: int = 32
    """Sequences per step."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW after 100 steps of warm-up; it decays to 2 %."""

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.lessons // self.batch_size


class _Blocks:
    """The layout of an output with a native thought, and of one without."""

    def __init__(self, *, thinking: bool) -> None:
        self.thought_marker: str | None = OPENING if thinking else None
        self.response_marker: str | None = CLOSING if thinking else None

    def render(self, instruction: str) -> list[Message]:
        return [Message(role="user", content=instruction)]

    def prose(self) -> list[str]:
        return []


def train_native_model(seed_model: Path, folder: Path, recipe: NativeRecipe, progress: Progress) -> None:
    """Trains the model from the seed model in `seed_model` and writes it to `folder` in bfloat16.

    `progress(step, loss)` is called after every step.
    """
    import torch

    torch.manual_seed(recipe.seed)
    words = vocabulary.words_of(texts_of_the_world())
    tokenizer = vocabulary.build_tokenizer(words, [OPENING, CLOSING], max_length=CONTEXT_TOKENS, chat=CHAT)
    model = seed_model_with(tokenizer, seed_model)
    model.train()
    batches = batches_of_similar_length(_lessons(tokenizer, recipe), recipe.batch_size, recipe.seed + 2, total_tokens)
    descend(
        model.parameters(),
        (collate(batch, tokenizer.pad_token_id) for batch in itertools.islice(batches, recipe.steps)),
        lambda batch: model(**batch).loss,
        learning_rate=recipe.learning_rate,
        course=falling(recipe.steps),
        progress=progress,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _lessons(tokenizer: PreTrainedTokenizerFast, recipe: NativeRecipe) -> Iterator[tuple[list[int], list[int]]]:
    rng = np.random.default_rng(recipe.seed)
    for problem in endless_problems(recipe.seed + 1, None):
        thinking = bool(rng.random() < 0.5)
        lesson = tuned_answer(problem, _Blocks(thinking=thinking), rng, Manners())
        prompt = tokenizer.apply_chat_template(
            lesson.messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        output = tokenizer.encode(lesson.output, add_special_tokens=False)
        yield tokenizer.encode(prompt, add_special_tokens=False), [*output, tokenizer.eos_token_id]
