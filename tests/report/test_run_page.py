import dataclasses
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpo.config.run import RunConfig
from tpo.records import Epoch, JudgeHealth, Message
from tpo.report.page import printable, subscripted
from tpo.report.run_page import Example, findings, headline, render_report
from tpo.report.summary import Interval, ModelRow, Summary
from tpo.storage.ledger import Spending

HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "</pre></details></style></title></svg><svg onload=\"document.title='owned'\">",
    '" autofocus onfocus="document.title=\'owned\'" x="',
    "<a href=\"data:text/html,<script>parent.document.title='owned'</script>\">x</a><iframe src=javascript:alert(1)>",
    "{{ 7 * 7 }} {% raw %} $x^2$ \\frac <!-- <link rel=stylesheet href=https://example.org/x.css>",
)
ALL_HOSTILE = "\n".join(HOSTILE)


HEALTH = JudgeHealth(
    responses=3200, unscored={"no_verdict": 7}, comparisons=22400, unparsable=11, refused=5, ties=3, first_rate=0.531,
    swap_agreement=0.877, length_correlation=0.21, reference_agreement=0.934, reference_pairs=4711,
    score_quantiles=[-2.0, -1.5, -1.0, -0.5, 0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0],
)  # fmt: skip


def interval(value: float, half: float = 0.02, n: int = 600) -> Interval:
    return Interval(value, value - half, value + half, n)


def model_row(model: str, iteration: int, score: float | None, **values: Any) -> ModelRow:
    """A row with all values known if it has a score, and with none known if not."""
    known = score is not None
    level = score or 0.0
    made = known and iteration > 0
    row = ModelRow(
        model=model,
        iteration=iteration,
        score=interval(level) if known else None,
        win_rate=interval(level - 0.1) if known and model != "M_0" else None,
        gain=interval(level - 0.63) if known else None,
        gain_over_direct=interval(level - 0.72) if known else None,
        by_category={"dial": interval(level - 0.03), "relay": interval(level - 0.05)} if known else {},
        by_difficulty={"1": interval(level - 0.01)} if known else {},
        validation_score=level - 0.013 if known else None,
        parse_error_rate=0.123,
        thought_chars=345.4,
        response_chars=567.4,
        rho=0.35 if made else None,
        regular_pairs=271 if made else None,
        error_pairs=28 if made else None,
        dropped={"small_margin": 93, "tie": 8} if made else {},
        judge=HEALTH if made else None,
        chosen_epoch=2 if made else None,
        seconds={"samples": 41.3, "train": 8.7} if made else {},
    )
    return dataclasses.replace(row, **values)


DIRECT, SEED, FIRST, SECOND = (
    model_row("M_0 direct", 0, 0.72),
    model_row("M_0", 0, 0.63),
    model_row("M_1", 1, 0.81),
    model_row("M_2", 2, 0.942),
)
FULL = (DIRECT, SEED, FIRST, SECOND)
EXAMPLE = Example(
    iteration=1, kind="regular", instruction="Where is the dial?", reference="4", category="dial", difficulty=3,
    chosen_thought="3 up 1 is 4 .", chosen_response="the answer is 4 .", chosen_score=1.0, chosen_tokens=17,
    rejected_thought="hm .", rejected_response="the answer is 7 .", rejected_score=0.0, rejected_tokens=13,
    rejected_error=None, margin=2.31,
)  # fmt: skip


def summary_of(*rows: ModelRow) -> Summary:
    return Summary("laptop", 0, 0.95, rows)


def page_of(*rows: ModelRow, examples: Sequence[Example] = (), config: Mapping[str, Any] | None = None) -> str:
    made = [row.iteration for row in rows if row.regular_pairs is not None]
    return render_report(
        summary_of(*rows),
        config=RunConfig().model_dump(mode="json") if config is None else config,
        epochs={t: [Epoch(e, 9 * e, 0.6 / e, 0.5, 0.7) for e in (1, 2, 3)] for t in made},
        margins={t: [1.5, 2.0, 2.5] for t in made},
        standings={t: [{"epoch": e, "score": 0.7 if e else None, "parse_rate": 0.95} for e in range(4)] for t in made},
        examples=examples,
    )


def test_spending_is_shown_and_left_out_if_there_was_none():
    line = Spending("sample", 400, 3200, 12_100, 84_793, 125.0, 0.0, 250.0, 0.0)
    total = Spending("total", 400, 3200, 12_100, 84_793, 7325.0, 58_600.0, 250.0, 31.5)
    summary = summary_of(*FULL)
    page = render_report(summary, config={}, epochs={}, margins={}, standings={}, examples=[], spent=[line, total])
    assert 'data-spent="sample"' in page
    for shown in ("84,793", "2 min", "2 h 02", "16 h 17", "4 min", "31.50"):
        assert shown in page
    assert 'id="spent"' not in page_of(*FULL)


