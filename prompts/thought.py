"""Thought prompts: ask a model to think before it responds, and split its output into thought and response.

The wording is in template files that users can replace; the markers are part of the format (2410.10630, Appendix A) and
matched exactly. The response begins after the *first* response marker. A second one inside the response is an error,
and not a later start: a model that learned to write the marker twice could otherwise hide text from one reader and not
from another.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from prompts.template import compiled, read_template, shipped_template
from tpo.config.data import PromptConfig
from tpo.errors import InputError
from tpo.models.template_trial import TRIAL_SECONDS, template_fault
from tpo.records import Message


class ParseError(StrEnum):
    """Why an output can't be split into a thought and a response."""

    CUT_BY_LENGTH = "cut_by_length"
    """Generation stopped at the token limit."""
    MISSING_RESPONSE_MARKER = "missing_response_marker"
    """The response marker is missing."""
    EMPTY_RESPONSE = "empty_response"
    """Only white space follows the response marker."""
    REPEATED_RESPONSE_MARKER = "repeated_response_marker"
    """The response contains the response marker again."""
    THOUGHT_MARKER_IN_RESPONSE = "thought_marker_in_response"
    """The response contains the thought marker."""
    NATIVE_THOUGHT = "native_thought"
    """The model also thought in its native way, although that was switched off."""


@dataclass(frozen=True)
class Parsed:
    """One output, split into thought and response."""

    thought: str
    """The text before the response marker, without the thought marker; empty for a direct prompt."""
    response: str
    """The text that the user sees; with an error, the whole output without markers."""
    error: ParseError | None
    """Why the output breaks the format, or None."""


@dataclass(frozen=True)
class Shown:
    """The part of an output that users may see, even if it breaks the format or isn't finished."""

    thought: str
    """The text before the response marker, without thought markers: for those who may see thoughts."""
    response: str
    """The text between the response marker and the next marker of either kind: for everyone."""


@dataclass(frozen=True)
class ThoughtPrompt:
    """One way to ask for a response: templates, and the markers in its outputs."""

    variant: str
    """Name of the variant, a key of `VARIANTS`."""
    user_template: str
    """Jinja source of the user turn; it holds `{{ instruction }}`."""
    system_template: str | None = None
    """Jinja source of the system turn, or None for no system turn."""
    thought_marker: str | None = None
    """Text that opens the thought; None if the thought starts at once."""
    response_marker: str | None = None
    """Text that opens the response; None for a direct prompt, whose outputs are responses as they are."""
    native_tags: tuple[str, ...] = ()
    """The model's native tags around thoughts, opening tag first: a response never contains what is between them."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the templates and markers: equal fingerprints prompt and split alike."""
        parts = (self.user_template, self.system_template, self.thought_marker, self.response_marker)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def render(self, instruction: str) -> list[Message]:
        """The chat messages that ask for `instruction`, which is inserted as it is and never read as a template."""
        turns = [("system", self.system_template), ("user", self.user_template)]
        return [
            Message(role=role, content=compiled(source).render(instruction=instruction))
            for role, source in turns
            if source is not None
        ]

    def split(self, output: str, *, finished: bool) -> Parsed:
        """Thought and response of one output; `finished` is False if the token limit cut it."""
        if any(tag in output for tag in self.native_tags):
            shown = self.shown(output, finished=True)
            error = ParseError.NATIVE_THOUGHT if finished else ParseError.CUT_BY_LENGTH
            return Parsed(shown.thought, shown.response, error)
        if self.response_marker is None:
            response = output.strip()
            if not finished:
                return Parsed("", response, ParseError.CUT_BY_LENGTH)
            return Parsed("", response, None if response else ParseError.EMPTY_RESPONSE)
        before, marker, after = output.partition(self.response_marker)
        thought = before.replace(self.thought_marker, "") if self.thought_marker else before
        response = after.strip()
        if not finished:
            error = ParseError.CUT_BY_LENGTH
        elif not marker:
            error = ParseError.MISSING_RESPONSE_MARKER
        elif not response:
            error = ParseError.EMPTY_RESPONSE
        elif self.response_marker in response:
            error = ParseError.REPEATED_RESPONSE_MARKER
        elif self.thought_marker and self.thought_marker in response:
            error = ParseError.THOUGHT_MARKER_IN_RESPONSE
        else:
            return Parsed(thought.strip(), response, None)
        return Parsed(thought.strip(), self._without_markers(output), error)

    def shown(self, output: str, *, finished: bool) -> Shown:
        """What a user may be shown of an output; of one that doesn't break the format, what `split` makes of it.

        Unlike `split`, which falls back on the whole output, this never takes a thought for a response: without a
        response marker all is thought, and a response ends before the next marker, since nobody knows what follows it.
        With `finished` False, of an output that the limit cut or that is under way, an end that may be the beginning of
        a marker is left out, and so what is shown only grows while the output does.
        """
        markers = [marker for marker in (self.thought_marker, self.response_marker) if marker]
        if not finished:
            output = output[: len(output) - begun(output, [*markers, *self.native_tags])]
        output = self._without_native_thoughts(output)
        if self.response_marker is None:
            return Shown("", output.strip())
        before, _, response = output.partition(self.response_marker)
        for marker in markers:
            response = response.partition(marker)[0]
        thought = before.replace(self.thought_marker, "") if self.thought_marker else before
        return Shown(thought.strip(), response.strip())

    def without_native_thoughts(self, tags: tuple[str, ...]) -> "ThoughtPrompt":
        """The same prompt for a model with native thought `tags` (opening, closing); unchanged without tags."""
        return dataclasses.replace(self, native_tags=tags)

    def prose(self) -> list[str]:
        """The constant pieces of text in this format: prose around the instruction, and markers."""
        slot = "\N{OBJECT REPLACEMENT CHARACTER}"
        pieces = [piece.rstrip(" ") for message in self.render(slot) for piece in message["content"].split(slot)]
        return [piece for piece in [*pieces, self.thought_marker, self.response_marker] if piece]

    def _without_native_thoughts(self, output: str) -> str:
        """An output without its leading native block, up to the next tag: what follows that is a thought, or
        unknown."""
        if not self.native_tags:
            return output
        opening, closing = self.native_tags[0], self.native_tags[-1]
        if output.lstrip().startswith(opening):
            output = output.partition(closing)[2]
        for tag in self.native_tags:
            output = output.partition(tag)[0]
        return output

    def _without_markers(self, output: str) -> str:
        for marker in (self.thought_marker, self.response_marker):
            if marker:
                output = output.replace(marker, "")
        return output.strip()


