"""The parts of vLLM's two model runners that force tokens, each with the processors that it builds; without a model.

Importing this module loads vLLM, which processes that only collect tests should avoid.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.sample.logits_processor import BatchUpdate, build_logitsprocs
from vllm.v1.worker.cpu.buffer_utils import UvaBuffer
from vllm.v1.worker.gpu.sample.logits_processor import (
    LogitsContext,
    build_custom_logits_processors,
    build_custom_logits_processors_params_validator,
)
from vllm.v1.worker.gpu.states import RequestState

from tests.engines.inference.test_forcing import SEED
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.engines.inference.forcing import ARGUMENT, PROCESSOR, Rule, as_argument

__all__ = [
    "CPU",
    "SLOTS",
    "VOCABULARY",
    "RequestState",
    "SamplingParams",
    "UvaBuffer",
    "V1Runner",
    "V2Runner",
    "VLLMValidationError",
    "build_custom_logits_processors",
    "build_custom_logits_processors_params_validator",
]

VOCABULARY = len(SEED)
CPU = torch.device("cpu")
SLOTS = 4
LONGEST = 64


def vllm_config(**others: Any) -> Any:
    """The parts of an engine's config that processors read."""
    model = SimpleNamespace(tokenizer=str(SHIPPED_SEED_MODEL))
    return SimpleNamespace(
        model_config=model, speculative_config=None, scheduler_config=SimpleNamespace(max_num_seqs=SLOTS), **others
    )


def asks(rules: list[Rule]) -> SamplingParams:
    return SamplingParams(extra_args={ARGUMENT: as_argument(rules)} if rules else None)


class V1Runner:
    """One request with the V1 runner's processors."""

    def __init__(self, prompt: list[int], rules: list[Rule]) -> None:
        self.outputs: list[int] = []
        built = build_logitsprocs(vllm_config(), CPU, False, False, (PROCESSOR,))
        (self.processor,) = [
            each for each in built.all if type(each).__module__ == "tpo.engines.inference.forced_tokens"
        ]
        self.processor.update_state(
            BatchUpdate(batch_size=1, removed=[], added=[(0, asks(rules), prompt, self.outputs)], moved=[])
        )

    def step(self, own: int) -> None:
        """The next token if the model would write `own`."""
        self.outputs.append(int(self.processor.apply(wanting([own]))[0].argmax()))


class V2Runner:
    """The V2 runner's tables and its processor, without a model."""

    def __init__(self) -> None:
        self.states = RequestState(SLOTS, LONGEST, 128, 0, VOCABULARY, CPU)
        (self.processor,) = build_custom_logits_processors(vllm_config(), self.states, False, (PROCESSOR,))

    def add(self, name: str, prompt: list[int], outputs: list[int], rules: list[Rule]) -> None:
        """As `GPUModelRunner.add_requests` does; with outputs for a request that was preempted."""
        tokens = [*prompt, *outputs]
        self.states.add_request(name, len(prompt), tokens, 0, 48)
        slot = self.states.req_id_to_index[name]
        self.states.total_len.clear_staged_writes()
        self.states.all_token_ids.clear_staged_writes()
        self.states.total_len.gpu[slot] = len(tokens)
        self.states.all_token_ids.gpu[slot, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        assert self.processor.add_request(slot, asks(rules)) == bool(rules)
        self.processor.apply_staged_writes()

    def step(self, batch: dict[str, int], reading: frozenset[str] = frozenset()) -> dict[str, int]:
        """One step of a batch in this order: the next tokens by request. Nothing is sampled for those still `reading`
        their prompt in a chunked prefill."""
        slots = np.array([self.states.req_id_to_index[name] for name in batch], dtype=np.int32)
        rows = torch.from_numpy(slots)
        lengths = self.states.total_len.gpu[rows.long()]
        context = LogitsContext(
            expanded_idx_mapping=rows,
            idx_mapping=rows,
            idx_mapping_np=slots,
            expanded_local_pos=torch.zeros(len(batch), dtype=torch.int32),
            input_ids=torch.zeros(len(batch), dtype=torch.int32),
            pos=lengths - 1,
            seq_lens_upper_bound_np=lengths.numpy(),
        )
        chosen = self.processor.apply(wanting(list(batch.values())), context).argmax(-1).tolist()
        found = {name: token for name, token in zip(batch, chosen, strict=True) if name not in reading}
        for name, token in found.items():
            slot = self.states.req_id_to_index[name]
            self.states.all_token_ids.gpu[slot, self.states.total_len.gpu[slot]] = token
            self.states.total_len.gpu[slot] += 1
        return found


def wanting(own: list[int]) -> torch.Tensor:
    """Logits of a model that would write these tokens, one per row."""
    logits = torch.randn(len(own), VOCABULARY)
    logits[torch.arange(len(own)), torch.tensor(own)] = 20.0
    return logits
