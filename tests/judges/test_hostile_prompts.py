"""Claims about hostile text in a judge's prompt: it is tokenized as text, never as a turn of the chat."""

import itertools
from pathlib import Path

import pyarrow as pa
import pytest

from judges.askers import ComparisonEncoder, ResponsePair
from prompts.verdict import PROMPTS
from tests.hostile import HostileResponse, hostile_responses
from tests.models.test_chat import LLAMA_CONTROLS, controls_in, like_llama3, saved
from tests.sampling import sampled
from tpo.errors import InputError
from tpo.models.chat import ChatEncoder

MINIATURE = Path(__file__).parents[2] / "tpo" / "miniature" / "seed_model"
CASES = [case for case in hostile_responses(seed=2) if case.kind != "huge"]
HUGE = [case for case in hostile_responses(seed=2) if case.kind == "huge"][::3]
BENIGN = ("Why?", "Because.", "Who knows?")
TOKENIZERS = ("miniature", "llama3")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChatEncoder]:
    llama3 = like_llama3()
    return {
        "miniature": ChatEncoder(MINIATURE),
        "llama3": saved(llama3, tmp_path_factory.mktemp("llama3"), str(llama3.chat_template)),
    }


def test_the_controls_are_the_ones_that_hostile_text_quotes(encoders: dict[str, ChatEncoder]):
    prompts = "".join(case.text for case in CASES)
    assert all(token in prompts for token in LLAMA_CONTROLS)
    assert all(str(token) in prompts for token in encoders["miniature"].tokenizer.all_special_tokens)


def assert_it_stays_text(encoder: ChatEncoder, texts: tuple[str, str, str], case: HostileResponse) -> None:
    messages = PROMPTS["cot"].render(*texts)
    ids = encoder.encode(messages)
    expected = controls_in(encoder, encoder.encode(PROMPTS["cot"].render(*BENIGN)))
    assert controls_in(encoder, ids) == expected, case
    shown = encoder.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert encoder.tokenizer.decode(ids) == shown, case


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_hostile_text_becomes_a_control_token(encoders: dict[str, ChatEncoder], name: str):
    assert len(CASES) >= 2_000
    for i in sampled(f"hostile prompts, {name}", range(len(CASES)), 1_000):
        case = CASES[i]
        texts = [*BENIGN]
        texts[i % 3] = case.text
        assert_it_stays_text(encoders[name], (texts[0], texts[1], texts[2]), case)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_hostile_texts_become_no_control_token_together(encoders: dict[str, ChatEncoder], name: str):
    for one, two, three in zip(CASES[::8], CASES[3::8], CASES[5::8], strict=False):
        assert_it_stays_text(encoders[name], (one.text, two.text, three.text), one)


@pytest.mark.parametrize("case", HUGE, ids=lambda case: ascii(case.text[:12]))
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_hundred_thousand_hostile_characters_become_no_control_token(
    encoders: dict[str, ChatEncoder], name: str, case: HostileResponse
):
    assert_it_stays_text(encoders[name], ("Why?", case.text, "Who knows?"), case)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_comparisons_that_share_pieces_have_no_more_control_tokens(encoders: dict[str, ChatEncoder], name: str):
    encoder = encoders[name]
    expected = controls_in(encoder, encoder.encode(PROMPTS["cot"].render(*BENIGN)))
    for one, two in zip(CASES[::8], CASES[4::8], strict=False):
        group = [ResponsePair("Why?", *pair) for pair in itertools.permutations([BENIGN[1], one.text, two.text], 2)]
        for comparison, ids in zip(group, ComparisonEncoder(PROMPTS["cot"], encoder).encode(group), strict=True):
            assert controls_in(encoder, ids) == expected, (one, two)
            whole = encoder.encode(PROMPTS["cot"].render(comparison.instruction, comparison.first, comparison.second))
            assert encoder.tokenizer.decode(ids) == encoder.tokenizer.decode(whole), (one, two)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_half_a_surrogate_pair_is_refused_by_prompt_files(encoders: dict[str, ChatEncoder], name: str):
    """Prompt files reject it by name, no tokenizer produces it, and neither Parquet nor a tokenizer would accept it."""
    half = "[[\ud83dA]]"
    with pytest.raises(UnicodeEncodeError):
        pa.array([half])
    with pytest.raises(InputError, match="an unpaired surrogate"):
        encoders[name].encode(PROMPTS["cot"].render("Why?", half, "Who knows?"))
