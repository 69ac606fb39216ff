"""Claims about comparing mathematical answers: equal forms are equal and others aren't, on tables and real data."""

import itertools
import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from judges.math_answers import read_answer, settle
from judges.math_checker import MathChecker
from judges.verifier import Verifier
from tests.sampling import sampled
from tpo.config.judges import VerifierJudge
from tpo.config.recipes import ThinkPo

DATA = Path(__file__).parents[3] / "shared" / "data"
CHECKER = MathChecker()
BOXED = str(ThinkPo.model_fields["answer_pattern"].default)

EQUAL = [
    (r"\dfrac{1}{2}", r"\frac{1}{2}"),
    (r"x^2+2x+1", r"(x+1)^2"),
    (r"\text{Evelyn}", r"\text{Evelyn}"),
    (r"Evelyn", r"\text{Evelyn}"),
    (r"evelyn.", r"\text{Evelyn}"),
    (r"10\%", r"10"),
    (r"10%", r"0.1"),
    (r"0.1", r"10\%"),
    (r"12.5\%", r"12.5"),
    (r"12.5\%", r"\frac18"),
    (r"\frac{100}{3}\%", r"\frac13"),
    (r"10 percent", r"10\%"),
    (r"1,000", r"1000"),
    (r"1,234,567", r"1234567"),
    (r"10,\!080", r"10080"),
    (r"11,\! 111,\! 111,\! 100", r"11111111100"),
    (r"(1,000)", r"(1,0)"),
    (r"0.5", r"\frac{1}{2}"),
    (r"52_8", r"52_{8}"),
    (r"52", r"52_8"),
    (r"\$18.90", r"18.90"),
    (r"$18.90", r"\$18.90"),
    (r"\$32,\!348", r"32348"),
    (r"$36", r"\$36"),
    (r"36 dollars", r"\$36"),
    (r"C", r"\text{(C)}"),
    (r"(C)", r"\text{(C)}"),
    (r"\textbf{(C)}", r"\text{(C)}"),
    (r"\textbf{(C)}\ 42", r"\text{(C)}"),
    (r"C) 42", r"C"),
    (r"C. 42", r"(C)"),
    (r"18", r"18.00"),
    (r"18.", r"18"),
    (r"90^\circ", r"90"),
    (r"90°", r"90^\circ"),
    (r"90 degrees", r"90^{\circ}"),
    (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}"),
    (r"5.4 \text{ cents}", r"5.4"),
    (r"5.4", r"5.4 \text{ cents}"),
    (r"15\mbox{ cm}^2", r"15"),
    (r"15 \text{ cm}^2", r"15\mbox{ cm}^2"),
    (r"15 cm^2", r"15\mbox{ cm}^2"),
    (r"15 square centimeters", r"15\mbox{ cm}^2"),
    (r"864 \text{ square inches}", r"864 \mbox{ inches}^2"),
    (r"864", r"864 \mbox{ inches}^2"),
    (r"18 hours", r"18 \text{ hours}"),
    (r"5cm", r"5"),
    (r"1\frac{4}{5}", r"\frac{9}{5}"),
    (r"1 4/5", r"1\frac{4}{5}"),
    (r"137 \frac{1}{2}", r"137.5"),
    (r"-1\frac{1}{2}", r"-1.5"),
    (r"x=5", r"5"),
    (r"5", r"x=5"),
    (r"2+3=5", r"5"),
    (r"a+b=5", r"5"),
    (r"f(x)=2x", r"2x"),
    (r"y = 2x + 3", r"y = 2x+3"),
    (r"2x+3", r"y = 2x + 3"),
    (r"y=3+2x", r"y = 2x + 3"),
    (r"5x - 7y + 11z + 4 = 0", r"10x - 14y + 22z + 8 = 0"),
    (r"1,-2", r"-2,1"),
    (r"1 and -2", r"1,-2"),
    (r"x = 1 or x = -2", r"1,-2"),
    (r"3, 5, and 7", r"3, 5, 7"),
    (r"\{1,2\}", r"2,1"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"),
    (r"1 ± √19", r"1 \pm \sqrt{19}"),
    (r"\{1\pm\sqrt{5},-2\}", r"\{-2,1+\sqrt5,1-\sqrt5\}"),
    (r"(2,\infty)", r"x>2"),
    (r"x > 2", r"(2,\infty)"),
    (r"x \in [-2,7]", r"[-2,7]"),
    (r"[-2,7]", r"x \in [-2,7]"),
    (r"-2 \le x \le 7", r"x \in [-2,7]"),
    (r"(0,9) \cup (9,36)", r"(0,9)\cup(9,36)"),
    (r"(0,9) ∪ (9,36)", r"(0,9) \cup (9,36)"),
    (r"\left(\frac{3}{5},\frac{8}{3}\right]", r"(\frac35,\frac83]"),
    (
        r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}",
        r"\begin{bmatrix} -\frac13 \\ \frac23 \\ \frac53 \end{bmatrix}",
    ),
    (r"6 - 5i", r"6-5i"),
    (r"-5i+6", r"6-5i"),
    (r"\cot x", r"\frac{\cos x}{\sin x}"),
    (r"(a+5)(b+2)", r"ab+2a+5b+10"),
    (r"p - q", r"-q+p"),
    (r"2k+2", r"2(k+1)"),
    (r"\frac43", r"\frac{4}{3}"),
    (r"\frac 59", r"5/9"),
    (r"\frac9{19}", r"\frac{9}{19}"),
    (r"11\sqrt2", r"11\sqrt{2}"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    (r".0000672", r"6.72\times10^{-5}"),
    (r".35625", r"0.35625"),
    (r"0.333333", r"1/3"),
    (r"5!", r"120"),
    (r"2^10", r"1024"),
    (r"2^{10}", r"1024"),
    (r"2**10", r"1024"),
    (r"x^10", r"x^{10}"),
    (r"sqrt(2)", r"\sqrt{2}"),
    (r"2*pi", r"2\pi"),
    (r"2π", r"2\pi"),
    (r"\frac{3}{56}", r"3/56"),
    (r"\text{even}", r"even"),
    (r"an ellipse", r"\text{ellipse}"),
    (r"east", r"\text{east}"),
    (r"$\frac{1}{2}$", r"0.5"),
    (r"\(\frac{1}{2}\)", r"0.5"),
    (r"\[x = \frac{1}{2}\]", r"0.5"),
    (r"\boxed{\frac{1}{2}}", r"0.5"),
    (r"\boxed{\frac{\sqrt{\frac{1}{4}}}{1}}", r"0.5"),
    (r"So we get $x=2$ and then $y=\frac{1}{2}$.", r"0.5"),
    (r"the value is \frac{1}{2} of the pie", r"\frac12"),
    (r"He has 5 apples and eats 3 of them", r"3"),
    (r"He pays $5 and $7", r"7"),
    (r"-5", r"−5"),
    (r"+5", r"5"),
    (r"\infty", r"infinity"),
    (r"3:4", r"\frac34"),
    (r"\frac{20000}{\pi}", r"20000/\pi"),
    (r"8 \pi", r"8π"),
    (r"3R^2", r"3 R^2"),
    (r"No", r"\text{No}"),
    (r"2,5", r"5,2"),
]
UNEQUAL = [
    (r"\frac{3}{2}", r"\frac{1}{2}"),
    (r"\frac{1}{3}", r"\frac{2}{3}"),
    (r"3\sqrt{2}", r"5\sqrt{2}"),
    (r"\sqrt{2}", r"2"),
    (r"(3, 4)", r"(5, 4)"),
    (r"x^2+2x+2", r"(x+1)^2"),
    (r"2\pi", r"3\pi"),
    (r"\pi", r"2\pi"),
    (r"\text{Angela}", r"\text{Evelyn}"),
    (r"10\%", r"20\%"),
    (r"(1,234)", r"(1,235)"),
    (r"4210_{5}", r"4210_{7}"),
    (r"52_{8}", r"42"),
    (r"53_8", r"52_8"),
    (r"[1,2]", r"[0,2]"),
    (r"[1,2]", r"(1,2)"),
    (r"(3,4]", r"[3,4)"),
    (r"-\frac{1}{2}", r"\frac{1}{2}"),
    (r"\$5", r"5 cents"),
    (r"C", r"B"),
    (r"\text{(C)}", r"\text{(B)}"),
    (r"(B) 42", r"C"),
    (r"B", r"\text{(C)}"),
    (r"80^\circ", r"90^\circ"),
    (r"90^\circ", r"\frac{\pi}{2}"),
    (r"\frac{270}7\text{ degrees}", r"\frac{271}{7}"),
    (r"5.5", r"5.4 \text{ cents}"),
    (r"863", r"864 \mbox{ inches}^2"),
    (r"18 minutes", r"18 \text{ hours}"),
    (r"5 cm", r"5 m"),
    (r"1\frac{4}{5}", r"\frac{4}{5}"),
    (r"x=5", r"x=6"),
    (r"x = 5", r"y = 5"),
    (r"y=2x-3", r"y = 2x + 3"),
    (r"0", r"5x - 7y + 11z + 4 = 0"),
    (r"1, -2", r"1, 2"),
    (r"(1,2)", r"(2,1)"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \frac{\pi}{3})"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}"),
    (r"(2,\infty)", r"x \ge 2"),
    (r"-2 < x < 7", r"x \in [-2,7]"),
    (r"[-2,8]", r"x \in [-2,7]"),
    (r"(0,9) \cup (9,35)", r"(0,9)\cup(9,36)"),
    (r"(0,36)", r"(0,9)\cup(9,36)"),
    (r"\left(\frac{3}{5},\frac{8}{3}\right)", r"(\frac35,\frac83]"),
    (r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}", r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}"),
    (r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}", r"\begin{pmatrix} -1 & 0 \\ 0 & 1 \end{pmatrix}"),
    (r"6+5i", r"6-5i"),
    (r"q-p", r"p-q"),
    (r"2k", r"k"),
    (r"5r^5", r"r^5"),
    (r"70 \sqrt{2}", r"7\sqrt{2}"),
    (r".0000672", r"0.0000668"),
    (r"0.33", r"\frac13"),
    (r"0.3", r"\frac13"),
    (r"1000001", r"1000002"),
    (r"5!", r"5"),
    (r"e", r"\pi"),
    (r"\text{even}", r"\text{odd}"),
    (r"\text{ellipse}", r"\text{hyperbola}"),
    (r"west", r"\text{east}"),
    (r"5", r"\text{east}"),
    (r"$$\frac{1}{3}$$", r"0.5"),
    (r"-5", r"5"),
    (r"red hat", r"blue hat"),
    (r"\infty", r"-\infty"),
    (r"1,2", r"12"),
    (r"Yes", r"\text{No}"),
    (r"\frac{1}{2}", r"\frac{1}{2}x"),
    (r"\emptyset", r"0"),
]


