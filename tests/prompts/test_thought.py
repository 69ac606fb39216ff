"""Claims about thought prompts: how they are written, and how outputs are split."""

import dataclasses
import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prompts.native import NativeThoughts
from prompts.thought import VARIANTS, ParseError, ThoughtPrompt, load_prompt
from tests.conversations import ADVISED, EARLIER, LAST, SYSTEM
from tests.rows import SHARED_DATA
from tpo.config.data import PromptConfig
from tpo.errors import InputError
from tpo.models.thinking_template import TAGS
from tpo.records import Message

GENERIC, SPECIFIC, DRAFT, DIRECT = (VARIANTS[name] for name in ("generic", "specific", "specific_draft", "direct"))
THINKING = [prompt for prompt in VARIANTS.values() if prompt.response_marker]
HOSTILE = [
    "{instruction} {0} {} %s $x",
    "{{ instruction }} {% raw %} {# gone? #}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for x in range(3) %}x{% endfor %}{{ 7 * 7 }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "Here is my thought process: a Here is my response: b <R> c <response> d <internal thought>",
    "naïve 日本語 👩‍👩‍👧 \u202e right to left \x00 nul",
    "  white\tspace \n\n kept  ",
    "<b>&amp; \"quoted\" 'too'</b> \\n \\u0041",
]

thought_text = st.text(alphabet="ab <>R\n:.é{%}", max_size=40)


def by_name(prompt: ThoughtPrompt) -> str:
    return prompt.variant


@pytest.mark.parametrize(
    ("variant", "thought_marker", "response_marker"),
    [
        ("generic", "Here is my thought process:", "Here is my response:"),
        ("system", "Here is my thought process:", "Here is my response:"),
        ("specific", None, "<R>"),
        ("specific_draft", "<internal thought>", "<response>"),
        ("direct", None, None),
    ],
)
def test_markers_are_exactly_the_papers(variant: str, thought_marker: str | None, response_marker: str | None):
    prompt = VARIANTS[variant]
    text = "\n".join(message["content"] for message in prompt.render("x"))
    assert (prompt.thought_marker, prompt.response_marker) == (thought_marker, response_marker)
    assert all(marker in text for marker in (thought_marker, response_marker) if marker)


@pytest.mark.parametrize("variant", ["generic", "specific", "specific_draft"])
def test_the_user_turn_ends_with_the_query_on_its_own_line(variant: str):
    (message,) = VARIANTS[variant].render("Why?")
    assert message["role"] == "user"
    assert message["content"].endswith("\nUser query: Why?")


def test_the_system_variant_leaves_the_query_bare():
    system, user = VARIANTS["system"].render("Why?")
    assert (system["role"], user) == ("system", {"role": "user", "content": "Why?"})


def test_the_direct_variant_is_the_query_and_nothing_else():
    assert DIRECT.render("Why?") == [{"role": "user", "content": "Why?"}]


@pytest.mark.parametrize("system", [False, True], ids=["", "with a system turn"])
@pytest.mark.parametrize("prompt", VARIANTS.values(), ids=by_name)
def test_the_thought_prompt_applies_to_the_last_turn_and_earlier_ones_stay_as_they_are(
    prompt: ThoughtPrompt, system: bool
):
    earlier = ADVISED if system else EARLIER
    *before, question = prompt.render(LAST, earlier)
    alone = prompt.render(LAST)
    assert question == alone[-1]
    if prompt.system_template is None:
        assert before == list(earlier)
    else:
        ours = alone[0]["content"]
        assert before[0] == {"role": "system", "content": f"{ours}\n\n{SYSTEM}" if system else ours}
        assert before[1:] == EARLIER


@pytest.mark.parametrize("prompt", VARIANTS.values(), ids=by_name)
@pytest.mark.parametrize("text", HOSTILE)
def test_earlier_turns_are_never_read_as_templates(prompt: ThoughtPrompt, text: str):
    earlier = [Message(role=turn["role"], content=text) for turn in ADVISED]
    assert prompt.render("Why?", earlier)[-3:-1] == earlier[1:]
    assert prompt.render("Why?", earlier)[0]["content"].endswith(text)


