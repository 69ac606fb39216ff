"""A model with a quarter million parameters that, shown eight instructions of the miniature world, writes new ones.

The shipped seed model can only answer: it doesn't follow a few-shot prompt. This one is trained in half a minute on
few-shot prompts of the world's instructions, so that the real engines can write real prompts on two cores.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prompts.instructions import CLOSE, OPEN, load_instruction_prompt
from tpo.miniature import vocabulary, world
from tpo.miniature.seed_model import texts_of_the_world
from tpo.miniature.training import collate, descend, falling
from tpo.models.chat import ChatEncoder

CATEGORIES = ("opposites", "largest", "recall")
"""The categories with the shortest instructions."""
SHOTS = 8
CONTEXT_TOKENS = 640
STEPS, BATCH = 150, 16


def train_tiny_generator(folder: Path) -> None:
    """Trains it into `folder`; the same weights each time on the same machine."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=3,  # of 32, the smallest that vLLM supports on a CPU
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.train()
    descend(
        model.parameters(),
        itertools.islice(_batches(ChatEncoder(folder), tokenizer), STEPS),
        lambda batch: model(**batch).loss,
        learning_rate=4e-3,
        course=falling(STEPS, warmup=20),
        progress=lambda step, loss: None,
    )
    model.save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    slot = "\N{OBJECT REPLACEMENT CHARACTER}"
    ((message),) = load_instruction_prompt(None).render([slot] * SHOTS, 1)
    phrases = dict.fromkeys([*message["content"].split(slot), f"{OPEN}\n", f"\n{CLOSE}"])
    return vocabulary.build_tokenizer(vocabulary.words_of(texts_of_the_world()), phrases, max_length=CONTEXT_TOKENS)


def _batches(encoder: ChatEncoder, tokenizer: PreTrainedTokenizerFast) -> Iterator[dict[str, torch.Tensor]]:
    """Few-shot prompts and what comes next, all of it to be learned: the examples are instructions too."""
    prompt, rng = load_instruction_prompt(None), np.random.default_rng(0)
    known = [p.instruction for p in itertools.islice(world.problems("seed", 0, CATEGORIES), 3000)]
    while True:
        batch = list[tuple[list[int], list[int]]]()
        for _ in range(BATCH):
            *shown, new = (known[i] for i in rng.choice(len(known), SHOTS + 1, replace=False))
            output = encoder.ids(f"{OPEN}\n{new}\n{CLOSE}", as_text=True)
            batch.append(([], [*encoder.encode(prompt.render(shown, 1)), *output, tokenizer.eos_token_id]))
        yield collate(batch, tokenizer.pad_token_id)
