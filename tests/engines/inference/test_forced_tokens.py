"""Claims about how vLLM's two model runners force tokens: both load the same class, and both force the same.

V2 is driven through its own calls, in its order, on the tables that it keeps; only its Triton kernels are replaced, by
plain writes to those tables. The V2 runner as a whole: tests/end_to_end/test_forcing.py.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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

from tests.engines.inference.test_forcing import MARKER, SEED, ids
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.engines.inference.forcing import ARGUMENT, PROCESSOR, CalculatorRule, Rule, ThoughtBudget, as_argument

VOCABULARY = len(SEED)
CPU = torch.device("cpu")
SLOTS = 4
LONGEST = 64


@pytest.fixture(autouse=True, scope="module")
def _without_pinned_memory() -> Iterator[None]:
    """The V2 runner's tables as vLLM's own CPU worker has them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vllm.v1.worker.gpu.buffer_utils.UvaBuffer", UvaBuffer)
        yield


def vllm_config(**others: Any) -> Any:
    """What processors read of an engine's config."""
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
        (self._processor,) = [
            each for each in built.all if type(each).__module__ == "tpo.engines.inference.forced_tokens"
        ]
        self._processor.update_state(
            BatchUpdate(batch_size=1, removed=[], added=[(0, asks(rules), prompt, self.outputs)], moved=[])
        )

    def step(self, own: int) -> None:
        """The next token, where the model would write `own`."""
        self.outputs.append(int(self._processor.apply(_wanting([own]))[0].argmax()))


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
        """One step of a batch in this order: the tokens that follow, by request. Of those `reading` their prompt, as a
        chunked prefill is, nothing is sampled."""
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
        chosen = self.processor.apply(_wanting(list(batch.values())), context).argmax(-1).tolist()
        found = {name: token for name, token in zip(batch, chosen, strict=True) if name not in reading}
        for name, token in found.items():
            slot = self.states.req_id_to_index[name]
            self.states.all_token_ids.gpu[slot, self.states.total_len.gpu[slot]] = token
            self.states.total_len.gpu[slot] += 1
        return found


def _wanting(own: list[int]) -> torch.Tensor:
    """Logits of a model that would write these tokens, one a row."""
    logits = torch.randn(len(own), VOCABULARY)
    logits[torch.arange(len(own)), torch.tensor(own)] = 20.0
    return logits


PIECES = [ids(SEED, text) for text in (f"\n{MARKER}", "<<3+4=", "<<12*2=", "7>>", " first 3 up 4 is 7.")]
texts = st.lists(
    st.one_of(st.sampled_from(PIECES), st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=3)),
    min_size=24,
    max_size=24,
).map(lambda parts: [token for part in parts for token in part][:24])
rule_lists = st.lists(
    st.one_of(st.builds(ThoughtBudget, st.integers(1, 14), st.just(MARKER)), st.just(CalculatorRule("gsm8k"))),
    max_size=2,
)


@settings(max_examples=12)
@given(data=st.data())
def test_v2_writes_what_v1_writes_whatever_becomes_of_the_batch(data: st.DataObject):
    """Requests join late, lie still, change their rows, read their prompt in chunks, and are preempted."""
    drawn = {name: (data.draw(texts), data.draw(rule_lists)) for name in ("a", "b", "c", "d", "e", "f")}
    prompts = {name: list(range(1, 2 + i)) for i, name in enumerate(drawn)}
    v2, waiting, outputs = V2Runner(), list(drawn), {name: list[int]() for name in drawn}
    running: list[str] = []
    while waiting or running:
        while waiting and len(running) < SLOTS and (not running or data.draw(st.booleans())):
            running.append(name := waiting.pop(0))
            v2.add(name, prompts[name], outputs[name], drawn[name][1])
        step = data.draw(st.lists(st.sampled_from(running), unique=True, min_size=1))
        fresh = [name for name in step if not outputs[name]]
        reading = frozenset(data.draw(st.lists(st.sampled_from(fresh), unique=True)) if len(step) > 1 and fresh else ())
        if len(reading) == len(step):
            continue
        batch = {name: drawn[name][0][len(outputs[name])] for name in step}
        for name, token in v2.step(batch, reading).items():
            outputs[name].append(token)
        if len(running) > 1 and data.draw(st.integers(0, 5)) == 0:
            preempted = data.draw(st.sampled_from(running))
            v2.states.remove_request(preempted)
            running.remove(preempted)
            waiting.append(preempted)
        for name in [name for name in running if len(outputs[name]) == len(drawn[name][0])]:
            v2.states.remove_request(name)
            running.remove(name)
        waiting = [name for name in waiting if len(outputs[name]) < len(drawn[name][0])]
    for name, (own, rules) in drawn.items():
        v1 = V1Runner(prompts[name], rules)
        for token in own:
            v1.step(token)
        assert outputs[name] == v1.outputs


def test_a_slot_forgets_the_rules_of_its_last_request():
    v2 = V2Runner()
    v2.add("bound", [1], [], [ThoughtBudget(1, MARKER)])
    assert [v2.step({"bound": 5})["bound"], v2.step({"bound": 5})["bound"]] != [5, 5]
    slot = v2.states.remove_request("bound")
    v2.add("free", [1], [], [])
    assert v2.states.req_id_to_index["free"] == slot
    assert [v2.step({"free": 5})["free"] for _ in range(4)] == [5] * 4


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_nothing_but_the_forced_token_can_be_sampled(runner: str):
    rules: list[Rule] = [ThoughtBudget(1, MARKER)]
    v2 = V2Runner()
    v2.add("one", [1], [5], rules)
    v1 = V1Runner([1], rules)
    v1.outputs.append(5)
    logits = _wanting([7])
    if runner == "v1":
        made = v1._processor.apply(logits)
    else:
        slots = np.array([v2.states.req_id_to_index["one"]])
        made = v2.processor.apply(logits, SimpleNamespace(idx_mapping_np=slots))
    assert made.isfinite().sum() == 1
    assert made.softmax(-1).max() == 1.0


def test_what_is_no_rule_is_refused_when_a_request_is_admitted():
    admit = build_custom_logits_processors_params_validator([PROCESSOR])
    admit(asks([CalculatorRule("t5")]))
    admit(SamplingParams())
    for argument in ('[{"rule": "unknown"}]', '[{"rule": "calculator", "colour": 1}]', "calculator", "7", "[7]"):
        with pytest.raises(VLLMValidationError, match="not rules of ours"):
            admit(SamplingParams(extra_args={ARGUMENT: argument}))


def test_forced_tokens_refuse_speculative_decoding():
    config = vllm_config()
    config.speculative_config = object()
    with pytest.raises(ValueError, match="speculative"):
        build_custom_logits_processors(config, RequestState(1, 8, 8, 0, VOCABULARY, CPU), False, (PROCESSOR,))