def begun(text: str, needles: Iterable[str]) -> int:
    """Number of characters at the end of a text that may be the beginning of one of the needles."""
    return max((n for needle in needles for n in range(1, len(needle)) if text.endswith(needle[:n])), default=0)


def load_prompt(config: PromptConfig, *, trial_seconds: int = TRIAL_SECONDS) -> ThoughtPrompt:
    """The prompt for a config, with its template files checked in `trial_seconds` of a CPU.

    Raises `InputError` if a template is missing, doesn't parse or end, doesn't contain the instruction exactly once, or
    never mentions the response marker.
    """
    shipped = VARIANTS[config.variant]
    own = {path: read_template(path, "prompt") for path in (config.user_template, config.system_template) if path}
    if own and (fault := template_fault(tuple(own.values()), cpu_seconds=trial_seconds)):
        raise InputError(f"a template of prompt {config.variant!r} does not render: it {fault}")
    prompt = ThoughtPrompt(
        variant=config.variant,
        user_template=own[config.user_template] if config.user_template else shipped.user_template,
        system_template=own[config.system_template] if config.system_template else shipped.system_template,
        thought_marker=shipped.thought_marker,
        response_marker=shipped.response_marker,
    )
    _check(prompt)
    return prompt


def _check(prompt: ThoughtPrompt) -> None:
    probe = 'An <instruction> & {{ more }} "here"'
    try:
        text = "\n".join(message["content"] for message in prompt.render(probe))
    except Exception as error:  # A template can raise anything: 1 / 0, a range too long.
        raise InputError(f"a template of prompt {prompt.variant!r} does not render: {error}") from error
    if text.count(probe) != 1:
        raise InputError(
            f"the templates of prompt {prompt.variant!r} hold the instruction {text.count(probe)} times as it is, "
            "expected once: write {{ instruction }} where it belongs, without filters"
        )
    if prompt.response_marker is not None and prompt.response_marker not in text:
        raise InputError(
            f"the templates of prompt {prompt.variant!r} never mention the response marker "
            f"{prompt.response_marker!r}, which its outputs are split at: tell the model to write it"
        )


_THOUGHT_MARKER = "Here is my thought process:"
_RESPONSE_MARKER = "Here is my response:"

VARIANTS: Mapping[str, ThoughtPrompt] = {
    prompt.variant: prompt
    for prompt in (
        ThoughtPrompt("generic", shipped_template("generic.user"), None, _THOUGHT_MARKER, _RESPONSE_MARKER),
        ThoughtPrompt("specific", shipped_template("specific.user"), None, None, "<R>"),
        ThoughtPrompt(
            "specific_draft", shipped_template("specific_draft.user"), None, "<internal thought>", "<response>"
        ),
        ThoughtPrompt(
            "system",
            shipped_template("bare.user"),
            shipped_template("system.system"),
            _THOUGHT_MARKER,
            _RESPONSE_MARKER,
        ),
        ThoughtPrompt("direct", shipped_template("bare.user")),
    )
}
"""The shipped prompts by name: the paper's three, the draft's form of the specific one, and none at all."""