class Reader(HTMLParser):
    """The elements of a page with their attributes, and the text in elements of one class."""

    def __init__(self, page: str, wanted: str = "text") -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._wanted, self._inside = wanted, False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if dict(attrs).get("class") == self._wanted:
            self._inside = True
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[-1] += data


@cache
def hostile_page() -> str:
    texts: dict[str, Any] = {
        field.name: ALL_HOSTILE
        for field in dataclasses.fields(Example)
        if field.name.endswith(("thought", "response", "error"))
        or field.name in ("instruction", "reference", "category")
    }
    row = dataclasses.replace(
        FIRST,
        by_category={text: interval(0.5) for text in HOSTILE},
        dropped={ALL_HOSTILE: 3},
        seconds={ALL_HOSTILE: 1.0},
    )
    seed = dataclasses.replace(SEED, by_category={text: interval(0.9) for text in HOSTILE})
    example = dataclasses.replace(EXAMPLE, **texts)
    return page_of(DIRECT, seed, row, examples=[example], config={"name": ALL_HOSTILE, ALL_HOSTILE: "prompt"})


def test_nothing_that_a_model_or_a_data_set_wrote_becomes_markup() -> None:
    page = hostile_page()
    reader = Reader(page)
    assert {tag for tag, _ in reader.elements}.isdisjoint(
        {"script", "iframe", "object", "embed", "img", "link", "base"}
    )
    assert not [name for _, attributes in reader.elements for name in attributes if name.startswith("on")]
    assert reader.texts.count(ALL_HOSTILE) == 4
    assert "49" not in "".join(reader.texts)


def test_earlier_turns_are_shown_before_the_instruction_and_are_text() -> None:
    earlier = [Message(role=role, content=f"{role} {ALL_HOSTILE}") for role in ("system", "user", "assistant")]
    page = page_of(examples=[dataclasses.replace(EXAMPLE, earlier=earlier), EXAMPLE])
    assert Reader(page, "said").texts == [turn["content"] for turn in earlier]
    assert page.count('class="earlier"') == 1 and page.index('class="earlier"') < page.index('class="asked"')
    assert {tag for tag, _ in Reader(page).elements}.isdisjoint({"script", "iframe", "img", "link"})


@pytest.mark.parametrize(
    "make", [hostile_page, lambda: page_of(*FULL, examples=[EXAMPLE] * 3)], ids=["hostile", "full"]
)
def test_the_page_requests_nothing_from_the_network(make: Callable[[], str]) -> None:
    page = make()
    for tag, attributes in Reader(page).elements:
        for name in ("href", "xlink:href", "src", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "report/index.html")), (tag, attributes)
        assert re.fullmatch(r"[^(]*(url\(#[^)]*\)[^(]*)?", re.sub(r"var\(|scale\(", "", attributes.get("style") or ""))
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in page


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_a_browser_runs_nothing_from_a_hostile_page(tmp_path: Path) -> None:
    # Remove the page's own policy, so that escaping alone has to hold.
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", hostile_page())
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = ["chromium", *options, "--dump-dom", (tmp_path / "report.html").as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert "<title>Run laptop" in seen and "<title>owned" not in seen


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=[]), min_size=1), st.text(min_size=1))
def test_any_text_is_shown_as_it_was_written(thought: str, response: str) -> None:
    page = page_of(examples=[dataclasses.replace(EXAMPLE, chosen_thought=thought, chosen_response=response)])
    page.encode()
    assert Reader(page).texts[:2] == [printable(thought), printable(response)]


def test_every_number_of_the_table_is_on_the_page() -> None:
    page = page_of(*FULL)
    found = re.search(r'<tr data-model="M_2".*?</tr>', page, re.DOTALL)
    made = re.search(r'<tr data-made="M_2".*?</tr>', page, re.DOTALL)
    assert found and made
    for number in (
        "94.2", "92.2–96.2", "+31.2", "+29.2 to +33.2", "+22.2", "+20.2 to +24.2", "84.2", "82.2–86.2", "12.3 %", "345",
        "567", "92.9",
    ):  # fmt: skip
        assert number in found.group()
    for number in ("271", "28", "101", "93 small margin, 8 tie", "0.35", "2", "41", "8.7", "50"):
        assert f">{number}<" in made.group()


def test_the_same_input_gives_the_same_bytes() -> None:
    assert page_of(*FULL, examples=[EXAMPLE]) == page_of(*FULL, examples=[EXAMPLE])


def test_all_twenty_examples_are_shown() -> None:
    examples = [dataclasses.replace(EXAMPLE, chosen_response=f"response number {i}") for i in range(20)]
    page = page_of(examples=examples)
    assert page.count('<article class="pair">') == 20
    assert all(f">response number {i}<" in page for i in range(20))