@pytest.mark.parametrize("instruction", HOSTILE)
@pytest.mark.parametrize("prompt", VARIANTS.values(), ids=by_name)
def test_an_instruction_is_inserted_verbatim_and_never_executed(prompt: ThoughtPrompt, instruction: str):
    before, after = prompt.render("SLOT")[-1]["content"].split("SLOT")
    assert prompt.render(instruction)[-1]["content"] == before + instruction + after


@given(st.text())
def test_any_text_passes_through_a_prompt(instruction: str):
    before, after = GENERIC.render("SLOT")[-1]["content"].split("SLOT")
    assert GENERIC.render(instruction)[-1]["content"] == before + instruction + after


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no real instructions here")
def test_real_instructions_pass_through_every_prompt():
    lines = (SHARED_DATA / "alpaca_eval_instructions.jsonl").read_text(encoding="utf-8").splitlines()
    for instruction in (json.loads(line)["instruction"] for line in lines):
        for prompt in VARIANTS.values():
            assert instruction in prompt.render(instruction)[-1]["content"]


@pytest.mark.parametrize(
    ("prompt", "output", "finished", "thought", "response", "error"),
    [
        (GENERIC, "Here is my thought process: a\nHere is my response: b", True, "a", "b", None),
        (GENERIC, "a Here is my response: b", True, "a", "b", None),
        (GENERIC, "Here is my response:b", True, "", "b", None),
        (SPECIFIC, "a <R> b", True, "a", "b", None),
        (DRAFT, "<internal thought>a<response>b", True, "a", "b", None),
        (DIRECT, "  b\n", True, "", "b", None),
        (DIRECT, "Here is my response: b <R>", True, "", "Here is my response: b <R>", None),
        (SPECIFIC, "a b", True, "a b", "a b", ParseError.MISSING_RESPONSE_MARKER),
        (SPECIFIC, "a <r> b", True, "a <r> b", "a <r> b", ParseError.MISSING_RESPONSE_MARKER),
        (SPECIFIC, "", True, "", "", ParseError.MISSING_RESPONSE_MARKER),
        (SPECIFIC, "a <R> \n", True, "a", "a", ParseError.EMPTY_RESPONSE),
        (DIRECT, " \n", True, "", "", ParseError.EMPTY_RESPONSE),
        (SPECIFIC, "a <R> b <R> c", True, "a", "a  b  c", ParseError.REPEATED_RESPONSE_MARKER),
        (
            DRAFT,
            "a <response> b <internal thought> c",
            True,
            "a",
            "a  b  c",
            ParseError.THOUGHT_MARKER_IN_RESPONSE,
        ),
        (SPECIFIC, "a <R> b", False, "a", "a  b", ParseError.CUT_BY_LENGTH),
        (SPECIFIC, "a", False, "a", "a", ParseError.CUT_BY_LENGTH),
        (DIRECT, "b", False, "", "b", ParseError.CUT_BY_LENGTH),
    ],
)
def test_outputs_are_split_by_the_papers_rules(
    prompt: ThoughtPrompt, output: str, finished: bool, thought: str, response: str, error: ParseError | None
):
    parsed = prompt.split(output, finished=finished)
    assert (parsed.thought, parsed.response, parsed.error) == (thought, response, error)


UNWANTED = NativeThoughts("unwanted", "<think>", "</think>")
NATIVE = [dataclasses.replace(VARIANTS[name], native=UNWANTED) for name in ("direct", "specific", "generic")]


