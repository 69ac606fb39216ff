"""Thought prompts: ask a model to think before it responds, and split its output into thought and response.

A model thinks in words that a prompt asks for, between markers, or natively (`prompts.native`). A native thought that a
model writes although it was asked for another form, or for none, is cut off first: it is never part of a response.

The wording is in template files that users can replace; the markers are part of the format (2410.10630, Appendix A) and
matched exactly. The response begins after the *first* response marker. A second one inside the response is an error,
and not a later start: a model that learned to write the marker twice could otherwise hide text from one reader and not
from another.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from prompts.native import Division, NativeThoughts, OutputTokens, Use
from prompts.template import compiled, read_template, shipped_template
from tpo.config.data import PromptConfig
from tpo.errors import InputError
from tpo.models.template_trial import TRIAL_SECONDS, template_fault
from tpo.models.thinking_template import TAGS
from tpo.records import Message

if TYPE_CHECKING:
    from tpo.models.chat import ChatEncoder

NATIVE = "native"
"""The variant that has a model think in its own way."""


_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What tokens decode to that end within a character."""


class ParseError(StrEnum):
    """Why an output can't be split into a thought and a response."""

    CUT_BY_LENGTH = "cut_by_length"
    """Generation stopped at the token limit."""
    MISSING_RESPONSE_MARKER = "missing_response_marker"
    """The response marker, or what closes a native thought, is missing."""
    EMPTY_RESPONSE = "empty_response"
    """Only white space follows the response marker, or the native thought."""
    REPEATED_RESPONSE_MARKER = "repeated_response_marker"
    """The response contains the response marker, or what closes a native thought, again."""
    THOUGHT_MARKER_IN_RESPONSE = "thought_marker_in_response"
    """The response contains the thought marker, or opens another native thought."""
    NATIVE_THOUGHT = "native_thought"
    """The model also thought in its native way, although that was switched off."""


