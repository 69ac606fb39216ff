"""vLLM's side of `tpo.engines.inference.forcing`: loaded by name into the process that samples.

vLLM's two model runners have different interfaces for logits processors, and each rejects processors of the other.
Which runner is used is known only once vLLM's config is resolved: V2 if Triton works, V1 on CPUs, for models that V2
doesn't support yet, and with `VLLM_USE_V2_MODEL_RUNNER=0`. So `ForcedTokens` counts as a processor of both, and each
runner gets an instance that it can call.

Accepted cost under V2: its host runs ahead of the GPU, and only knows a request's last tokens after a synchronization.
Each step with a request that has rules waits for that; other steps don't.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoTokenizer
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor
from vllm.v1.sample.logits_processor import LogitsProcessor as V1LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2LogitsProcessor

from tpo.engines.inference.forcing import ARGUMENT, Forced, read_rules

_NEVER = float("-inf")


class ForcedTokens(V1LogitsProcessor, V2LogitsProcessor):
    """Applies the rules that a request carries; requests without rules are left alone.

    Never instantiated itself: V1 creates its processors with a config, a device and whether memory is pinned, V2 with a
    config and the state of its requests, and each gets its own class.
    """

    def __new__(cls, vllm_config: Any, *others: Any, **named: Any) -> Any:
        """The processor of the runner that asks for one."""
        of_v2 = len(others) + len(named) == 1
        return (V2ForcedTokens if of_v2 else V1ForcedTokens)(vllm_config, *others, **named)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises `ValueError` if a request carries something other than rules; both runners call it on admission."""
        if argument := _argument(sampling_params):
            read_rules(argument)


class V1ForcedTokens(AdapterLogitsProcessor):
    """The processor of the V1 model runner, which passes each request's outputs as a list on the host."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        self._tokenizer = _tokenizer(vllm_config)

    def is_argmax_invariant(self) -> bool:
        """False: greedy decoding must write forced tokens, too."""
        return False

    def new_req_logits_processor(
        self, params: SamplingParams
    ) -> Callable[[Sequence[int], torch.Tensor], torch.Tensor] | None:
        """The rules of one request."""
        if not (argument := _argument(params)):
            return None
        forced = Forced(argument, self._tokenizer)

        def force(output_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
            if (token := forced.next_token(output_ids)) is None:
                return logits
            only = torch.full_like(logits, _NEVER)
            only[token] = 0.0
            return only

        return force


class V2ForcedTokens(V2LogitsProcessor):
    """The processor of the V2 model runner, which keeps each request's tokens in a slot of a table on the device.

    A slot is reused as soon as its request is done or preempted, without a notification, so `add_request` overwrites
    the state of the previous request. A preempted request returns with its outputs as part of its prefill; they still
    begin at `prompt_len`.
    """

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        if vllm_config.speculative_config is not None:
            # The rules would have to undo rejected drafts. V1 rejects this combination itself.
            raise ValueError("forced tokens do not work with speculative decoding: start the engine without it")
        self._tokenizer = _tokenizer(vllm_config)
        self._states = req_states
        self._forced: dict[int, Forced] = {}
        """The rules of each slot whose request has some."""
        self._outputs: dict[int, list[int]] = {}
        """The outputs of those requests that were read from the device."""

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Assigns a slot to a request; returns whether it has rules."""
        self._forced.pop(req_idx, None)
        if argument := _argument(sampling_params):
            self._forced[req_idx] = Forced(argument, self._tokenizer)
            self._outputs[req_idx] = []
        return bool(argument)

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Leaves only the forced token in the rows of requests that have one.

        Without speculative decoding row i is the i-th request's. A request whose prompt isn't fully prefilled has a
        row, too, from which nothing is sampled; it has no outputs.
        """
        placed = [(row, slot) for row, slot in enumerate(ctx.idx_mapping_np.tolist()) if slot in self._forced]
        if not placed:
            return logits
        self._read_outputs([slot for _, slot in placed])
        found = {row: self._forced[slot].next_token(self._outputs[slot]) for row, slot in placed}
        tokens = {row: token for row, token in found.items() if token is not None}
        if tokens:
            rows = torch.tensor([*tokens], device=logits.device)
            logits[rows] = _NEVER
            logits[rows, torch.tensor([*tokens.values()], device=logits.device)] = 0.0
        return logits

    def _read_outputs(self, slots: Sequence[int]) -> None:
        """Reads the tokens that these slots' requests have sampled since the last call.

        Usually one token per step: more after a preemption, or if another tensor-parallel rank sampled in between; none
        during prefill.
        """
        states, device = self._states, self._states.total_len.gpu.device
        at = torch.tensor(slots, device=device)
        # On the same stream as the previous step, so that its tokens are there when this returns.
        totals: list[int] = states.total_len.gpu[at].tolist()
        starts = [int(states.prompt_len.np[slot]) + len(self._outputs[slot]) for slot in slots]
        new = [max(0, total - start) for total, start in zip(totals, starts, strict=True)]
        if not any(new):
            return
        table = states.all_token_ids.gpu
        columns = torch.tensor(starts, device=device)[:, None] + torch.arange(max(new), device=device)
        columns = columns.clamp(max=table.shape[1] - 1)
        for slot, count, tokens in zip(slots, new, table[at[:, None], columns].tolist(), strict=True):
            self._outputs[slot] += tokens[:count]


def _tokenizer(vllm_config: Any) -> Any:
    return AutoTokenizer.from_pretrained(vllm_config.model_config.tokenizer, local_files_only=True)


def _argument(params: SamplingParams) -> str:
    """The rules that a request carries, as `as_argument` writes them; empty for none."""
    return (params.extra_args or {}).get(ARGUMENT) or ""