@pytest.mark.parametrize(
    ("output", "finished", "responses", "error"),
    [
        ("<think>\na secret\n</think>\n\nParis.", True, ("Paris.", "", ""), ParseError.NATIVE_THOUGHT),
        (
            "<think>\na <R> secret\n</think>\n\nDraft.\n<R>\nParis.",
            True,
            (..., "Paris.", ""),
            ParseError.NATIVE_THOUGHT,
        ),
        (
            "<think>Here is my response: a secret</think>Easy. Here is my response: Paris.",
            True,
            (..., "", "Paris."),
            ParseError.NATIVE_THOUGHT,
        ),
        ("<think>\na secret", False, ("", "", ""), ParseError.CUT_BY_LENGTH),
        ("Paris. <think>a secret</think>", True, ("", "", ""), ParseError.NATIVE_THOUGHT),
        ("a secret</think>Paris.", True, (..., "", ""), ParseError.NATIVE_THOUGHT),
    ],
)
def test_a_models_native_thought_is_not_a_response(
    output: str, finished: bool, responses: tuple[object, ...], error: ParseError
):
    for prompt, response in zip(NATIVE, responses, strict=True):
        parsed = prompt.split(output, finished=finished)
        assert parsed.error is error
        assert response is ... or prompt.shown(output, finished=finished).response == response
        assert "secret" not in parsed.response


def test_an_output_without_a_native_thought_is_split_as_usual():
    for prompt, name in zip(NATIVE, ("direct", "specific", "generic"), strict=True):
        for output in ("Paris.", "Draft.\n<R>\nParis.", "Here is my thought process: a\nHere is my response: b"):
            assert prompt.split(output, finished=True) == VARIANTS[name].split(output, finished=True)
            assert prompt.fingerprint == VARIANTS[name].fingerprint


def test_every_thought_marker_leaves_the_thought():
    assert DRAFT.split("<internal thought>a<internal thought>b<response>c", finished=True).thought == "ab"


@pytest.mark.parametrize("prompt", THINKING, ids=by_name)
@given(thought=thought_text, response=thought_text.filter(str.strip))
def test_an_output_splits_into_the_parts_it_was_made_of(prompt: ThoughtPrompt, thought: str, response: str):
    markers = [marker for marker in (prompt.thought_marker, prompt.response_marker) if marker]
    output = f"{prompt.thought_marker or ''}{thought}\n{prompt.response_marker}{response}"
    # Joining the parts may complete a marker across a seam: then it is a different output.
    if [output.count(marker) for marker in markers] != [1] * len(markers):
        return
    parsed = prompt.split(output, finished=True)
    assert (parsed.thought, parsed.response, parsed.error) == (thought.strip(), response.strip(), None)


@pytest.mark.parametrize("prompt", VARIANTS.values(), ids=by_name)
@given(
    pieces=st.lists(st.sampled_from(["a", " ", "<R>", "<response>", "<internal thought>", "<resp", "onse>"])),
    finished=st.booleans(),
)
def test_a_response_without_error_holds_no_marker(prompt: ThoughtPrompt, pieces: list[str], finished: bool):
    parsed = prompt.split("".join(pieces), finished=finished)
    if parsed.error is None:
        assert finished
        assert parsed.response == parsed.response.strip() != ""
        assert not any(
            marker in parsed.response for marker in (prompt.thought_marker, prompt.response_marker) if marker
        )


@pytest.mark.parametrize("prompt", VARIANTS.values(), ids=by_name)
@given(
    pieces=st.lists(st.sampled_from(["a", " ", "<R>", "<response>", "<internal thought>", "<resp", "onse>"])),
    finished=st.booleans(),
)
def test_the_response_shown_of_a_sound_output_is_the_one_it_splits_into(
    prompt: ThoughtPrompt, pieces: list[str], finished: bool
):
    output = "".join(pieces)
    parsed, shown = prompt.split(output, finished=finished), prompt.shown(output, finished=finished)
    if parsed.error is None:
        assert (shown.thought, shown.response) == (parsed.thought, parsed.response)
    assert not any(marker in shown.response for marker in (prompt.thought_marker, prompt.response_marker) if marker)