@dataclass(frozen=True)
class Parsed:
    """One output, split into thought and response."""

    thought: str
    """The native thought, and the text before the response marker without the thought marker; may be empty."""
    response: str
    """The text that the user sees; with an error, all that isn't a native thought, without markers."""
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
    """Text that opens the response; None for a direct prompt, whose whole output is the response."""
    prefill: str = ""
    """The beginning of the assistant's turn, which is part of the prompt."""
    native: NativeThoughts | Literal["unknown", "kept"] = "unknown"
    """How the model thinks natively (`for_model`). If that is unknown, well-known models' tags count at the beginning
    of an output; `kept` leaves native thoughts in the response, for methods that train them."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the templates and markers: equal fingerprints prompt and split alike."""
        parts = [self.user_template, self.system_template, self.thought_marker, self.response_marker]
        parts += ["native"] if self.thinks_natively else []
        parts += ["prefill", self.prefill] if self.prefill else []
        return hashlib.sha256(repr(tuple(parts)).encode()).hexdigest()

    @property
    def thinks_natively(self) -> bool:
        """Whether the model is asked to think in its own way."""
        return self.variant == NATIVE

    @property
    def thinks(self) -> bool:
        """Whether the model is asked to think at all."""
        return self.thinks_natively or self.response_marker is not None

    def render(self, instruction: str, earlier: Sequence[Message] = ()) -> list[Message]:
        """The chat messages that ask for `instruction`, which is inserted verbatim and never read as a template.

        The turns `earlier` in the conversation stay as they are. If this prompt has a system turn, a system turn among
        them is appended to it, since templates support only one.
        """
        user, before = self._filled(self.user_template, instruction), list(earlier)
        if self.system_template is not None:
            system = self._filled(self.system_template, instruction)
            if before and before[0]["role"] == "system":
                system = f"{system}\n\n{before.pop(0)['content']}"
            before.insert(0, Message(role="system", content=system))
        return [*before, Message(role="user", content=user)]

    def encode(self, encoder: "ChatEncoder", instruction: str, earlier: Sequence[Message] = ()) -> list[int]:
        """The tokens that ask a model for `instruction`, after the turns `earlier` in the conversation.

        Raises `InputError` if its chat template refuses the chat.
        """
        return self.encode_chat(encoder, self.render(instruction, earlier))

    def encode_chat(self, encoder: "ChatEncoder", messages: Sequence[Message]) -> list[int]:
        """The tokens of a chat that ends in a turn of this prompt; native thinking is on if the prompt asks for it."""
        return encoder.encode(messages, thinking=self.thinks_natively, prefill=self.prefill)

    def for_model(self, encoder: "ChatEncoder") -> "ThoughtPrompt":
        """The same prompt, for outputs of one model."""
        thinking, opened = encoder.thinking, False
        if thinking.kind == "none" or thinking.opening is None or thinking.closing is None:
            return dataclasses.replace(self, native="unknown")
        use: Use = "asked" if self.thinks_natively else "unwanted" if thinking.switch else "allowed"
        if use != "unwanted":
            begun_in_prefill = thinking.opening in self.prefill.rpartition(thinking.closing)[2]
            opened = thinking.kind == "prefilled" or begun_in_prefill
        form = thinking.heading or thinking.closing
        return dataclasses.replace(
            self,
            native=NativeThoughts(
                use,
                thinking.opening,
                form,
                encoder.tag_ids(thinking.opening),
                encoder.tag_ids(form),
                encoder.ending_ids(),
                encoder.tag_ids(thinking.closing) if thinking.heading else (),
                opened,
            ),
        )

    def keeping_native_thoughts(self) -> "ThoughtPrompt":
        """The same prompt, with a model's native thoughts as part of its responses."""
        return dataclasses.replace(self, native="kept")

    def split(self, output: str, *, finished: bool, tokens: OutputTokens | None = None) -> Parsed:
        """Thought and response of one output; `finished` is False if the token limit cut it.

        Native thoughts are found by the output's `tokens`, or without them by their text.
        """
        native, whole = self._native_in(output), Division(None, output)
        division = whole if native is None else native.divide(output, tokens)
        parsed = self._split_markers(division.rest, finished)
        if division.thought is not None:
            thought = "\n\n".join(filter(None, (division.thought, parsed.thought)))
            parsed = dataclasses.replace(parsed, thought=thought)
        if native is None or (error := self._native_error(native, division)) is None:
            return parsed
        return dataclasses.replace(parsed, error=error if finished else ParseError.CUT_BY_LENGTH)

    def shown(self, output: str, *, finished: bool, tokens: OutputTokens | None = None) -> Shown:
        """What a user may be shown of an output; of one that doesn't break the format, what `split` makes of it.

        Unlike `split`, which falls back on the whole output, this never takes a thought for a response: without a
        response marker, everything is thought, and a response ends before the next marker, since what follows that is
        unknown. With `finished` False (the output was cut by the limit or is still growing), an ending that may be the
        beginning of a marker is left out, so that the shown text only grows. One exception can't be foreseen: a model
        that is asked not to think, and closes a thought in the middle of its response.
        """
        markers = [marker for marker in (self.thought_marker, self.response_marker) if marker]
        native = self._native_in(output)
        held_back = list(markers)
        if native is not None:
            held_back += native.tags
        elif self.native == "unknown":
            held_back += [opening for opening, _ in TAGS]
        if not finished:
            output = output[: len(output) - begun(output, held_back)]
        division = Division(None, output) if native is None else native.divide(output, tokens)
        thought, rest = division.thought, division.rest
        if native is not None and native.use == "unwanted" and thought is not None:
            thought, rest = None, native.response_despite(output, division, tokens, finished=finished)
        if not finished and tokens is not None and not (division.repeated or division.reopened):
            rest = rest.rstrip(_UNFINISHED)
            rest = rest[: len(rest) - begun(rest, held_back)]
        if self.response_marker is None:
            return Shown(thought or "", rest.strip())
        before, _, response = rest.partition(self.response_marker)
        for marker in markers:
            response = response.partition(marker)[0]
        in_words = before.replace(self.thought_marker, "") if self.thought_marker else before
        return Shown("\n\n".join(filter(None, (thought, in_words.strip()))), response.strip())

    def responds(self, output: str, tokens: OutputTokens | None = None) -> bool:
        """Whether the response has begun in an output, be it with nothing yet."""
        native = self._native_in(output)
        division = Division(None, output) if native is None else native.divide(output, tokens)
        return division.closed and (self.response_marker is None or self.response_marker in division.rest)

    def prose(self) -> list[str]:
        """The constant pieces of text in this format: prose around the instruction, and markers."""
        slot = "\N{OBJECT REPLACEMENT CHARACTER}"
        pieces = [piece.rstrip(" ") for message in self.render(slot) for piece in message["content"].split(slot)]
        return [piece for piece in [*pieces, self.thought_marker, self.response_marker] if piece]

    def _filled(self, template: str, instruction: str) -> str:
        markers = {"thought_marker": self.thought_marker, "response_marker": self.response_marker}
        return compiled(template).render(instruction=instruction, **markers)

    def _native_in(self, output: str) -> NativeThoughts | None:
        """How native thoughts are written in an output; None if there are none to look for."""
        if isinstance(self.native, NativeThoughts):
            return self.native
        if self.native == "kept":
            return None
        start = output.lstrip()
        tags = next((tags for tags in TAGS if start.startswith(tags[0])), None)
        if self.thinks_natively:
            return NativeThoughts("asked", *(tags or TAGS[0]))
        return None if tags is None else NativeThoughts("allowed", *tags)

    def _native_error(self, native: NativeThoughts, division: Division) -> ParseError | None:
        """What is wrong with the native thought in an output, if there is one."""
        if native.use == "unwanted" or (self.native == "unknown" and not self.thinks):
            return None if division.thought is None else ParseError.NATIVE_THOUGHT
        if not division.closed:
            return ParseError.MISSING_RESPONSE_MARKER
        if division.repeated:
            return ParseError.REPEATED_RESPONSE_MARKER
        return ParseError.THOUGHT_MARKER_IN_RESPONSE if division.reopened else None

    def _split_markers(self, output: str, finished: bool) -> Parsed:
        """Thought and response by the markers alone."""
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
        thought_marker=config.thought_marker or shipped.thought_marker,
        response_marker=config.response_marker or shipped.response_marker,
        prefill=config.prefill,
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
            f"the templates of prompt {prompt.variant!r} contain the instruction {text.count(probe)} times verbatim, "
            "expected once: write {{ instruction }} where it belongs, without filters"
        )
    if prompt.response_marker is not None and prompt.response_marker not in text:
        raise InputError(
            f"the templates of prompt {prompt.variant!r} never mention the response marker "
            f"{prompt.response_marker!r}, which its outputs are split at: tell the model to write it, as "
            "{{ response_marker }} in prompt.user_template"
        )
    if prompt.response_marker is not None and prompt.response_marker in prompt.prefill:
        raise InputError(
            f"prompt.prefill holds the response marker {prompt.response_marker!r}, so outputs would have no thought: "
            "end it before the marker"
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
        ThoughtPrompt(NATIVE, shipped_template("bare.user")),
        ThoughtPrompt("direct", shipped_template("bare.user")),
    )
}
"""The shipped prompts by name: the paper's three, the draft's form of the specific one, native thinking, and none."""
