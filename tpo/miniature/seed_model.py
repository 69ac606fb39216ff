"""The miniature's seed model M_0: a Llama of under a million parameters, trained from scratch in three phases.

Copying drills come first, then textbook pages, then, at a falling learning rate, the manners of a model that answers
directly. Its folder has safetensors, tokenizer and chat template, which transformers and vLLM load like any other. The
same seed gives the same weights on the same machine.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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
from tpo.miniature.training import Progress, batches_of_similar_length, collate, descend, total_tokens

CONTEXT_TOKENS = 512
FORMAT_SHARES = {"direct": 0.25, "generic": 0.40, "specific": 0.15, "specific_draft": 0.05, "system": 0.15}
"""How often each prompt variant is used, in the second and third phases."""
TEXTBOOK_CATEGORIES = ("dial", "dial", "relay", "relay", "cups", "cups", "cups", "opposites", "recall", "largest")
"""Problems with steps are more frequent in the textbook: below 15 % of the pages a skill is never learned."""


@dataclass(frozen=True)
class Recipe:
    """How the seed is trained; the shipped one was made with the defaults."""

    seed: int = 0
    """Seed of problems, lessons, initial weights and batch order."""
    drills: int = 32_000
    """Number of copying drills, the first phase."""
    textbook_lessons: int = 200_000
    """Number of lessons in the second phase."""
    tuning_lessons: int = 48_000
    """Number of lessons in the third phase."""
    batch_size: int = 32
    """Sequences per step."""
    learning_rate: float = 1.5e-3
    """Learning rate of AdamW after 200 steps of warm-up; in the third phase it falls to 2 %."""

    @property
    def steps(self) -> int:
        """Optimizer steps of all phases."""
        return (self.drills + self.textbook_lessons + self.tuning_lessons) // self.batch_size


def train_seed_model(formats: Mapping[str, Format], folder: Path, recipe: Recipe, progress: Progress) -> None:
    """Trains the seed model and writes it to `folder` in bfloat16.

    Calls `progress(step, loss)` after every step.
    """
    torch.manual_seed(recipe.seed)
    tokenizer = _tokenizer(formats)
    model = LlamaForCausalLM(_architecture(tokenizer))
    tuning_steps = recipe.tuning_lessons // recipe.batch_size
    model.train()
    descend(
        model.parameters(),
        _batches(tokenizer, _lessons(formats, recipe), recipe),
        lambda batch: model(**batch).loss,
        learning_rate=recipe.learning_rate,
        course=lambda step: min(1.0, (step + 1) / 200, 0.02 + (recipe.steps - step) / tuning_steps),
        progress=progress,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


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
    return vocabulary.build_tokenizer(vocabulary.words_of(texts_of_the_world()), phrases, max_length=CONTEXT_TOKENS)


def texts_of_the_world() -> list[str]:
    """Texts with every word in problems, their work and our responses, with and without a leading space."""
    sample = [problem for problem, _ in zip(world.problems("seed", 0), range(6000), strict=False)]
    texts = [text for problem in sample for text in (problem.instruction, " " + problem.instruction)]
    texts += [f" {step.text}" for problem in sample for step in problem.steps]
    texts += [step.text for problem in sample for step in problem.steps]
    texts += [form.format(problem.reference) for problem in sample[:600] for form in RESPONSE_FORMS]
    texts += [" " + form.format(problem.reference) for problem in sample[:600] for form in RESPONSE_FORMS]
    texts += [form for word in world.WORDS for form in (word, " " + word)]
    return [*texts, *FILLERS, *(" " + filler for filler in FILLERS), "The user asks:", " The user asks:", "\n"]


def _lessons(formats: Mapping[str, Format], recipe: Recipe) -> Iterator[Lesson]:
    rng = np.random.default_rng(recipe.seed)
    names = list(FORMAT_SHARES)
    shares = list(FORMAT_SHARES.values())
    for _ in range(recipe.drills):
        yield copying_drill(formats["direct"], rng)
    for problem in itertools.islice(endless_problems(recipe.seed, TEXTBOOK_CATEGORIES), recipe.textbook_lessons):
        yield textbook_page(problem, formats[names[rng.choice(len(names), p=shares)]], rng)
    for problem in itertools.islice(endless_problems(recipe.seed + 1, None), recipe.tuning_lessons):
        yield tuned_answer(problem, formats[names[rng.choice(len(names), p=shares)]], rng, Manners())


def endless_problems(seed: int, categories: tuple[str, ...] | None) -> Iterator[world.Problem]:
    """Problems of the seed's split without end: rounds of up to 5,000 with new seeds, since small cells run dry."""
    for round_ in itertools.count():
        yield from itertools.islice(world.problems("seed", seed * 1000 + round_, categories), 5000)


def _batches(
    tokenizer: PreTrainedTokenizerFast, lessons: Iterator[Lesson], recipe: Recipe
) -> Iterator[dict[str, torch.Tensor]]:
    encoded = (_encode(tokenizer, lesson) for lesson in lessons)
    for group in batches_of_similar_length(encoded, recipe.batch_size, recipe.seed + 2, total_tokens):
        yield collate(group, tokenizer.pad_token_id)


def _encode(tokenizer: PreTrainedTokenizerFast, lesson: Lesson) -> tuple[list[int], list[int]]:
    prompt = tokenizer.apply_chat_template(lesson.messages, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    return prompt_ids, [*tokenizer.encode(lesson.output, add_special_tokens=False), tokenizer.eos_token_id]


def seed_model_with(tokenizer: PreTrainedTokenizerFast, seed_model: Path) -> LlamaForCausalLM:
    """The model in `seed_model` with another vocabulary, in float32, for further training.

    Rows of the embedding and the head are carried over by their tokens' texts; new ones start near the mean.
    """
    old_ids = AutoTokenizer.from_pretrained(seed_model, local_files_only=True).get_vocab()
    model = LlamaForCausalLM.from_pretrained(
        seed_model, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    old_rows = [
        layer.weight.detach().clone() for layer in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for old, layer in zip(old_rows, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True):
            layer.weight.copy_(old.mean(0) + 0.02 * torch.randn(len(tokenizer), old.shape[1]))
            for token, i in tokenizer.get_vocab().items():
                if token in old_ids:
                    layer.weight[i] = old[old_ids[token]]
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    return model
