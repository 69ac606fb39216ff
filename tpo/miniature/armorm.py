"""The miniature's ArmoRM (2406.12845): 19 rewards and a gate that weighs them, on the seed's backbone.

Trained as published, in two phases: the rewards by regression on attributes, then the gate alone on preferences under
the Bradley-Terry model, so that differences of scores are log-odds, in nats. Before the second phase each attribute is
decorrelated from verbosity. Unlike the published model's, the small backbone is trained too, in the first phase, and
there keeps learning to say right answers, through a head that is then discarded: from the attributes alone it couldn't
learn to reward right answers. The rewards are read at the last token in a single pass, so they can only guess at
answers that take the seed several written steps.

Its folder is in the published format.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import LlamaConfig, PreTrainedTokenizerFast

from tpo.miniature import vocabulary
from tpo.miniature.opinions import (
    LONGER_BY_CHARS,
    VERBOSITY,
    Duel,
    Mix,
    RatedResponse,
    Worth,
    attributes,
    duel,
)
from tpo.miniature.seed_model import CONTEXT_TOKENS, endless_problems, seed_model_with, texts_of_the_world
from tpo.miniature.training import Progress, batches_of_similar_length, descend, falling
from tpo.miniature.world import Problem
from tpo.models.armorm_format import ATTRIBUTES

CATEGORIES = ("dial", "relay", "cups", "recall", "recall", "opposites", "largest")
"""Categories of the duels: `recall` more often, since a single pass can learn it, but slowly."""
MIX = Mix(unequal=0.58, equal=0.24, attacked=0.16)
_SLOT = "\N{OBJECT REPLACEMENT CHARACTER}"


class ArmoRMParts(Protocol):
    """ArmoRM's parts under their published names, as in `tpo.models.armorm.ArmoRM`."""

    model: nn.Module
    regression_layer: nn.Linear
    reward_transform_matrix: Tensor
    gating: nn.Module

    def heads(self, last: Tensor, gate: Tensor) -> Any: ...


@dataclass(frozen=True)
class Architecture:
    """How to create and save an ArmoRM."""

    make: Callable[[LlamaConfig], Any]
    """Makes a model with random weights, a `ArmoRMParts`."""
    save: Callable[[Any, Path], None]
    """Writes weights and config to a folder."""


@dataclass(frozen=True)
class ArmoRMRecipe:
    """How the small ArmoRM is trained; the shipped one was made with the defaults."""

    seed: int = 0
    """Seed of problems, duels, batch order and new weights."""
    duels: int = 84_000
    """Number of duels in the first phase, two chats each."""
    batch_size: int = 16
    """Duels per step."""
    learning_rate: float = 1.2e-3
    """Learning rate of AdamW in the first phase, after 100 steps of warm-up; it decays linearly."""
    answer_weight: float = 0.05
    """Loss weight of saying right answers, relative to the mean squared error of the rewards."""
    gate_duels: int = 6_000
    """Number of duels in the second phase; the backbone reads each once."""
    gate_steps: int = 1_000
    """Steps of the second phase, 256 duels each."""
    gate_learning_rate: float = 3e-3
    """Learning rate of the second phase, with the same course."""
    longer_logit: float = 0.3
    """Log-odds that the clearly longer of two equals is preferred."""

    @property
    def reward_steps(self) -> int:
        """Optimizer steps of the first phase."""
        return self.duels // self.batch_size

    @property
    def steps(self) -> int:
        """Optimizer steps of both phases."""
        return self.reward_steps + self.gate_steps


@dataclass(frozen=True)
class _Chat:
    """One chat to rate."""

    prompt: list[int]
    """Tokens up to the response."""
    response: list[int]
    """Tokens of the response, the end of turn included."""
    targets: list[float]
    """Its attributes."""
    right: bool
    """Whether the response is a right answer, which the model learns to say."""