@pytest.mark.parametrize("prompt", [*VARIANTS.values(), *NATIVE], ids=by_name)
@given(
    pieces=st.lists(
        st.sampled_from(
            ["a", " ", "\n", "<R>", "<response>", "<internal thought>", "Here", " is my ", "<think>", "</think>"]
        )
    )
)
def test_the_response_shown_only_grows_with_the_output(prompt: ThoughtPrompt, pieces: list[str]):
    output = "".join(pieces)
    # If a model that was told not to think does so in the middle, what was shown before can't be taken back.
    assume(prompt.native != UNWANTED or not any(output[: output.find(t)].strip() for t in TAGS[0] if t in output))
    shown = [prompt.shown(output[:end], finished=False) for end in range(len(output) + 1)]
    for before, after in pairwise([*shown, prompt.shown(output, finished=True)]):
        assert after.thought.startswith(before.thought) and after.response.startswith(before.response)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_variant_loads_by_its_name(name: str):
    assert load_prompt(PromptConfig.model_validate({"variant": name})) == VARIANTS[name]


def test_a_users_template_replaces_the_wording_and_keeps_the_markers(tmp_path: Path):
    path = tmp_path / "mine.jinja"
    path.write_text("Write <R> before your answer to: {{ instruction }}\n")
    prompt = load_prompt(PromptConfig(variant="specific", user_template=path))
    assert prompt.render("Why?")[0]["content"] == "Write <R> before your answer to: Why?"
    assert prompt.response_marker == "<R>"
    assert prompt.fingerprint != SPECIFIC.fingerprint


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("Write <R>.", "contain the instruction 0 times"),
        ("<R> {{ instruction }} {{ instruction }}", "contain the instruction 2 times"),
        ("<R> {{ instruction | upper }}", "contain the instruction 0 times"),
        ("<R> {{ instruction | e }}", "contain the instruction 0 times"),
        ("Answer: {{ instruction }}", "never mention the response marker '<R>'"),
        ("<R> {{ instruction", "does not render"),
        ("<R> {{ instruction }} {{ nonsense }}", "does not render"),
        ("<R> {{ instruction }} {{ 1 / 0 }}", "does not render"),
        ("<R> {{ instruction }} {% include '/etc/passwd' %}", "does not render"),
        ("<R> {{ instruction }} {{ ''.__class__.__mro__ }}", "does not render: it reaches into Python"),
        ("<R> {{ instruction }}{% if instruction == 'x' %}{{ self.__init__ }}{% endif %}", "reaches into Python"),
        ("<R> {{ instruction }} {{ 'a' * 10**11 }}", "does not render"),
        ("<R> {{ instruction }} {{ 'a' * 10**7 }}", "does not render: it renders 1000"),
    ],
)
def test_a_template_that_cannot_work_is_refused(tmp_path: Path, template: str, complaint: str):
    path = tmp_path / "mine.jinja"
    path.write_text(template)
    with pytest.raises(InputError, match=complaint):
        load_prompt(PromptConfig(variant="specific", user_template=path))


def test_an_endless_template_is_refused_within_seconds(tmp_path: Path):
    loops = "{% for a in range(99999) %}" * 3 + "{% set b = a %}" + "{% endfor %}" * 3
    (tmp_path / "mine.jinja").write_text(f"<R> {{{{ instruction }}}}{loops}")
    with pytest.raises(InputError, match="does not render: it does not terminate within 5 s"):
        load_prompt(PromptConfig(variant="specific", user_template=tmp_path / "mine.jinja"))


def test_a_pipe_is_not_a_template(tmp_path: Path):
    os.mkfifo(tmp_path / "mine.jinja")
    with pytest.raises(InputError, match=r"mine\.jinja cannot be read: it isn't a file"):
        load_prompt(PromptConfig(variant="specific", user_template=tmp_path / "mine.jinja"))


@pytest.mark.parametrize("field", ["user_template", "system_template"])
def test_a_missing_template_file_is_refused_by_name(tmp_path: Path, field: str):
    with pytest.raises(InputError, match=r"nowhere\.jinja cannot be read"):
        load_prompt(PromptConfig.model_validate({field: tmp_path / "nowhere.jinja"}))
