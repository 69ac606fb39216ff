"""ArmoRM (2406.12845) as a judge: 19 attributes of a response, weighted by a gate that reads the prompt.

The published folder's own code is refused, and so is a folder whose tensors aren't exactly those of our module: with a
tensor more or less it is a different model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from judges.reward_model import ChatJudge
from tpo.config.judges import ArmoRMJudge
from tpo.config.resources import ClusterConfig, JudgeEngineConfig
from tpo.engines.inference.reward_reader import Chat, Load, Reader, Values
from tpo.errors import InputError
from tpo.models.armorm_format import ANSWER_HEADER, ATTRIBUTES, attribute_names, check_armorm_folder, gate_index


class ArmoRMScorer(ChatJudge):
    """ArmoRM in the published format."""

    @staticmethod
    def _loader() -> Load:
        return load_armorm_reader

    def _check(self) -> int:
        return check_armorm_folder(self._folder)

    @cached_property
    def _header(self) -> list[int]:
        return self._encoder.ids(ANSWER_HEADER, as_text=False)

    def _positions(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """The positions that the gate and the rewards read."""
        bos = self._encoder.tokenizer.bos_token_id
        if bos is None or token_ids[0] != bos or token_ids.count(bos) > 1:
            raise InputError(
                f"{self._folder} makes chats with {token_ids.count(bos)} BOS, expected one, at their start"
            )
        return gate_index(token_ids, self._header), len(token_ids) - 1

    def _detail(self, chat: Chat, values: Values) -> Mapping[str, object]:
        objectives = len(values) // 2
        rewards, gating = values[1 : 1 + objectives], values[1 + objectives :]
        rounded = [float(f"{value:.6g}") for value in rewards]
        return {
            "attributes": dict(zip(attribute_names(objectives), rounded, strict=True)),
            "gate": [float(f"{value:.6g}") for value in gating],
        }


def load_armorm_reader(folder: Path, dtype: str) -> Reader:
    """The model in `folder`; its values for a chat are score, rewards and gating, concatenated."""
    import torch

    from tpo.models.armorm import load_armorm

    model = load_armorm(folder, dtype)

    def heads(hidden: torch.Tensor) -> torch.Tensor:
        found = model.heads(gate=hidden[:, 0], last=hidden[:, 1])
        return torch.cat((found.score[:, None], found.rewards, found.gating), 1)

    return Reader(model, model.model, heads)


@dataclass(frozen=True)
class PublishedFigure:
    """A published figure, compared with ours."""

    name: str
    """Its name."""
    expected: float
    """As published."""
    found: float
    """As computed here."""
    tolerance: float
    """Largest difference explained by rounding."""

    @property
    def agrees(self) -> bool:
        """Whether the two are equal up to rounding."""
        return abs(self.found - self.expected) <= self.tolerance


@dataclass(frozen=True)
class JudgeCheck:
    """The published example, computed with a folder's model."""

    figures: tuple[PublishedFigure, ...]
    """Three coefficients and five rewards."""
    largest: tuple[str, ...]
    """The attributes of the three largest coefficients, as computed here."""

    @property
    def passed(self) -> bool:
        """Whether all figures agree, and the three largest coefficients are the published ones."""
        return self.largest == tuple(name for name, _ in _COEFFICIENTS) and all(f.agrees for f in self.figures)

    def lines(self) -> list[str]:
        """The check as text, one line per figure."""
        rows = [
            f"{figure.name:<50} expected {figure.expected:>9.5f}  found {figure.found:>9.5f}  "
            f"{'ok' if figure.agrees else f'differs by more than {figure.tolerance:g}'}"
            for figure in self.figures
        ]
        right = self.largest == tuple(name for name, _ in _COEFFICIENTS)
        return [*rows, f"largest coefficients: {', '.join(self.largest)}  {'ok' if right else 'differ'}"]


_PROMPT = 'What are some synonyms for the word "beautiful"?'
_RESPONSE = "Nicely, Beautifully, Handsome, Stunning, Wonderful, Gorgeous, Pretty, Stunning, Elegant"
_COEFFICIENTS = (
    ("code-complexity", 0.19922),
    ("helpsteer-verbosity", -0.10864),
    ("ultrafeedback-instruction_following", 0.07861),
)
_HELPSTEER = (2.78125, 2.859375, 3.484375, 1.3847656, 1.296875)
# Published in bfloat16 throughout, where numbers of this size are 0.001 (coefficients) and 0.02 (rewards × 5) apart.
_COEFFICIENT_TOLERANCE, _HELPSTEER_TOLERANCE = 0.01, 0.1


def judge_check(folder: Path) -> JudgeCheck:
    """Computes the example of ArmoRM's model card in bfloat16 and compares it with the published figures.

    Raises `InputError` if the folder isn't ArmoRM's, or doesn't have the published objectives.
    """
    check_armorm_folder(folder)
    config, engine = ArmoRMJudge(model=str(folder)), JudgeEngineConfig(dtype="bfloat16")
    chat = ArmoRMScorer(config, engine, ClusterConfig()).chat_of(_PROMPT, _RESPONSE)
    coefficients, rewards = _coefficients_and_rewards(folder, chat)
    if len(rewards) != len(ATTRIBUTES):
        raise InputError(f"{folder} has {len(rewards)} objectives, expected the {len(ATTRIBUTES)} that are published")
    found = dict(zip(ATTRIBUTES, coefficients, strict=True))
    figures = [
        PublishedFigure(f"coefficient of {name}", expected, found[name], _COEFFICIENT_TOLERANCE)
        for name, expected in _COEFFICIENTS
    ]
    figures += [
        PublishedFigure(f"{name}, on its scale", expected, reward * 5 - 0.5, _HELPSTEER_TOLERANCE)
        for name, expected, reward in zip(ATTRIBUTES, _HELPSTEER, rewards, strict=False)
    ]
    largest = sorted(found, key=lambda name: abs(found[name]), reverse=True)[:3]
    return JudgeCheck(tuple(figures), tuple(largest))


def _coefficients_and_rewards(folder: Path, chat: Chat) -> tuple[list[float], list[float]]:
    import torch

    from tpo.models.armorm import load_armorm

    model = load_armorm(folder, "bfloat16")
    token_ids = torch.tensor([chat.token_ids])
    with torch.inference_mode():
        found = model(token_ids, torch.ones_like(token_ids), torch.tensor([chat.positions[0]]))
    return found.coefficients[0].tolist(), found.rewards[0].tolist()
