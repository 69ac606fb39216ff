"""Claims about what a thought's budget forces, token by token.

With the real engine: tests/end_to_end/test_forcing.py.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tasks.lineage import SHIPPED_SEED_MODEL
from tpo.engines.forcing import ThoughtBudget, as_argument, forcers_of

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
    """What a request writes whose model would write `model`, for so many tokens."""
    (forcer,) = forcers_of(as_argument([ThoughtBudget(budget, MARKER)]), tokenizer)
    found: list[int] = []
    own = iter(model)
    while len(found) < length:
        forced = forcer.next_token(found)
        found.append(next(own) if forced is None else forced)
    return found


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return found


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_thought_that_is_too_long_is_followed_by_the_marker_and_then_the_model_goes_on(name: str):
    tokenizer = TOKENIZERS[name]
    thought, after, marker = (ids(tokenizer, text) for text in ("first 3 up 4 is 7." * 9, " 7", f"\n{MARKER}"))
    budget = 6
    found = written(tokenizer, budget, [*thought[:budget], *after], budget + len(marker) + len(after))
    assert found == [*thought[:budget], *marker, *after]
    assert MARKER in tokenizer.decode(found)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_nothing_is_forced_where_the_response_has_begun(name: str):
    tokenizer = TOKENIZERS[name]
    own = ids(tokenizer, f"hot cold\n{MARKER} The answer is 7. The answer is 7. The answer is 7.")
    begun = len(ids(tokenizer, f"hot cold\n{MARKER}"))
    assert written(tokenizer, begun, own, len(own)) == own


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_marker_that_the_budget_cuts_in_two_is_completed_and_not_repeated(name: str):
    tokenizer = TOKENIZERS[name]
    thought, marker = ids(tokenizer, "hot cold"), ids(tokenizer, f"\n{MARKER}")
    for within in range(len(marker)):
        own = [*thought, *marker[:within], *ids(tokenizer, " 7")]
        found = written(tokenizer, len(thought) + within, own, len(thought) + len(marker) + 1)
        assert found[: len(thought) + len(marker)] == [*thought, *marker]


@given(budget=st.integers(1, 12), own=st.lists(st.integers(0, 255), min_size=40, max_size=40))
def test_a_request_that_is_taken_up_again_writes_the_same(budget: int, own: list[int]):
    """vLLM may put a request off, and asks about it from its beginning then."""
    tokenizer = TOKENIZERS["bytes"]
    whole = written(tokenizer, budget, own, 30)
    for length in range(30):
        (fresh,) = forcers_of(as_argument([ThoughtBudget(budget, MARKER)]), tokenizer)
        forced = fresh.next_token(whole[:length])
        assert forced is None or forced == whole[length]
