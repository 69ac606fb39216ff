"""Few-shot prompts: show a model some instructions, ask for new ones, and parse those from its output.

The wording is in a template file that users can replace; the markers around an instruction are part of the format and
matched exactly. An instruction that isn't closed by its marker is dropped even if the model stopped by itself: what
follows may be cut off, or be the model's own remarks.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from prompts.template import compiled, read_template, shipped_template
from tpo.errors import InputError
from tpo.models.template_trial import template_fault
from tpo.records import Message

OPEN, CLOSE = "<task>", "</task>"
"""The markers around each instruction, shown or written."""
_CUT_LETTER = "\N{REPLACEMENT CHARACTER}"
_TRIED = ("An <example> & {{ more }} of it", 'Another "one",\nof two lines', "The third.")


class Fault(StrEnum):
    """Why a generated text isn't an instruction."""

    UNPARSABLE = "unparsable"
    """It holds no marker, or an instruction that isn't closed, is empty, or has a letter without all its bytes."""
    CUT_BY_LENGTH = "cut_by_length"
    """The token limit cut the instruction, or came before any."""


@dataclass(frozen=True)
class WrittenInstruction:
    """One generated instruction."""

    instruction: str
    """The instruction, without surrounding white space; empty if there is none."""
    fault: Fault | None = None
    """Why it isn't one, or None."""


@dataclass(frozen=True)
class InstructionPrompt:
    """A prompt for new instructions."""

    template: str
    """Jinja source of the user turn; it gets `examples` and the `count` of instructions to write."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the template and markers: equal fingerprints prompt and parse alike."""
        return hashlib.sha256(repr((self.template, OPEN, CLOSE)).encode()).hexdigest()

    def render(self, examples: Sequence[str], count: int) -> list[Message]:
        """The chat messages that show `examples`, as they are and never read as templates, and ask for `count` more."""
        content = compiled(self.template).render(examples=list(examples), count=count)
        return [Message(role="user", content=content)]

    def split(self, output: str, *, finished: bool) -> list[WrittenInstruction]:
        """The generated instructions, one entry for each that was begun; `finished` is False if the limit cut the
        output."""
        _, *begun = output.split(OPEN)
        if not begun:
            return [WrittenInstruction("", Fault.UNPARSABLE if finished else Fault.CUT_BY_LENGTH)]
        written = [_read_one(text, finished=True) for text in begun[:-1]]
        return [*written, _read_one(begun[-1], finished=finished)]


def can_be_shown(instruction: str) -> bool:
    """Whether an instruction can be an example: not if it contains a marker, which would end it early."""
    return bool(instruction.strip()) and OPEN not in instruction and CLOSE not in instruction


def load_instruction_prompt(path: Path | None) -> InstructionPrompt:
    """The shipped prompt or that of a file, checked.

    Raises `InputError` if the template is missing, doesn't parse or end, doesn't show each example once and in
    order between the markers, or never says how many instructions are wanted.
    """
    if path is None:
        return InstructionPrompt(_SHIPPED)
    prompt = InstructionPrompt(read_template(path, "few-shot"))
    if fault := template_fault((prompt.template,)):
        raise InputError(f"few-shot template {path} does not render: it {fault}")
    try:
        _check(prompt)
    except InputError as error:
        raise InputError(f"few-shot template {path} {error}") from error
    return prompt


def _check(prompt: InstructionPrompt) -> None:
    try:
        shown, others = (prompt.render(_TRIED, count)[0]["content"] for count in (1, 70_007))
    except Exception as error:  # a template can raise anything: 1 / 0, a range too long
        raise InputError(f"does not render: {error}") from error
    found = re.findall(rf"{OPEN}\s*(.+?)\s*{CLOSE}", shown, re.DOTALL)
    if found[-len(_TRIED) :] != list(_TRIED):
        raise InputError(
            f"shows {len(found)} tasks instead of {len(_TRIED)}, or changes their text: write {OPEN}, "
            f"{{{{ example }}}} and {CLOSE} within {{% for example in examples %}}, without filters"
        )
    if "70007" not in others.replace(",", ""):
        raise InputError("never says how many tasks are wanted: write {{ count }} where that belongs")


def _read_one(text: str, *, finished: bool) -> WrittenInstruction:
    instruction, closed, _ = text.partition(CLOSE)
    if closed and instruction.strip() and _CUT_LETTER not in instruction:
        return WrittenInstruction(instruction.strip())
    return WrittenInstruction("", Fault.UNPARSABLE if finished or closed else Fault.CUT_BY_LENGTH)


_SHIPPED = shipped_template("instructions.user")
