"""Claims about reading GSM8K's rows, their annotations and answers, and the two forms of their text."""

import json
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gsm8k_annotations import annotations, from_t5
from tpo.config.data import FileSource
from tpo.data.gsm8k import final_answer, read_row, to_t5, write_prompts
from tpo.data.prompt_files import read_prompt_rows

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"

KITES = "Two kites cost 2*$4 = $<<2*4=8>>8\nThe string is $<<3=3>>3, so all is 8+3=<<8+3=11>>11 dollars.\n#### 11"
KITES_FOR_T5 = (
    "Two kites cost 2 * $ 4 = $ [ 2 * 4 = 8] 8. The string is $ 3, so all is 8 + 3 = [ 8 + 3 = 11] 11 dollars. #### 11"
)


def row(answer: str) -> dict[str, object]:
    return {"question": "How much are the kites?", "answer": answer}


def test_a_row_is_a_question_a_rationale_and_a_reference() -> None:
    problem = read_row(row("It is <<900+400=1300>>1,300 in all\n#### 1,300"))
    assert problem.question == "How much are the kites?"
    assert problem.rationale == "It is <<900+400=1300>>1,300 in all"
    assert problem.reference == "1300"


@pytest.mark.parametrize(
    ("broken", "pattern"),
    [
        ({"question": "Why?"}, r"a row with \['question'\]"),
        ({"question": "Why?", "answer": 7}, "expected text in question and answer"),
        (row("no answer"), "a last line such as '#### 72'"),
        (row("#### 7 kites"), "ends in '#### 7 kites'"),
        (row("#### ..,"), "expected a last line"),
        (row(""), "ends in ''"),
    ],
)
def test_a_row_in_another_form_is_rejected(broken: dict[str, object], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        read_row(broken)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so\n#### 72", "72"),
        ("#### -1,250.50", "-1250.50"),
        ("#### 18.", "18"),
        ("# 3", "3"),
        ("#### 5 and then #### 6", "6"),
        ("kite # 2 wins\n#### 4", "4"),
        ("#### 5\n#### 1.2.3", None),
        ("#### $5", None),
        ("####5", None),
        ("#### ,", None),
        ("#### .", None),
        ("the answer is 5", None),
        ("#### ٣", None),
        ("#### " + "9" * 5000, None),
        ("", None),
    ],
)
def test_the_last_number_after_a_hash_is_the_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@given(st.text(st.sampled_from("# 0123456789.,-x\n")))
def test_an_answer_is_a_finite_number_or_none(text: str) -> None:
    answer = final_answer(text)
    assert answer is None or Fraction(answer) == Fraction(str(answer))


def test_a_row_of_hashes_takes_no_time() -> None:
    start = time.perf_counter()
    assert final_answer("#" * 1_000_000) is None
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize(
    ("text", "agreement", "calculated"),
    [
        ("<<7+8=15>>", "identical", "15"),
        ("<<3*.5=1.5>>", "identical", "1.5"),
        ("<<2*4=8.00>>", "equal", "8"),
        ("<<1/2=.5>>", "equal", "0.5"),
        ("<<3/4=3/4>>", "equal", "0.75"),
        ("<<900+400=1,300>>", "equal", "1300"),
        ("<<1/8=.125>>", "rounded", "0.12"),
        ("<<1/3=0.33333>>", "rounded", "0.33"),
        ("<<1/3=0.333>>", "different", "0.33"),
        ("<<7+8=16>>", "different", "15"),
        ("<<7+8=>>", "different", "15"),
        ("<<7+8=15=15>>", "different", "15"),
        ("<<7+8=many>>", "different", "15"),
        ("<<x+8=15>>", "no value", None),
        ("<<8/0=0>>", "no value", None),
        ("<<=5>>", "no value", None),
    ],
)
def test_how_an_annotation_agrees_with_the_calculator(text: str, agreement: str, calculated: str | None) -> None:
    (found,) = annotations(f"so {text}15 kites")
    assert (found.agreement, found.calculated) == (agreement, calculated)
    assert (found.reason is None) is (agreement != "no value")


@pytest.mark.parametrize("text", ["", "<<7+8>>", "<<7+8=15", "7+8=15>>", "< <7+8=15>>", "<<7+8=15> >", "<<<>>"])
def test_text_that_is_not_an_annotation_is_skipped(text: str) -> None:
    assert annotations(text) == []


def test_the_inner_of_two_open_annotations_counts() -> None:
    assert [found.expression for found in annotations("<<7+<<8+1=9>>=5>>")] == ["8+1"]


