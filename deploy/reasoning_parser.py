"""A reasoning parser for vLLM servers of your own: the response in `content`, the thought nowhere or in `reasoning`.

    vllm serve <folder> --reasoning-parser tpo_generic --reasoning-parser-plugin deploy/reasoning_parser.py

In: outputs of vLLM's chat endpoint, whole or in chunks. Out: content and reasoning, by the rules and markers of
`prompts/thought.py` alone; a parser is registered for each of its variants, `tpo_<variant>`. The checkout has to be on
PYTHONPATH. This is the parser and no more: `make serve` also puts the thought prompt on, samples replies again that
break the format, and closes the endpoints that no parser sees, such as `/v1/completions`.

As far as vLLM knows, the reasoning never ends. Its streaming would pass what follows straight to the client, where a
model can still write a marker and think on; and the ids that it asks about include the prompt's, which quotes the
markers. So vLLM can't constrain responses (`response_format`), and such requests are refused.
"""

import os
from collections.abc import Sequence
from typing import Any, ClassVar

from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.reasoning.abs_reasoning_parsers import ReasoningParser, ReasoningParserManager

from prompts.thought import VARIANTS, Shown, ThoughtPrompt

ALLOW = "TPO_ALLOW_THOUGHTS"
"""Environment variable by which the operator allows thoughts: 1 for requests that say `include_reasoning: true`."""


class ThoughtParser(ReasoningParser):
    """Splits the outputs of one thought prompt."""

    prompt: ClassVar[ThoughtPrompt]
    """The prompt, with its markers."""

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Never, so that every chunk comes through here."""
        return False

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """None: where a response begins is known of text and not of tokens."""
        return []

    def adjust_request(self, request: Any) -> Any:
        """Hides the thought, and with it log-probs and token ids, unless the operator allows it and the request asks.

        Raises `ValueError`, which vLLM answers with status 400, where the request wants its output constrained: then
        it could not hold a thought.
        """
        if request.extract_structured_outputs() is not None:
            raise ValueError("response_format and structured_outputs are not served with a model that thinks first")
        asks = "include_reasoning" in request.model_fields_set and request.include_reasoning
        request.include_reasoning = bool(asks and os.environ.get(ALLOW) == "1")
        return request

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Thought and response of a whole output, None for what is empty."""
        shown = self.prompt.shown(model_output, finished=True)
        return shown.thought or None, shown.response or None

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> DeltaMessage | None:
        """What a chunk adds to what may be shown, or None."""
        return _added(*(self.prompt.shown(text, finished=False) for text in (previous_text, current_text)))

    def get_streaming_fallback_content(self, text: str, request: Any) -> str | None:
        """The end of the response that was held back because it might have become a marker."""
        sent, whole = (self.prompt.shown(text, finished=finished).response for finished in (False, True))
        return whole.removeprefix(sent) or None


def _added(before: Shown, after: Shown) -> DeltaMessage | None:
    thought = after.thought.removeprefix(before.thought)
    response = after.response.removeprefix(before.response)
    if not thought and not response:
        return None
    return DeltaMessage(reasoning=thought or None, content=response or None)


for _variant, _prompt in VARIANTS.items():
    _parser = type(f"{_variant.title().replace('_', '')}Parser", (ThoughtParser,), {"prompt": _prompt})
    ReasoningParserManager.register_module(f"tpo_{_variant}", module=_parser)