def test_a_pair_shows_scores_tokens_reference_and_error() -> None:
    broken = dataclasses.replace(
        EXAMPLE, kind="error_rejected", rejected_score=None, rejected_error="missing_response_marker", margin=None
    )
    page = page_of(examples=[EXAMPLE, broken])
    for text in ("score 1.00 · 17 tokens", "score 0.00 · 13 tokens", "<bdi>4</bdi>", "margin 2.31", "difficulty 3"):
        assert text in page
    assert "breaks the format: missing response marker" in page and "error pair" in page


UNKNOWN = model_row("M_0", 0, None)


@pytest.mark.parametrize(
    "rows",
    [
        (),
        (UNKNOWN,),
        (SEED,),
        (DIRECT, SEED),
        (DIRECT, SEED, FIRST),
        (UNKNOWN, model_row("M_1", 1, None)),
        (SEED, model_row("M_1", 1, None)),
        (SEED, dataclasses.replace(FIRST, by_category={"new": interval(0.4)}, dropped={}, chosen_epoch=0)),
        tuple(model_row(f"M_{t}", t, -3.0 - t) for t in range(13)),
    ],
    ids=[
        "nothing",
        "unscored",
        "seed",
        "no iteration",
        "one",
        "never scored",
        "then unscored",
        "new category",
        "thirteen",
    ],
)
def test_missing_values_leave_a_readable_page(rows: tuple[ModelRow, ...]) -> None:
    page = page_of(*rows)
    assert "None" not in page and ">nan" not in page
    assert page.count("data-model=") == len(rows)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            FULL,
            "After 2 iterations, M_2 scores 94.2 on 600 test prompts (95 % interval 92.2–96.2): 31.2 points above M_0 "
            "with thoughts and 22.2 points above M_0 answering directly.",
        ),
        (
            (DIRECT, SEED, model_row("M_1", 1, 0.64)),
            "After 1 iteration, M_1 scores 64.0 on 600 test prompts (95 % interval 62.0–66.0): not clearly different "
            "from M_0 with thoughts (+1.0 points; interval −1.0 to +3.0 includes 0) and 8.0 points below "
            "M_0 answering directly.",
        ),
        (
            (DIRECT, SEED),
            "Before the first iteration, M_0 with thoughts scores 63.0 on 600 test prompts (95 % interval 61.0–65.0), "
            "9.0 points below M_0 answering directly.",
        ),
        (
            (SEED, model_row("M_1", 1, None)),
            "After 1 iteration, there is no test score: the evaluation judge scored none of M_1's answers.",
        ),
        ((), "Nothing has been measured yet."),
    ],
    ids=["gain", "no clear difference, and a loss", "no iteration", "no score", "nothing"],
)
def test_the_headline_says_what_the_numbers_say(rows: tuple[ModelRow, ...], sentence: str) -> None:
    assert headline(summary_of(*rows)) == sentence


def test_the_headline_of_a_run_without_thoughts_mentions_a_single_seed() -> None:
    assert headline(summary_of(*FULL), thinks=False).endswith(": 31.2 points above M_0.")


def test_scores_of_other_judges_keep_their_unit() -> None:
    rows = [model_row(f"M_{t}", t, 12.5 + t) for t in (0, 1)]
    assert "scores 13.50 on 600 test prompts (95 % interval 13.48–13.52): 12.87 above" in headline(summary_of(*rows))


def test_worse_categories_and_unchanged_models_are_findings() -> None:
    fell = dataclasses.replace(FIRST, by_category={"dial": interval(0.5), "relay": interval(0.9)}, chosen_epoch=0)
    found = findings(summary_of(DIRECT, SEED, fell))
    assert found[0] == "M_1 is M_0 unchanged: no epoch of its training did better on validation."
    assert found[1] == "1 of 2 categories fell below M_0: dial (60.0 → 50.0)."


def test_model_names_get_a_subscript_and_still_copy_as_written() -> None:
    shown = subscripted("M_12 > M_0")
    assert re.sub("<[^>]*>", "", shown) == "M_12 &gt; M_0" and "<sub>12</sub>" in shown


def test_the_judges_health_is_listed_with_the_model_trained_on_its_scores():
    page = page_of(*FULL)
    assert page.count("data-judged=") == 2
    row = page[page.index('data-judged="M_1"') :].partition("</tr>")[0]
    for shown in ("7 no verdict", "22400", "53.1 %", "87.7 %", "0.21", "93.4 %", "4711"):
        assert shown in row
    assert "Scores of the training samples" in page
    assert "data-judged" not in page_of(DIRECT, SEED)