def test_the_form_for_t5_has_one_line_and_spaces() -> None:
    assert to_t5(KITES) == KITES_FOR_T5


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("<<1+2+3=6>>6", "[ 1 + 2 + 3 = 6] 6."),
        ("<<2-5=-3>>-3", "[ 2 - 5 = -3] -3."),
        ("<<2*(-3)=-6>>-6", "[ 2 * (-3) = -6] -6."),
        ("<<60//8=7>>7", "[ 60 // 8 = 7] 7."),
        ("<<5 + 3 = 8>>8", "[ 5 + 3 = 8] 8."),
        ("at 5:30, or:7", "at 5:30, or: 7."),
        ("one. \n\n two\n#### 2", "one. two. #### 2"),
        ("", ""),
    ],
)
def test_signs_colons_and_empty_lines_in_the_form_for_t5(answer: str, text: str) -> None:
    assert to_t5(answer) == text


def test_prose_in_brackets_is_not_an_annotation() -> None:
    assert from_t5("that is [1 + (30 / 60)] = 1.5, [ so ] hours") == "that is [1 + (30 / 60)] = 1.5, [ so ] hours"


numbers = st.integers(0, 999).map(str) | st.sampled_from(["0.5", ".25", "12.50"])


@st.composite
def steps(draw: st.DrawFn) -> str:
    """A line of a rationale: prose, prices and colons around an annotation of a few operands."""
    operands = draw(st.lists(numbers, min_size=1, max_size=4))
    operators = st.sampled_from(["+", "-", "*", "/", "//"])
    expression = operands[0] + "".join(draw(operators) + operand for operand in operands[1:])
    (found,) = annotations(f"<<{expression}=?>>")
    result = found.calculated or "0"
    before = draw(st.sampled_from(["so ", "$", "x = $", "it is:", "a-b/c ", f"{expression}=", "[see (2)] "]))
    return f"{before}<<{expression}={result}>>{result}{draw(st.sampled_from(['', '.', ' kites', ': 5', '%']))}"


answers = st.builds(
    lambda lines, whole: "\n".join([*lines, f"#### {whole}"]), st.lists(steps(), max_size=4), st.integers(-999, 9999)
)


def essence(text: str) -> tuple[list[tuple[str, str]], str | None]:
    """Annotations that T5's form keeps, and the final answer."""
    found = [(annotation.expression, annotation.result) for annotation in annotations(text)]
    return [
        annotation for annotation in found if not (annotation[0].isdigit() and annotation[1].isdigit())
    ], final_answer(text)


@given(answers)
def test_annotations_and_answers_survive_the_form_for_t5(answer: str) -> None:
    assert essence(from_t5(to_t5(answer))) == essence(answer)
    assert final_answer(to_t5(answer)) == final_answer(answer)


@given(answers)
def test_the_form_for_t5_survives_a_round_trip(answer: str) -> None:
    assert to_t5(from_t5(to_t5(answer))) == to_t5(answer)


@given(st.text(st.sampled_from("<>[]=#$:. \n+-*/0159x"), max_size=60))
def test_any_text_can_be_converted_both_ways(text: str) -> None:
    assert isinstance(from_t5(to_t5(text)), str)
    assert "\n" not in to_t5(text)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no real rows here")
@pytest.mark.parametrize(("name", "rows"), [("gsm8k_train.jsonl", 6705), ("gsm8k_test.jsonl", 1319)])
def test_real_rows_are_read_and_every_result_is_right(name: str, rows: int) -> None:
    # Some rows contain Unicode line separators, at which splitlines would split them.
    lines = (SHARED_DATA / name).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert len(lines) == rows
    for content in map(json.loads, lines):
        problem = read_row(content)
        found = annotations(problem.rationale)
        assert len(found) == problem.rationale.count("<<") == problem.rationale.count(">>")
        assert {annotation.agreement for annotation in found} <= {"identical", "equal", "rounded"}
        assert final_answer(content["answer"]) == problem.reference
        assert essence(from_t5(to_t5(content["answer"]))) == essence(content["answer"])


def test_rows_become_prompts_whose_demonstration_ends_in_the_answer(tmp_path: Path):
    rows = [{"question": "How\u2028many?", "answer": "48/2 = <<48/2=24>>24\n#### 1,024"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert write_prompts(tmp_path / "rows.jsonl", tmp_path / "made" / "prompts.jsonl") == 1
    source = FileSource(
        path=tmp_path / "made" / "prompts.jsonl", reference_column="reference", demonstration_column="demonstration"
    )
    (found,) = read_prompt_rows(source, Path(source.path))
    assert (found.instruction, found.reference, found.demonstration) == ("How\u2028many?", "1024", rows[0]["answer"])
    (tmp_path / "rows.jsonl").write_text('{"question": "How many?", "answer": "24"}\n')
    with pytest.raises(ValueError, match=r"line 1: an answer that ends in '24'"):
        write_prompts(tmp_path / "rows.jsonl", tmp_path / "prompts.jsonl")
