"""Claims about what is shown of an output while it grows: no thought, no marker, and the same however it is cut into
chunks."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.serving.reading import Ended, Reading, read
from prompts.thought import VARIANTS, ParseError, ThoughtPrompt
from tests.thoughts import GREEK, any_output, chunks_of, marked

SPECIFIC, DIRECT = VARIANTS["specific"], VARIANTS["direct"]
PROMPTS = [pytest.param(prompt, id=name) for name, prompt in VARIANTS.items()]
ended: st.SearchStrategy[Ended] = st.sampled_from(("stop", "length"))


def readings(prompt: ThoughtPrompt, chunks: list[str], end: Ended, stops: tuple[str, ...] = ()) -> list[Reading]:
    """What a streaming server sends, chunk by chunk, until the reply ends."""
    text, found = "", list[Reading]()
    for i, chunk in enumerate(chunks):
        text += chunk
        found.append(read(prompt, text, end if i == len(chunks) - 1 else None, stops))
        if found[-1].finish_reason is not None:
            break
    return found


@pytest.mark.parametrize("prompt", PROMPTS)
def test_no_character_of_a_thought_is_shown_in_a_thousand_chunkings_of_a_hundred_outputs(prompt: ThoughtPrompt):
    rng = random.Random(prompt.variant)
    broken = 0
    for case in [any_output(prompt, rng) for _ in range(100)]:
        whole = read(prompt, case.output, "stop", ())
        assert whole.response == case.response and not marked(prompt, whole.response)
        assert not set(whole.response) & set(GREEK)
        broken += whole.format_error is not None
        for _ in range(10):
            found = readings(prompt, chunks_of(case.output, rng), "stop")
            assert all(after.response.startswith(before.response) for before, after in pairwise(found))
            assert (found[-1].response, found[-1].finish_reason) == (whole.response, whole.finish_reason)
            assert found[-1].is_reply == whole.is_reply
    assert 10 < broken < 90 or prompt is DIRECT


@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_prefix_of_an_output_shows_a_prefix_of_its_response(prompt: ThoughtPrompt):
    rng = random.Random(prompt.variant)
    for case in [any_output(prompt, rng) for _ in range(30)]:
        for end in range(len(case.output)):
            for reason in (None, "length"):
                begun = read(prompt, case.output[:end], reason, ())
                assert case.response.startswith(begun.response)


@settings(max_examples=60)
@given(
    pieces=st.lists(st.sampled_from(["<R>", "<", "R>", "a", "b", "ab", " ", "\n", "é"]), max_size=12),
    stops=st.lists(st.sampled_from(["a", "b", "ab", "ba", "\n", " b", "<", "é"]), max_size=3).map(tuple),
    end=ended,
    data=st.data(),
)
def test_chunking_changes_nothing_for_any_stop_texts(pieces: list[str], stops: tuple[str, ...], end: Ended, data):
    output = "".join(pieces)
    whole = readings(SPECIFIC, list(output) or [""], end, stops)
    chunks = chunks_of(output, random.Random(data.draw(st.integers())))
    found = readings(SPECIFIC, chunks, end, stops)
    assert all(after.response.startswith(before.response) for before, after in pairwise(whole))
    assert found[-1].response == whole[-1].response
    assert (found[-1].finish_reason, found[-1].format_error) == (whole[-1].finish_reason, whole[-1].format_error)


@pytest.mark.parametrize(
    ("prompt", "output", "end", "response", "finish_reason", "error"),
    [
        (SPECIFIC, "a <R> b", "stop", "b", "stop", None),
        (SPECIFIC, "a <R> b", "length", "b", "length", ParseError.CUT_BY_LENGTH),
        (SPECIFIC, "a", "length", "", "length", ParseError.CUT_BY_LENGTH),
        (SPECIFIC, "a", "stop", "", "content_filter", ParseError.MISSING_RESPONSE_MARKER),
        (SPECIFIC, "a <R> \n", "stop", "", "content_filter", ParseError.EMPTY_RESPONSE),
        (SPECIFIC, "a <R> b <R> c", "stop", "b", "content_filter", ParseError.REPEATED_RESPONSE_MARKER),
        (SPECIFIC, "a <R> b <R> c", "length", "b", "content_filter", ParseError.REPEATED_RESPONSE_MARKER),
        (
            VARIANTS["specific_draft"],
            "a <response> b <internal thought> c",
            "stop",
            "b",
            "content_filter",
            ParseError.THOUGHT_MARKER_IN_RESPONSE,
        ),
        (DIRECT, " b ", "stop", "b", "stop", None),
        (DIRECT, "b <R> c", "length", "b <R> c", "length", ParseError.CUT_BY_LENGTH),
    ],
)
def test_replies_have_the_apis_finish_reasons(
    prompt: ThoughtPrompt, output: str, end: Ended, response: str, finish_reason: str, error: ParseError | None
):
    found = read(prompt, output, end, ())
    assert (found.response, found.finish_reason, found.format_error) == (response, finish_reason, error)


def test_a_cut_response_can_be_served_and_a_cut_thought_cannot():
    assert read(SPECIFIC, "a <R> b", "length", ()).is_reply
    assert not read(SPECIFIC, "a", "length", ()).is_reply
    assert not read(SPECIFIC, "a <R> b <R> c", "stop", ()).is_reply