@dataclass(frozen=True)
class _Batch:
    """Padded chats."""

    ids: Tensor
    """[B, L]"""
    mask: Tensor
    """1 for tokens, 0 for padding; [B, L]."""
    last: Tensor
    """Index of the last token; [B]."""
    gate: Tensor
    """Index at which the gate reads; [B]."""
    targets: Tensor
    """Attributes; [B, 19]."""
    right_ids: Tensor
    """Tokens of right responses, -100 elsewhere; [B, L]."""


def train_armorm(
    seed_model: Path, architecture: Architecture, folder: Path, recipe: ArmoRMRecipe, progress: Progress
) -> None:
    """Trains the small ArmoRM from the model in `seed_model` and writes it to `folder`."""
    torch.manual_seed(recipe.seed)
    words = vocabulary.words_of([*texts_of_the_world(), "user", "assistant", "\n\n"])
    tokenizer = vocabulary.build_tokenizer(words, [], max_length=CONTEXT_TOKENS, chat=vocabulary.LLAMA_3_CHAT)
    seed = seed_model_with(tokenizer, seed_model)
    seed.config.update(
        {"num_objectives": len(ATTRIBUTES), "gating_temperature": 10, "gating_hidden_dim": 64, "gating_n_hidden": 3}
    )
    scorer: ArmoRMParts = architecture.make(seed.config)
    scorer.model.load_state_dict(seed.model.state_dict())
    reader = _Reader(tokenizer)
    duels = _duels(recipe.seed)
    _train_rewards(scorer, seed.lm_head, reader, duels, recipe, progress)
    _train_gate(scorer, reader, list(itertools.islice(duels, recipe.gate_duels)), recipe, progress)
    architecture.save(scorer, folder)
    tokenizer.save_pretrained(folder)


