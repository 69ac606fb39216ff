"""A reasoning parser for your own vLLM server: responses in `content`, thoughts hidden or in `reasoning`.

    vllm serve <folder> --reasoning-parser tpo_generic --reasoning-parser-plugin deploy/reasoning_parser.py

It splits outputs of vLLM's chat endpoint, whole or in chunks, by the rules and markers of `prompts/thought.py` alone; a
parser is registered for each of its variants, as `tpo_<variant>`. The checkout has to be on PYTHONPATH. This is only
the parser: `make serve` also adds the thought prompt, resamples replies that break the format, and closes the endpoints
that bypass the parser, such as `/v1/completions`.

The parser tells vLLM that the reasoning never ends. Otherwise vLLM's streaming would pass what follows straight to the
client, although a model can still write a marker and think again; and the ids that vLLM asks about include the
prompt's, which quotes the markers. The cost is that vLLM can't constrain responses (`response_format`): such requests
are refused.
"""

import os
from collections.abc import Sequence
from typing import Any, ClassVar

from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.reasoning.abs_reasoning_parsers import ReasoningParser, ReasoningParserManager

from prompts.thought import VARIANTS, Shown, ThoughtPrompt

ALLOW = "TPO_ALLOW_THOUGHTS"
"""Environment variable by which the operator allows thoughts: 1 shows them if a request has `include_reasoning`."""


class ThoughtParser(ReasoningParser):
    """Splits outputs for one thought prompt."""

    prompt: ClassVar[ThoughtPrompt]
    """The prompt, with its markers."""

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Always False, so that every chunk passes through the parser."""
        return False

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """Always empty: the start of a response is found in text, not in tokens."""
        return []

    def adjust_request(self, request: Any) -> Any:
        """Hides the thought, log-probs and token ids unless the operator allows thoughts and the request asks for them.

        Raises `ValueError`, which vLLM answers with status 400, if the request wants constrained output, which couldn't
        contain a thought.
        """
        if request.extract_structured_outputs() is not None:
            raise ValueError("response_format and structured_outputs are not supported for a model that thinks first")
        asks = "include_reasoning" in request.model_fields_set and request.include_reasoning
        request.include_reasoning = bool(asks and os.environ.get(ALLOW) == "1")
        return request

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Thought and response of a whole output; None for an empty one."""
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
        """What a chunk adds to the visible text, or None."""
        return _added(*(self.prompt.shown(text, finished=False) for text in (previous_text, current_text)))

    def get_streaming_fallback_content(self, text: str, request: Any) -> str | None:
        """The end of the response, which was held back because it might have become a marker."""
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
