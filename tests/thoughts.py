"""Outputs whose thoughts can be distinguished from their responses by their letters.

Thoughts are Greek and responses Cyrillic; markers are Latin. Text after a marker that breaks the format is Greek too:
what it is can't be known, so no user may see it. So any Greek letter visible to a user is a leak.
"""

import random
from dataclasses import dataclass

from prompts.thought import ThoughtPrompt
from tpo.models.thinking_template import TAGS

GREEK, CYRILLIC, SPACE = "αβγδεζηθ", "абвгдежз", " \n"


@dataclass(frozen=True)
class Told:
    """An output, and the part of it that a user may see."""

    output: str
    response: str


def markers_of(prompt: ThoughtPrompt) -> tuple[str, str]:
    """The markers that open a thought and a response of `prompt`, or empty texts."""
    if prompt.thinks_natively:
        return TAGS[0]
    return prompt.thought_marker or "", prompt.response_marker or ""


def marked(prompt: ThoughtPrompt, text: str) -> bool:
    """Whether a marker of `prompt` is in a text."""
    return any(marker in text for marker in markers_of(prompt) if marker)


def any_output(prompt: ThoughtPrompt, rng: random.Random) -> Told:
    """An output that follows the format, or breaks it in one of the possible ways, with pieces of markers in it."""
    thought, response = markers_of(prompt)
    markers = [marker for marker in (thought, response) if marker]

    def text(letters: str, pieces: bool = True) -> str:
        """Some letters, and now and then an incomplete marker."""
        parts = [
            rng.choice(markers)[: rng.randrange(1, 3)] if pieces and markers and rng.random() < 0.1 else letter
            for letter in rng.choices(letters + SPACE, k=rng.randrange(25))
        ]
        return "".join(parts)

    if not markers:
        answer = text(CYRILLIC)
        return Told(answer, answer.strip())
    answer = text(CYRILLIC)
    opening = rng.choice([thought, thought, ""]) + text(GREEK)
    after = "".join(rng.choice(markers) + text(GREEK) for _ in range(rng.choice([0, 0, 0, 1, 2])))
    if rng.random() < 0.25:
        return Told(opening + rng.choice(["", thought + text(GREEK)]), "")
    return Told(opening + response + answer + after, answer.strip())


def chunks_of(text: str, rng: random.Random) -> list[str]:
    """A text split into chunks at random places."""
    places = sorted(rng.sample(range(1, len(text)), k=rng.randrange(min(12, len(text))))) if len(text) > 1 else []
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
