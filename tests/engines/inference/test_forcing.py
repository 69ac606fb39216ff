"""Claims about what a thought budget and a calculator force, token by token.

With the real engine: tests/end_to_end/test_forcing.py.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.engines.inference.forcing import CalculatorRule, Rule, ThoughtBudget, as_argument, forcers_of

MARKER = "Here is my response:"
SEED: Any = AutoTokenizer.from_pretrained(SHIPPED_SEED_MODEL)


def _bytes() -> Any:
    """A tokenizer in which the marker is many tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), vocab_size=280)
    tokenizer.train_from_iterator(["Here is what is here. The answer is 7."], trainer)
    from tokenizers import decoders

    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


TOKENIZERS = {"words": SEED, "bytes": _bytes()}


def written(tokenizer: Any, budget: int, model: list[int], length: int) -> list[int]:
    """The first `length` tokens of a request whose model would write `model`."""
    return forced(tokenizer, ThoughtBudget(budget, MARKER), model, length)


def forced(tokenizer: Any, rule: Rule, model: list[int], length: int) -> list[int]:
    """The same with any rule."""
    (forcer,) = forcers_of(as_argument([rule]), tokenizer)
    found: list[int] = []
    own = iter(model)
    while len(found) < length:
        token = forcer.next_token(found)
        found.append(next(own) if token is None else token)
    return found


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return found


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_thought_over_its_budget_is_ended_by_the_marker_and_the_model_continues(name: str):
    tokenizer = TOKENIZERS[name]
    thought, after, marker = (ids(tokenizer, text) for text in ("first 3 up 4 is 7." * 9, " 7", f"\n{MARKER}"))
    budget = 6
    found = written(tokenizer, budget, [*thought[:budget], *after], budget + len(marker) + len(after))
    assert found == [*thought[:budget], *marker, *after]
    assert MARKER in tokenizer.decode(found)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_nothing_is_forced_once_the_response_has_begun(name: str):
    tokenizer = TOKENIZERS[name]
    own = ids(tokenizer, f"hot cold\n{MARKER} The answer is 7. The answer is 7. The answer is 7.")
    begun = len(ids(tokenizer, f"hot cold\n{MARKER}"))
    assert written(tokenizer, begun, own, len(own)) == own


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_marker_cut_by_the_budget_is_completed_and_not_repeated(name: str):
    tokenizer = TOKENIZERS[name]
    thought, marker = ids(tokenizer, "hot cold"), ids(tokenizer, f"\n{MARKER}")
    for within in range(len(marker)):
        own = [*thought, *marker[:within], *ids(tokenizer, " 7")]
        found = written(tokenizer, len(thought) + within, own, len(thought) + len(marker) + 1)
        assert found[: len(thought) + len(marker)] == [*thought, *marker]


@given(budget=st.integers(1, 12), own=st.lists(st.integers(0, 255), min_size=40, max_size=40))
def test_a_resumed_request_writes_the_same(budget: int, own: list[int]):
    """vLLM may preempt a request, and then asks about it from its beginning."""
    tokenizer = TOKENIZERS["bytes"]
    whole = written(tokenizer, budget, own, 30)
    for length in range(30):
        (fresh,) = forcers_of(as_argument([ThoughtBudget(budget, MARKER)]), tokenizer)
        token = fresh.next_token(whole[:length])
        assert token is None or token == whole[length]


@pytest.mark.parametrize(("style", "begun", "due"), [("gsm8k", "<<3+4=", "7>>"), ("t5", "[ 3 + 4 =", " 7]")])
def test_a_calculator_writes_the_result_and_the_model_continues(style: Any, begun: str, due: str):
    tokenizer = TOKENIZERS["bytes"]
    before, after = ids(tokenizer, f"That is {begun}"), ids(tokenizer, "5 kites.")
    result = len(ids(tokenizer, due))
    found = forced(tokenizer, CalculatorRule(style), [*before, *after], len(before) + result + len(after))
    assert tokenizer.decode(found) == f"That is {begun}{due}5 kites."


def test_a_calculator_and_a_budget_work_together():
    tokenizer = TOKENIZERS["bytes"]
    rules: list[Rule] = [ThoughtBudget(40, MARKER), CalculatorRule("gsm8k")]
    forcers = forcers_of(as_argument(rules), tokenizer)
    found = ids(tokenizer, "<<12*12=")
    while (token := next((t for f in forcers if (t := f.next_token(found)) is not None), None)) is not None:
        found.append(token)
    assert tokenizer.decode(found) == "<<12*12=144>>"


def test_requests_of_one_engine_decode_each_token_once():
    tokenizer = TOKENIZERS["bytes"]
    one, two = (forcers_of(as_argument([CalculatorRule("gsm8k")]), tokenizer)[0] for _ in range(2))
    one.next_token(ids(tokenizer, "<<1+1="))
    assert vars(one)["_equals"] is vars(two)["_equals"]
    assert vars(one)["_equals"]