@pytest.mark.parametrize(("answer", "reference"), EQUAL)
def test_equal_answers_are_equal_however_they_are_written(answer: str, reference: str):
    assert CHECKER.equal(answer, reference) is True


@pytest.mark.parametrize(("answer", "reference"), UNEQUAL)
def test_another_answer_is_not_equal(answer: str, reference: str):
    assert CHECKER.equal(answer, reference) is False


@pytest.mark.parametrize(
    "piece", ["\\[", "$", "$$", "\\text{", "\\boxed{", "(", "1,", "a ", "{", "\\(", "=", "1/", "**", "`"]
)
def test_a_long_response_without_breaks_is_parsed_quickly(piece: str):
    started = time.process_time()
    read_answer(piece * 20_000)
    assert time.process_time() - started < 5


# On the answers of MATH-500 and GSM8K, where they are at hand


def rows_of(name: str) -> list[dict[str, Any]]:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not here")
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def reworded(answer: str) -> Iterator[str]:
    """Other ways of writing an answer."""
    yield from (f"${answer}$", rf"\({answer}\)", rf"\[ {answer} \]", rf"So it is \boxed{{{answer}}}.", f"**{answer}**")
    yield from (f"{answer}.", answer.replace(" ", ""), answer.replace(r"\frac", r"\dfrac"))
    yield answer.replace(r"\left", "").replace(r"\right", "").replace(r"\mbox", r"\text")
    yield re.sub(r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}", answer)
    yield re.sub(r"^(-?)\\frac\{(\d+)\}\{(\d+)\}$", r"\1\2/\3", answer)
    if "\\text" not in answer:
        yield from (f"we find ${answer}$ in the end", f"the answer is {answer}")


