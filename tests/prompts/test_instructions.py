"""Claims about few-shot prompts: examples are shown unchanged, and only whole instructions are accepted."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.instructions import CLOSE, OPEN, Fault, WrittenInstruction, can_be_shown, load_instruction_prompt
from tpo.errors import InputError

TEXTS = st.text().map(str.strip).filter(lambda text: can_be_shown(text) and "\ufffd" not in text)
SHIPPED = load_instruction_prompt(None)


@given(st.lists(TEXTS, min_size=1, max_size=8))
def test_examples_that_are_shown_parse_back_unchanged(examples: list[str]):
    (message,) = SHIPPED.render(examples, 1)
    assert message["role"] == "user"
    _, _, tasks = message["content"].partition("no answers.")
    assert SHIPPED.split(tasks, finished=True) == [WrittenInstruction(example) for example in examples]


def test_the_number_of_new_instructions_is_asked_for():
    assert "Write 1 new task that" in SHIPPED.render(["a"], 1)[0]["content"]
    assert "Write 4 new tasks that" in SHIPPED.render(["a"], 4)[0]["content"]


@pytest.mark.parametrize(
    ("output", "finished", "written"),
    [
        (f"{OPEN}\nSay it.\n{CLOSE}", True, [WrittenInstruction("Say it.")]),
        (
            f"Sure!\n{OPEN}Say\nit.{CLOSE} I hope {OPEN}More.{CLOSE}",
            True,
            [WrittenInstruction("Say\nit."), WrittenInstruction("More.")],
        ),
        (
            f"{OPEN}Whole.{CLOSE}{OPEN}Cut in its mid",
            False,
            [WrittenInstruction("Whole."), WrittenInstruction("", Fault.CUT_BY_LENGTH)],
        ),
        (f"{OPEN}Whole.{CLOSE} and mo", False, [WrittenInstruction("Whole.")]),
        (f"{OPEN}Not closed.", True, [WrittenInstruction("", Fault.UNPARSABLE)]),
        (
            f"{OPEN}Not closed. {OPEN}Closed.{CLOSE}",
            True,
            [WrittenInstruction("", Fault.UNPARSABLE), WrittenInstruction("Closed.")],
        ),
        (f"{OPEN}Say \ufffd.{CLOSE}", True, [WrittenInstruction("", Fault.UNPARSABLE)]),
        (f"{OPEN} \n{CLOSE}", True, [WrittenInstruction("", Fault.UNPARSABLE)]),
        ("I cannot do that.", True, [WrittenInstruction("", Fault.UNPARSABLE)]),
        ("I can", False, [WrittenInstruction("", Fault.CUT_BY_LENGTH)]),
        ("", True, [WrittenInstruction("", Fault.UNPARSABLE)]),
    ],
)
def test_only_closed_instructions_are_accepted_and_the_rest_are_counted(
    output: str, finished: bool, written: list[WrittenInstruction]
):
    assert SHIPPED.split(output, finished=finished) == written


@given(st.lists(st.sampled_from([OPEN, CLOSE, "a", "\n"])).map("".join), st.booleans())
def test_no_instruction_contains_a_marker(output: str, finished: bool):
    found = SHIPPED.split(output, finished=finished)
    assert found
    for written in found:
        assert can_be_shown(written.instruction) == (written.fault is None)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ count }} {% for e in examples %}{{ e }}{% endfor %}", "shows 0 tasks instead of 3"),
        ("{{ count }} {% for e in examples[:2] %}<task>{{ e }}</task>{% endfor %}", "shows 2 tasks"),
        ("{{ count }} {% for e in examples %}<task>{{ e | upper }}</task>{% endfor %}", "or changes their text"),
        ("{% for e in examples %}<task>{{ e }}</task>{% endfor %}", "never says how many tasks are wanted"),
        ("{{ count }} {% for e in examples %}", "does not parse"),
        ("{{ unknown }}", "does not render"),
        ("{{ ''.__class__ }}", "reaches into Python"),
    ],
)
def test_a_template_that_would_not_work_is_refused_with_what_to_do(tmp_path: Path, template: str, message: str):
    path = tmp_path / "mine.jinja"
    path.write_text(template)
    with pytest.raises(InputError, match=r"mine\.jinja") as refused:
        load_instruction_prompt(path)
    assert message in str(refused.value)


def test_a_custom_template_is_accepted_and_identified_by_its_content(tmp_path: Path):
    path = tmp_path / "mine.jinja"
    path.write_text("More, {{ count }}:{% for e in examples %}\n<task>{{ e }}</task>{% endfor %}")
    prompt = load_instruction_prompt(path)
    assert prompt.render(["a", "b"], 2)[0]["content"] == "More, 2:\n<task>a</task>\n<task>b</task>"
    assert prompt.fingerprint != SHIPPED.fingerprint


def test_a_missing_template_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"gone\.jinja cannot be read"):
        load_instruction_prompt(tmp_path / "gone.jinja")
