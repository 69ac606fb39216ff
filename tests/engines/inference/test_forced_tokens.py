"""Claims about how vLLM's two model runners force tokens: both load the same class, and both force the same.

V2 is driven by its own calls, in its order, on its own tables; only its Triton kernels are replaced, by plain writes to
those tables. tests/end_to_end/test_forcing.py runs all of V2.
"""

from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engines.inference.test_forcing import MARKER, SEED, ids
from tpo.engines.inference.forcing import ARGUMENT, PROCESSOR, CalculatorRule, Rule, ThoughtBudget


@pytest.fixture(scope="module")
def vllm() -> Iterator[ModuleType]:
    """The runners, with the V2 runner's tables as vLLM's own CPU worker has them."""
    from tests.engines.inference import vllm_runners

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vllm.v1.worker.gpu.buffer_utils.UvaBuffer", vllm_runners.UvaBuffer)
        yield vllm_runners


PIECES = [ids(SEED, text) for text in (f"\n{MARKER}", "<<3+4=", "<<12*2=", "7>>", " first 3 up 4 is 7.")]
texts = st.lists(
    st.one_of(st.sampled_from(PIECES), st.lists(st.integers(0, len(SEED) - 1), min_size=1, max_size=3)),
    min_size=24,
    max_size=24,
).map(lambda parts: [token for part in parts for token in part][:24])
rule_lists = st.lists(
    st.one_of(st.builds(ThoughtBudget, st.integers(1, 14), st.just(MARKER)), st.just(CalculatorRule("gsm8k"))),
    max_size=2,
)


@settings(max_examples=12)
@given(data=st.data())
def test_v2_writes_what_v1_writes_in_any_batch(vllm: ModuleType, data: st.DataObject):
    """Requests join late, pause, change rows, prefill in chunks, and are preempted."""
    drawn = {name: (data.draw(texts), data.draw(rule_lists)) for name in ("a", "b", "c", "d", "e", "f")}
    prompts = {name: list(range(1, 2 + i)) for i, name in enumerate(drawn)}
    v2, waiting, outputs = vllm.V2Runner(), list(drawn), {name: list[int]() for name in drawn}
    running: list[str] = []
    while waiting or running:
        while waiting and len(running) < vllm.SLOTS and (not running or data.draw(st.booleans())):
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
        v1 = vllm.V1Runner(prompts[name], rules)
        for token in own:
            v1.step(token)
        assert outputs[name] == v1.outputs


def test_a_slot_forgets_the_rules_of_its_last_request(vllm: ModuleType):
    v2 = vllm.V2Runner()
    v2.add("bound", [1], [], [ThoughtBudget(1, MARKER)])
    assert [v2.step({"bound": 5})["bound"], v2.step({"bound": 5})["bound"]] != [5, 5]
    slot = v2.states.remove_request("bound")
    v2.add("free", [1], [], [])
    assert v2.states.req_id_to_index["free"] == slot
    assert [v2.step({"free": 5})["free"] for _ in range(4)] == [5] * 4


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_nothing_but_the_forced_token_can_be_sampled(vllm: ModuleType, runner: str):
    rules: list[Rule] = [ThoughtBudget(1, MARKER)]
    v2 = vllm.V2Runner()
    v2.add("one", [1], [5], rules)
    v1 = vllm.V1Runner([1], rules)
    v1.outputs.append(5)
    logits = vllm.wanting([7])
    if runner == "v1":
        made = v1.processor.apply(logits)
    else:
        slots = np.array([v2.states.req_id_to_index["one"]])
        made = v2.processor.apply(logits, SimpleNamespace(idx_mapping_np=slots))
    assert made.isfinite().sum() == 1
    assert made.softmax(-1).max() == 1.0


def test_an_invalid_rule_is_refused_when_a_request_is_admitted(vllm: ModuleType):
    admit = vllm.build_custom_logits_processors_params_validator([PROCESSOR])
    admit(vllm.asks([CalculatorRule("t5")]))
    admit(vllm.SamplingParams())
    for argument in ('[{"rule": "unknown"}]', '[{"rule": "calculator", "colour": 1}]', "calculator", "7", "[7]"):
        with pytest.raises(vllm.VLLMValidationError, match="expected rules as JSON"):
            admit(vllm.SamplingParams(extra_args={ARGUMENT: argument}))


def test_forced_tokens_refuse_speculative_decoding(vllm: ModuleType):
    config = vllm.vllm_config()
    config.speculative_config = object()
    states = vllm.RequestState(1, 8, 8, 0, len(SEED), vllm.CPU)
    with pytest.raises(ValueError, match="speculative"):
        vllm.build_custom_logits_processors(config, states, False, (PROCESSOR,))
