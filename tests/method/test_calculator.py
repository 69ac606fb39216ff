"""Claims about the calculator: what it makes a model write, with several tokenizers, and what it leaves alone."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from tpo.method.arithmetic import ExpressionError, evaluate, format_result
from tpo.method.calculator import Calculator, Style, open_annotation

MINIATURE = Path(__file__).parents[2] / "tpo" / "miniature" / "seed_model" / "tokenizer.json"

TEXTS = [
    f"So {a} and {b} make {a}+{b}=<<{a}+{b}={a + b}>>{a + b} kites = [ {a} + {b} = {a + b}] {a + b}. "
    f"Then {a * b}/{a}=<<{a * b}/{a}={b}.5>>{b}, [ {a * b} * 0.5 = {a * b / 2}] é."
    for a in range(1, 40, 3)
    for b in range(2, 90, 7)
]


@dataclass(frozen=True)
class Plain:
    """A tokenizer without special tokens."""

    fast: Any
    """The library's tokenizer."""

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return list(self.fast.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        return str(self.fast.decode(list(ids), skip_special_tokens=False))


def trained(before: Any, decoder: Any, *, size: int, alphabet: list[str]) -> Plain:
    """A BPE tokenizer of `TEXTS`."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = before
    fast.decoder = decoder
    fast.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    return Plain(fast)


BYTES = pre_tokenizers.ByteLevel.alphabet()
ASCII = [chr(code) for code in range(32, 127)] + ["▁"]


def with_bytes(*before: Any) -> Any:
    return pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


TOKENIZERS = {
    "miniature": Plain(FastTokenizer.from_file(str(MINIATURE))),
    # Like Llama 3's: digits in threes, >> one token.
    "threes": trained(
        with_bytes(pre_tokenizers.Split(Regex(r"[0-9]{1,3}| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\s+"), "isolated")),
        decoders.ByteLevel(),
        size=600,
        alphabet=BYTES,
    ),
    # Nothing is split: "=1", "5>>" and whole annotations are tokens.
    "merging": trained(with_bytes(), decoders.ByteLevel(), size=900, alphabet=BYTES),
    # Like Llama 2's and T5's: words, the first included, begin with a mark for the space before them.
    "marks": trained(pre_tokenizers.Metaspace(), decoders.Metaspace(), size=400, alphabet=ASCII),
    "digits and marks": trained(
        pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True)]),
        decoders.Metaspace(),
        size=300,
        alphabet=ASCII,
    ),
}

tokenizers = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
styles = pytest.mark.parametrize("style", ["gsm8k", "t5"])

operands = st.integers(0, 4000).map(str) | st.sampled_from(["0.5", ".25", "12.50", "(3 + 4)", "20%", "1,250"])


@st.composite
def expressions(draw: st.DrawFn) -> str:
    """Expressions with spaces, some without a value and some with a negative one."""
    parts = [draw(operands)]
    for _ in range(draw(st.integers(0, 3))):
        parts += [draw(st.sampled_from("+-*/")), draw(operands)]
    return " ".join(parts)


def opened(expression: str, style: Style) -> str:
    return f"[ {expression} =" if style == "t5" else f"<<{expression.replace(' ', '')}="


def expected(expression: str, style: Style) -> str:
    """What must follow, computed independently of the calculator."""
    try:
        result = format_result(evaluate(expression))
    except ExpressionError:
        return ""
    if style == "t5":
        return f" {result}]"
    return "" if result.startswith("-") else f"{result}>>"


def obeyed(tokenizer: Plain, style: Style, ids: list[int]) -> list[int]:
    """The output after the model wrote `ids` and everything forced since."""
    calculator, ids = Calculator(tokenizer, style), list(ids)
    for _ in range(60):
        token = calculator.next_token(ids)
        if token is None:
            return ids
        ids.append(token)
    pytest.fail("the calculator does not end")


@tokenizers
@styles
@settings(max_examples=60)
@given(expression=expressions(), before=st.sampled_from(["", "so ", "x = $", "<<1+1=2>>2 [ 1 + 1 = 2] 2, é "]))
def test_the_result_and_the_closing_marker_are_forced(
    tokenizer: Plain, style: Style, expression: str, before: str
) -> None:
    text = f"{before}{opened(expression, style)}"
    ids = tokenizer.encode(text)
    forced = obeyed(tokenizer, style, ids)
    assert tokenizer.decode(forced) == tokenizer.decode(ids) + expected(expression, style)


@pytest.mark.parametrize("name", ["miniature", "threes", "digits and marks"])
@styles
@given(first=st.integers(0, 9999), second=st.integers(1, 999))
def test_forced_tokens_are_those_that_the_tokenizer_would_use(name: str, style: Style, first: int, second: int) -> None:
    tokenizer, expression = TOKENIZERS[name], f"{first} * {second}"
    ids = tokenizer.encode(opened(expression, style))
    whole = tokenizer.encode(opened(expression, style) + expected(expression, style))
    assert obeyed(tokenizer, style, ids) == whole


@pytest.mark.parametrize("name", ["miniature", "threes", "merging"])
@styles
@settings(max_examples=40)
@given(expression=expressions(), cuts=st.sets(st.integers(1, 60)))
def test_the_tokenization_of_the_expression_does_not_matter(
    name: str, style: Style, expression: str, cuts: set[int]
) -> None:
    tokenizer, text = TOKENIZERS[name], f"so é {opened(expression, style)}"
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    ids = [token for a, b in itertools.pairwise(places) for token in tokenizer.encode(text[a:b])]
    assert tokenizer.decode(obeyed(tokenizer, style, ids)) == text + expected(expression, style)


@tokenizers
@styles
@settings(max_examples=40)
@given(
    parts=st.lists(st.sampled_from(["so ", "<<7+8=", "[ 7 + 8 =", "15>>", " 15]", "=", "1", ">", "é", " ", "<<1/0="])),
    loose=st.lists(st.integers(0, 299), max_size=8),
)
def test_the_token_does_not_depend_on_earlier_calls(
    tokenizer: Plain, style: Style, parts: list[str], loose: list[int]
) -> None:
    ids = [token for part in parts for token in tokenizer.encode(part)] + loose
    for stride in (1, 2, 3):
        calculator = Calculator(tokenizer, style)
        for end in range(0, len(ids) + 1, stride):
            assert calculator.next_token(ids[:end]) == Calculator(tokenizer, style).next_token(ids[:end])


@tokenizers
@styles
def test_a_request_that_starts_again_is_read_again(tokenizer: Plain, style: Style) -> None:
    ids = tokenizer.encode(f"so {opened('7 + 8', style)}")
    calculator = Calculator(tokenizer, style)
    first = calculator.next_token(ids)
    assert first is not None
    assert calculator.next_token([*ids, first]) is not None or tokenizer is TOKENIZERS["merging"]
    assert calculator.next_token(ids[:2]) == Calculator(tokenizer, style).next_token(ids[:2])
    assert calculator.next_token(ids) == first


@tokenizers
@styles
@settings(max_examples=40)
@given(text=st.text(st.sampled_from("<>[]=+ 123é\n"), max_size=40))
def test_existing_text_is_kept_and_at_most_a_result_is_added(tokenizer: Plain, style: Style, text: str) -> None:
    ids = tokenizer.encode(text)
    forced = tokenizer.decode(obeyed(tokenizer, style, ids))
    assert forced.startswith(tokenizer.decode(ids))
    found = open_annotation(tokenizer.decode(ids), style)
    assert forced.removeprefix(tokenizer.decode(ids)) == ("" if found is None else found.due)


@tokenizers
@styles
def test_a_long_output_before_the_annotation_does_not_matter(tokenizer: Plain, style: Style) -> None:
    ids = tokenizer.encode("so it is é " * 200 + opened("7 + 8", style))
    assert tokenizer.decode(obeyed(tokenizer, style, ids)).endswith(opened("7 + 8", style) + expected("7 + 8", style))


@tokenizers
@styles
@pytest.mark.parametrize("unit", ["1+", "1 + ", "("])
def test_an_expression_that_is_too_long_is_left_alone(tokenizer: Plain, style: Style, unit: str) -> None:
    ids = tokenizer.encode(opened(unit * 200 + "1", style))
    assert Calculator(tokenizer, style).next_token(ids) is None


def test_a_correct_result_begun_in_the_token_of_the_equals_sign_is_finished() -> None:
    tokenizer = TOKENIZERS["merging"]
    (merged,) = tokenizer.encode("=1")
    assert tokenizer.decode(obeyed(tokenizer, "gsm8k", [*tokenizer.encode("<<7+8"), merged])) == "<<7+8=15>>"
    assert Calculator(tokenizer, "gsm8k").next_token([*tokenizer.encode("<<7+9"), merged]) is not None
    assert Calculator(tokenizer, "gsm8k").next_token([*tokenizer.encode("<<7+18"), merged]) is None


@tokenizers
def test_a_model_that_diverged_is_left_alone(tokenizer: Plain) -> None:
    calculator = Calculator(tokenizer, "gsm8k")
    ids = tokenizer.encode("so <<7+8=")
    assert calculator.next_token(ids) is not None
    ids += tokenizer.encode("2")[-1:]
    assert calculator.next_token(ids) is None
    assert calculator.next_token([*ids, *tokenizer.encode("1")[-1:]]) is None


@dataclass
class Counted:
    """A tokenizer that counts the tokens it decodes."""

    inner: Plain
    """The tokenizer."""
    decoded: int = 0
    """Tokens that were decoded."""

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return self.inner.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        self.decoded += len(ids)
        return self.inner.decode(ids)


def test_tokens_without_an_equals_sign_are_decoded_once_for_all_requests() -> None:
    counted, equals = Counted(TOKENIZERS["threes"]), dict[int, bool]()
    ids = counted.encode("so 7 and 8 make 15 kites, <<no [ no " * 50)
    for _ in range(3):
        calculator = Calculator(counted, "gsm8k", equals=equals)
        for end in range(len(ids) + 1):
            assert calculator.next_token(ids[:end]) is None
    assert counted.decoded == len(set(ids))


def test_prose_after_an_equals_sign_is_decoded_only_once_more() -> None:
    counted = Counted(TOKENIZERS["threes"])
    calculator = Calculator(counted, "gsm8k")
    ids = counted.encode("<<1/0= x = 7" + " kites" * 500)
    for end in range(len(ids) + 1):
        calculator.next_token(ids[:end])
    assert counted.decoded < 100


@pytest.mark.parametrize(
    ("text", "style", "due"),
    [
        ("so <<48/2=", "gsm8k", "24>>"),
        ("so <<48/2=2", "gsm8k", "4>>"),
        ("so <<48/2=24", "gsm8k", ">>"),
        ("so <<48/2=24>", "gsm8k", ">"),
        ("so <<48/2=24>>", "gsm8k", None),
        ("so <<48/2=24>>24", "gsm8k", None),
        ("so <<48/2=25", "gsm8k", None),
        ("so <<48/2= ", "gsm8k", None),
        ("so <<48/2=24=", "gsm8k", None),
        ("so <<48/2", "gsm8k", None),
        ("<<1/3=", "gsm8k", "0.33>>"),
        ("<<8/3*3=", "gsm8k", "8>>"),
        ("<<2-5=", "gsm8k", None),
        ("<<5/0=", "gsm8k", None),
        ("<<x=", "gsm8k", None),
        ("<<=", "gsm8k", None),
        ("<<9**9**9=", "gsm8k", None),
        ("48/2=", "gsm8k", None),
        ("< <48/2=", "gsm8k", None),
        ("<<<48/2=", "gsm8k", "24>>"),
        ("<<1+<<48/2=", "gsm8k", "24>>"),
        ("<<48/2=24>>24=", "gsm8k", None),
        ("[ 48 / 2 =", "gsm8k", None),
        ("so [ 48 / 2 =", "t5", " 24]"),
        ("so [ 48 / 2 = ", "t5", "24]"),
        ("so [ 48 / 2 = 24", "t5", "]"),
        ("so [ 48 / 2 = 24]", "t5", None),
        ("so [ 48 / 2 =24", "t5", None),
        ("so [ 2 - 5 =", "t5", " -3]"),
        ("so [48 / 2 =", "t5", None),
        ("so [ 48 / 2=", "t5", None),
        ("so [ 1 / 0 =", "t5", None),
        ("so [ 1 + 1 = 2] 2 =", "t5", None),
        ("<<48/2=", "t5", None),
        ("", "t5", None),
        ("", "gsm8k", None),
    ],
)
def test_open_annotations_at_the_end_of_a_text(text: str, style: Style, due: str | None) -> None:
    found = open_annotation(text, style)
    assert (None if found is None else found.due) == due
    assert found is None or text.endswith(found.so_far)
