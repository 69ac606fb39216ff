"""Splits this model's outputs into thought and response; for vLLM also a reasoning parser.

    vllm serve <folder> --reasoning-parser thought --reasoning-parser-plugin <folder>/parsers/thought_parser.py

It needs nothing but Python: `split(output)` gives the thought and the response of an output. Text that may belong to a
thought is never part of the response: without a response marker there is no response, and a response ends before the
next marker. vLLM's parser does the same to each chunk of a stream. It tells vLLM that the reasoning never ends, because
a model can write a marker and think again at any time; so vLLM can't constrain a response, and requests with
`response_format` are refused.
"""

import sys
from typing import Any

# What `tpo publish` sets for the model.
THOUGHT_MARKER: str | None = "Here is my thought process:"
RESPONSE_MARKER: str | None = "Here is my response:"
NATIVE_TAGS: tuple[str, str] | None = None
NATIVE_UNWANTED: bool = False
NATIVE_OPENED: bool = False

KNOWN_TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought", "<channel|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
"""Tags around native thoughts, for a model that writes some although its chat template has none."""


def split(output: str, *, finished: bool = True) -> tuple[str, str]:
    """The thought and the response in an output; while it isn't `finished`, those that later text can't take back."""
    tags = NATIVE_TAGS or next((tags for tags in KNOWN_TAGS if output.lstrip().startswith(tags[0])), None)
    markers = [marker for marker in (THOUGHT_MARKER, RESPONSE_MARKER) if marker]
    if not finished:
        output = output[: len(output) - _begun(output, [*markers, *(tags or [opening for opening, _ in KNOWN_TAGS])])]
    thought, rest = ("", output) if tags is None else _without_native_thought(output, *tags, finished)
    if RESPONSE_MARKER is None:
        return thought, rest.strip()
    before, _, response = rest.partition(RESPONSE_MARKER)
    for marker in markers:
        response = response.partition(marker)[0]
    in_words = before.replace(THOUGHT_MARKER, "") if THOUGHT_MARKER else before
    return "\n\n".join(filter(None, (thought, in_words.strip()))), response.strip()


def _without_native_thought(output: str, opening: str, closing: str, finished: bool) -> tuple[str, str]:
    """A native thought, and what follows it up to the next tag."""
    before, closed, rest = output.partition(closing)
    if not closed and not NATIVE_OPENED and opening not in output:
        return "", output
    thought = before.replace(opening, "", 1).strip()
    rest = rest[: min((at for tag in (opening, closing) if (at := rest.find(tag)) >= 0), default=len(rest))]
    if not NATIVE_UNWANTED or NATIVE_TAGS is None:
        return thought, rest
    # The prompt asks for no thought, so text before a thought in the middle may be part of one as well.
    ahead = output[: min(at for tag in (opening, closing) if (at := output.find(tag)) >= 0)]
    return "", ("" if finished else ahead) if ahead.strip() else rest


def _begun(text: str, needles: list[str]) -> int:
    """Number of characters at the end of a text that may be the beginning of one of the needles."""
    return max((n for needle in needles for n in range(1, len(needle)) if text.endswith(needle[:n])), default=0)


def _register() -> None:
    from vllm.entrypoints.generate.base.protocol import DeltaMessage
    from vllm.reasoning.abs_reasoning_parsers import ReasoningParser, ReasoningParserManager

    class ThoughtParser(ReasoningParser):
        def is_reasoning_end(self, input_ids: Any) -> bool:
            return False

        def extract_content_ids(self, input_ids: list[int]) -> list[int]:
            return []

        def adjust_request(self, request: Any) -> Any:
            if request.extract_structured_outputs() is not None:
                raise ValueError("response_format and structured_outputs are not supported for a model that thinks")
            return request

        def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
            thought, response = split(model_output)
            return thought or None, response or None

        def extract_reasoning_streaming(self, previous_text: str, current_text: str, *_: Any, **__: Any) -> Any:
            (old_thought, old), (thought, new) = (split(text, finished=False) for text in (previous_text, current_text))
            thought, new = thought.removeprefix(old_thought), new.removeprefix(old)
            return DeltaMessage(reasoning=thought or None, content=new or None) if thought or new else None

        def get_streaming_fallback_content(self, text: str, request: Any) -> str | None:
            (_, sent), (_, whole) = split(text, finished=False), split(text)
            return whole.removeprefix(sent) or None

    ReasoningParserManager.register_module("thought", module=ThoughtParser)


if "vllm" in sys.modules:
    _register()
