"""Which number of a classification model's outputs is a score.

`logit` is a model's only output. Of several, `logit(1)` takes one, `difference(1, 0)` one minus another, and
`probability(1)` the share of one, in which the others' size counts, too. Outputs are named by their index or by their
label in `id2label`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_FORM = re.compile(
    r"(?P<rule>logit|probability|difference)(?:\(\s*(?P<first>[^(),]+?)\s*(?:,\s*(?P<second>[^(),]+?)\s*)?\))?"
)


@dataclass(frozen=True)
class OutputScore:
    """A rule, with the names of the outputs that it reads."""

    rule: str
    """`logit`, `probability` or `difference`."""
    outputs: tuple[str, ...]
    """Indices or labels; none for the only output."""

    @classmethod
    def parse(cls, text: str) -> "OutputScore":
        """The rule that a text names; raises ValueError if it names none."""
        found = _FORM.fullmatch(text.strip())
        outputs = tuple(name for name in (found["first"], found["second"]) if name is not None) if found else ()
        expected = {"logit": (0, 1), "probability": (1,), "difference": (2,)}
        if found is None or len(outputs) not in expected[found["rule"]]:
            raise ValueError(
                f"{text!r} isn't a rule for a score: expected logit, logit(1), difference(1, 0) or probability(1), "
                "with an output's index or label in place of 1 and 0"
            )
        return cls(found["rule"], outputs)

    def places(self, count: int, labels: Mapping[int, str]) -> tuple[int, ...]:
        """The indices of its outputs in a model of `count` outputs with these labels.

        Raises ValueError if there is no such output, or if the rule doesn't say which of several.
        """
        if not self.outputs:
            if count != 1:
                raise ValueError(
                    f"has {count} outputs ({_shown(count, labels)}), and judge.score doesn't say what the score is: "
                    "set it to logit(…) of one of them, difference(…, …) or probability(…)"
                )
            return (0,)
        return tuple(self._place(name, count, labels) for name in self.outputs)

    def _place(self, name: str, count: int, labels: Mapping[int, str]) -> int:
        by_label = [place for place, label in labels.items() if label == name and place < count]
        if len(by_label) == 1:
            return by_label[0]
        if re.fullmatch("[0-9]{1,9}", name) and int(name) < count:
            return int(name)
        raise ValueError(f"has no output {name!r}, which judge.score names: it has {_shown(count, labels)}")

    def of(self, logits: Sequence[float], places: Sequence[int], *, independent: bool = False) -> float:
        """The score from all logits; `independent` outputs are probabilities by themselves (multi-label)."""
        if self.rule == "difference":
            return logits[places[0]] - logits[places[1]]
        if self.rule == "logit":
            return logits[places[0]]
        others = [0.0] if independent else [value for i, value in enumerate(logits) if i != places[0]]
        top = max(logits[places[0]], *others)
        parts = [math.exp(value - top) for value in (logits[places[0]], *others)]
        return parts[0] / sum(parts)


def _shown(count: int, labels: Mapping[int, str]) -> str:
    return ", ".join(f"{place}: {labels.get(place, f'LABEL_{place}')}" for place in range(min(count, 12)))