def test_every_answer_of_math_500_equals_its_rewordings():
    answers = dict.fromkeys(row["answer"] for row in rows_of("math_500.jsonl"))
    missed = [(form, answer) for answer in answers for form in reworded(answer) if not CHECKER.equal(form, answer)]
    assert not missed


ONE_NUMBER_TWICE = {
    "40_9",
    "90^\\circ",
    "120^\\circ",
    "30^\\circ",
    "36^\\circ",
    "\\$36",
    "10,\\!080",
    "15\\mbox{ cm}^2",
}
"""Answers of MATH-500 that equal another one except for base, unit or typography."""


def test_no_answer_of_math_500_equals_another_problems():
    answers = list(dict.fromkeys(row["answer"] for row in rows_of("math_500.jsonl")))
    pairs = [(one, other) for one, other in itertools.combinations(answers, 2) if not {one, other} & ONE_NUMBER_TWICE]
    pairs = sampled("pairs of MATH-500", pairs, 12_000)
    same = [pair for pair in pairs if pair[0].replace(" ", "") == pair[1].replace(" ", "")]
    settled = {pair: settle(*map(read_answer, pair)) for pair in pairs}
    assert [pair for pair in pairs if settled[pair]] == same
    # Algebra takes a few hundredths of a second a pair: some of the 22,000.
    algebra = random.Random(0).sample([pair for pair in pairs if settled[pair] is None], 200)
    assert not [pair for pair in algebra if CHECKER.equal(*pair) is not False]


def test_the_boxed_answer_of_each_solution_of_math_500_is_right():
    verifier = Verifier(VerifierJudge(match="math", answer_pattern=BOXED))
    rows = rows_of("math_500.jsonl")
    assert not [row for row in rows if not CHECKER.equal(verifier.answer(row["solution"]), row["answer"])]


def test_answers_of_gsm8k_are_equal_exactly_if_their_numbers_are():
    references = [row["answer"].split("####")[1].strip() for row in rows_of("gsm8k_test.jsonl")]
    for reference, other in itertools.pairwise(references):
        plain = reference.replace(",", "")
        for form in (plain, f"{plain}.00", f"\\${reference}", f"${reference}", f"He has {reference} apples left."):
            assert CHECKER.equal(form, reference) is True
        assert CHECKER.equal(other, reference) is (other.replace(",", "") == plain)
