"""vLLM's side of `tpo.engines.forcing`: loaded by name into the process that samples.

In: logits of a batch. Out: the same, but where a request's rules say which token comes next, that one is left alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoTokenizer
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from tpo.engines.forcing import ARGUMENT, forcers_of


class ForcedTokens(AdapterLogitsProcessor):
    """Applies the rules that a request carries; others are left alone."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        self._tokenizer = AutoTokenizer.from_pretrained(vllm_config.model_config.tokenizer, local_files_only=True)

    def is_argmax_invariant(self) -> bool:
        """It is not: greedy decoding too writes what is forced."""
        return False

    def new_req_logits_processor(
        self, params: SamplingParams
    ) -> Callable[[Sequence[int], torch.Tensor], torch.Tensor] | None:
        """The rules of one request."""
        argument = (params.extra_args or {}).get(ARGUMENT)
        if not argument:
            return None
        forcers = forcers_of(argument, self._tokenizer)

        def force(output_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
            for forcer in forcers:
                if (token := forcer.next_token(output_ids)) is not None:
                    forced = torch.full_like(logits, float("-inf"))
                    forced[token] = 0.0
                    return forced
            return logits

        return force