class _Reader:
    """Encodes chats as token ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer: Any = tokenizer
        turns = [{"role": "user", "content": _SLOT}, {"role": "assistant", "content": _SLOT}]
        pieces = tokenizer.apply_chat_template(turns, tokenize=False).split(_SLOT)
        self._before, self._between, self._after = (tokenizer.encode(p, add_special_tokens=False) for p in pieces)

    def chat(self, problem: Problem, candidate: RatedResponse) -> _Chat:
        """A problem and its response."""
        return _Chat(
            prompt=[*self._before, *self._plain(problem.instruction), *self._between],
            response=[*self._plain(candidate.text.strip()), *self._after],
            targets=attributes(problem, candidate),
            right=candidate.standing == Worth.RIGHT,
        )

    def batch(self, chats: Sequence[_Chat]) -> _Batch:
        """Chats, right-padded."""
        rows = [torch.tensor(chat.prompt + chat.response) for chat in chats]
        right_ids = [
            torch.tensor([-100] * len(chat.prompt) + (chat.response if chat.right else [-100] * len(chat.response)))
            for chat in chats
        ]
        lengths = torch.tensor([len(row) for row in rows])
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._tokenizer.pad_token_id)
        return _Batch(
            ids=ids,
            mask=(torch.arange(ids.shape[1]) < lengths[:, None]).long(),
            last=lengths - 1,
            gate=torch.tensor([len(chat.prompt) - len(self._between) for chat in chats]),
            targets=torch.tensor([chat.targets for chat in chats]),
            right_ids=nn.utils.rnn.pad_sequence(right_ids, batch_first=True, padding_value=-100),
        )

    def _plain(self, text: str) -> list[int]:
        """Token ids of untrusted text: control tokens in it are encoded as plain text."""
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def _duels(seed: int) -> Iterator[Duel]:
    rng = np.random.default_rng(seed)
    for problem in endless_problems(seed, CATEGORIES):
        yield duel(problem, rng, MIX)


def _train_rewards(
    scorer: ArmoRMParts,
    speaker: nn.Module,
    reader: _Reader,
    duels: Iterator[Duel],
    recipe: ArmoRMRecipe,
    progress: Progress,
) -> None:
    """The first phase: trains backbone and regression on the attributes and on saying right answers."""
    pairs = ([reader.chat(f.problem, candidate) for candidate in (f.first, f.second)] for f in duels)
    batches = batches_of_similar_length(pairs, recipe.batch_size, recipe.seed + 2, _longest)

    def loss_of(pairs: list[list[_Chat]]) -> Tensor:
        batch = reader.batch([chat for pair in pairs for chat in pair])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = scorer.model(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state.float()
        rewards = scorer.regression_layer(hidden[torch.arange(len(hidden)), batch.last])
        spoken = batch.right_ids[:, 1:] != -100
        answers = cross_entropy(speaker(hidden[:, :-1][spoken]), batch.right_ids[:, 1:][spoken], reduction="sum")
        return mse_loss(rewards, batch.targets) + recipe.answer_weight * answers / max(1, int(spoken.sum()))

    descend(
        [*scorer.model.parameters(), *scorer.regression_layer.parameters(), *speaker.parameters()],
        itertools.islice(batches, recipe.reward_steps),
        loss_of,
        learning_rate=recipe.learning_rate,
        course=falling(recipe.reward_steps),
        progress=progress,
    )


def _longest(pair: list[_Chat]) -> int:
    return max(len(chat.prompt) + len(chat.response) for chat in pair)


def _train_gate(
    scorer: ArmoRMParts, reader: _Reader, duels: list[Duel], recipe: ArmoRMRecipe, progress: Progress
) -> None:
    """The second phase: takes the value of length out, then trains the gate on preferences, all else frozen."""
    last, gate = _read(scorer, reader, duels)
    with torch.no_grad():
        scorer.reward_transform_matrix[VERBOSITY] -= _penalties(scorer.regression_layer(last).flatten(0, 1))
    preferred = torch.tensor([_preference(fought, recipe.longer_logit) for fought in duels])
    rng = np.random.default_rng(recipe.seed + 3)

    def loss_of(rows: Tensor) -> Tensor:
        score = scorer.heads(last[rows], gate[rows]).score
        return binary_cross_entropy_with_logits(score[:, 0] - score[:, 1], preferred[rows])

    descend(
        scorer.gating.parameters(),
        (torch.from_numpy(rng.integers(len(duels), size=256)) for _ in range(recipe.gate_steps)),
        loss_of,
        learning_rate=recipe.gate_learning_rate,
        course=falling(recipe.gate_steps),
        progress=lambda step, loss: progress(recipe.reward_steps + step, loss),
    )


def _penalties(rewards: Tensor) -> Tensor:
    """Multiple of verbosity to subtract from each attribute to decorrelate them; [19] from [N, 19]."""
    centred = rewards - rewards.mean(0)
    verbosity = centred[:, VERBOSITY]
    return (centred * verbosity[:, None]).mean(0) / verbosity.square().mean()


def _preference(fought: Duel, longer_logit: float) -> float:
    """Probability that the first response is preferred."""
    if fought.first.standing != fought.second.standing:
        return float(fought.first_is_better)
    longer = len(fought.first.text) - len(fought.second.text)
    return float(1 / (1 + np.exp(-longer_logit * np.sign(longer) * (abs(longer) >= LONGER_BY_CHARS))))


@torch.no_grad()
def _read(scorer: ArmoRMParts, reader: _Reader, duels: list[Duel]) -> tuple[Tensor, Tensor]:
    """Hidden states of each duel's two chats at the positions of the rewards and of the gate; [N, 2, hidden] each."""
    scorer.model.eval()
    last, gate = [], []
    for start in range(0, len(duels), 32):
        some = duels[start : start + 32]
        batch = reader.batch([reader.chat(f.problem, candidate) for f in some for candidate in (f.first, f.second)])
        hidden = scorer.model(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        row = torch.arange(len(hidden))
        last.append(hidden[row, batch.last].unflatten(0, (-1, 2)))
        gate.append(hidden[row, batch.gate].unflatten(0, (-1, 2)))
    return torch.cat(last), torch.cat(gate)
