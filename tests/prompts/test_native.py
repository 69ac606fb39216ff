"""Claims about native thoughts: where they end in an output, for every kind of template and any output."""

import dataclasses
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp

import pytest
import trl
from hypothesis import given
from hypothesis import strategies as st

from deploy.serving.reading import GrowingTokens, read
from prompts.native import NativeThoughts, OutputTokens
from prompts.thought import VARIANTS, ParseError, ThoughtPrompt
from tasks.sample import rules_of
from tests.models.template_families import BY_NAME
from tpo.config.data import SampleConfig
from tpo.engines.inference.forcing import Forced, as_argument
from tpo.models.chat import ChatEncoder
from tpo.models.thinking_template import thinking_template
from tpo.records import Message

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
KINDS = {
    "hybrid": "qwen3",
    "hybrid_without_switch": "lfm2_2_5",
    "prefilled": "qwen3_6",
    "prefilled_without_switch": "deepseek_r1_distill",
    "channels": "gptoss",
}
TAGS = {"<think>": False, "</think>": False}
HARMONY = dict.fromkeys(("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>"), True)
GREEK, CYRILLIC = "αβγ", "абв"
QUESTION = "Say hello."


@cache
def encoder(kind: str) -> ChatEncoder:
    """An encoder of a small vocabulary with one family's template and its tags as tokens."""
    folder = BY_NAME["chatml"].save(Path(mkdtemp(prefix="tpo-")))
    tokenizer = BY_NAME["chatml"].tokenizer()
    tokenizer.add_tokens(list(TAGS))
    tokenizer.add_tokens(list(HARMONY), special_tokens=True)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text((TEMPLATES / f"{KINDS[kind]}.jinja").read_text())
    return ChatEncoder(folder)


def prompt(kind: str, variant: str = "native") -> ThoughtPrompt:
    return VARIANTS[variant].for_model(encoder(kind))


def opening(kind: str) -> str:
    """The beginning of a sound output of this kind."""
    return {"channels": "<|channel|>analysis<|message|>"}.get(kind, "" if kind.startswith("prefilled") else "<think>\n")


def closing(kind: str) -> str:
    if kind == "channels":
        return "<|end|><|start|>assistant<|channel|>final<|message|>"
    return "\n</think>\n\n"


def tokens_of(kind: str, text: str) -> OutputTokens:
    """The tokens of an output in which every tag is a token."""
    chat = encoder(kind)
    return OutputTokens(chat.ids(text, as_text=False), chat.decode)


def letters(kind: str, text: str) -> OutputTokens:
    """The tokens of a text that quotes tags, letter by letter."""
    chat = encoder(kind)
    return OutputTokens([token for letter in text for token in chat.ids(letter, as_text=True)], chat.decode)


def joined(*parts: OutputTokens) -> OutputTokens:
    return OutputTokens([token for part in parts for token in part.ids], parts[0].decode)


@pytest.mark.parametrize("kind", KINDS)
def test_a_native_thought_is_split_from_its_response(kind: str):
    tokens = tokens_of(kind, f"{opening(kind)}I add.{closing(kind)}It is 5.")
    parsed = prompt(kind).split(tokens.decode(tokens.ids), finished=True, tokens=tokens)
    assert (parsed.thought, parsed.response, parsed.error) == ("I add.", "It is 5.", None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quoted_tag_in_a_thought_ends_nothing(kind: str):
    quoted = letters(kind, "I write </think> or <|channel|>final<|message|> now")
    tokens = joined(tokens_of(kind, opening(kind)), quoted, tokens_of(kind, f"{closing(kind)}It is 5."))
    parsed = prompt(kind).split(tokens.decode(tokens.ids), finished=True, tokens=tokens)
    assert (parsed.response, parsed.error) == ("It is 5.", None)
    assert "</think> or <|channel|>final<|message|>" in parsed.thought


@pytest.mark.parametrize("kind", KINDS)
def test_a_quoted_tag_in_a_response_is_text(kind: str):
    tokens = joined(tokens_of(kind, f"{opening(kind)}a{closing(kind)}"), letters(kind, "A thought ends with </think>."))
    parsed = prompt(kind).split(tokens.decode(tokens.ids), finished=True, tokens=tokens)
    assert (parsed.response, parsed.error) == ("A thought ends with </think>.", None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("output", "finished", "response", "error"),
    [
        ("{o}a", True, "", ParseError.MISSING_RESPONSE_MARKER),
        ("{o}a", False, "", ParseError.CUT_BY_LENGTH),
        ("{o}a{c}", True, "", ParseError.EMPTY_RESPONSE),
        ("{o}a{c}b", False, "b", ParseError.CUT_BY_LENGTH),
        ("{o}{c}b", True, "b", None),
        ("{c}b", True, "b", None),
        ("{o}a{c}b{c}d", True, "b", ParseError.REPEATED_RESPONSE_MARKER),
        ("", True, "", ParseError.MISSING_RESPONSE_MARKER),
        ("b", True, "", ParseError.MISSING_RESPONSE_MARKER),
    ],
)
def test_an_output_without_a_thought_and_a_response_is_malformed(
    kind: str, output: str, finished: bool, response: str, error: ParseError | None
):
    tokens = tokens_of(kind, output.format(o=opening(kind), c=closing(kind)))
    parsed = prompt(kind).split(tokens.decode(tokens.ids), finished=finished, tokens=tokens)
    assert (parsed.response, parsed.error) == (response, error)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "channels"])
def test_a_second_thought_in_a_response_is_malformed_and_not_shown(kind: str):
    tokens = tokens_of(kind, f"{opening(kind)}a{closing(kind)}b<think>c</think>d")
    parsed = prompt(kind).split(tokens.decode(tokens.ids), finished=True, tokens=tokens)
    assert parsed.response == "b" and parsed.error is ParseError.REPEATED_RESPONSE_MARKER
    tokens = tokens_of(kind, f"{opening(kind)}a{closing(kind)}b<think>c")
    parsed = prompt(kind).split(tokens.decode(tokens.ids), finished=True, tokens=tokens)
    assert parsed.response == "b" and parsed.error is ParseError.THOUGHT_MARKER_IN_RESPONSE


IN_THOUGHT = {
    False: ["<think>", "\n", "<R>", " ", "Here is my response:", "Here is my thought process:"],
    True: ["<|channel|>", "analysis", "<|message|>", "<|end|>", "<|start|>", "assistant", "<R>", " "],
}
QUOTED = ["</think>", "<think>", "<|channel|>final<|message|>"]


@st.composite
def hostile(draw: st.DrawFn, kind: str) -> OutputTokens:
    """A Greek thought that ends only at its closing tag, then a Cyrillic response, with tags as tokens and as letters,
    and markers anywhere."""
    tags = IN_THOUGHT[kind == "channels"]
    quoted = st.sampled_from(QUOTED).map(lambda text: letters(kind, text))

    def text(alphabet: str, tags: list[str]) -> list[OutputTokens]:
        tag = st.sampled_from(tags).map(lambda text: tokens_of(kind, text))
        letter = st.sampled_from([*alphabet]).map(lambda text: letters(kind, text))
        return draw(st.lists(st.one_of(letter, letter, tag, quoted), max_size=8))

    start, end = (tokens_of(kind, draw(st.sampled_from(texts))) for texts in ([opening(kind), ""], [closing(kind)]))
    return joined(start, *text(GREEK, tags), end, *text(CYRILLIC, [*tags, closing(kind)]))


@pytest.mark.parametrize("variant", ["native", "generic", "specific", "direct"])
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_nothing_before_the_closing_tag_reaches_a_response(kind: str, variant: str, data: st.DataObject):
    thought_prompt, tokens = prompt(kind, variant), data.draw(hostile(kind))
    text = tokens.decode(tokens.ids)
    for finished in (True, False):
        assert not set(GREEK) & set(thought_prompt.split(text, finished=finished, tokens=tokens).response)
    assert not set(GREEK) & set(thought_prompt.shown(text, finished=True, tokens=tokens).response)
    assert not set(GREEK) & set(read(thought_prompt, text, "stop", (), tokens).response)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_the_streamed_response_of_a_native_thinker_only_grows(kind: str, data: st.DataObject):
    thought_prompt = prompt(kind)
    tokens = data.draw(hostile(kind))
    shown, growing = list[str](), GrowingTokens(encoder(kind))
    for end in range(len(tokens.ids) + 1):
        part = OutputTokens(tokens.ids[:end], tokens.decode)
        growing.add(tokens.ids[end - 1 : end])
        shown.append(thought_prompt.shown(part.decode(part.ids), finished=False, tokens=part).response)
        assert shown[-1] == thought_prompt.shown(part.decode(part.ids), finished=False, tokens=growing).response
    shown.append(thought_prompt.shown(tokens.decode(tokens.ids), finished=True, tokens=tokens).response)
    assert all(after.startswith(before) for before, after in pairwise(shown))


@pytest.mark.parametrize("kind", KINDS)
def test_native_thinking_is_on_only_on_request(kind: str):
    chat = encoder(kind)
    messages = [Message(role="user", content=QUESTION)]
    native, generic = (prompt(kind, variant).encode(chat, QUESTION) for variant in ("native", "direct"))
    assert native == chat.by_template(messages, thinking=True)
    assert generic == chat.by_template(messages, thinking=False)
    assert (native != generic) == (chat.thinking.switch is not None)


@pytest.mark.parametrize(
    ("variant", "output", "thought", "response"),
    [
        ("specific", "{o}Then I write <R>.{c}Draft.\n<R>\nParis.", "Then I write <R>.\n\nDraft.", "Paris."),
        ("direct", "{o}I think.{c}Paris.", "I think.", "Paris."),
    ],
)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if encoder(kind).thinking.switch is None])
def test_a_native_thought_that_cannot_be_switched_off_is_part_of_the_thought(
    kind: str, variant: str, output: str, thought: str, response: str
):
    tokens = tokens_of(kind, output.format(o=opening(kind), c=closing(kind)))
    parsed = prompt(kind, variant).split(tokens.decode(tokens.ids), finished=True, tokens=tokens)
    assert (parsed.thought, parsed.response, parsed.error) == (thought, response, None)


def test_the_ending_of_a_thought_is_taken_from_the_template():
    chat = encoder("channels")
    form = "<|end|><|start|>assistant<|channel|>final<|message|>"
    assert chat.ending_ids() == tuple(chat.ids(form, as_text=False))
    chat = encoder("hybrid")
    assert chat.ending_ids() == tuple(chat.ids("\n</think>", as_text=False))


@pytest.mark.parametrize("output", ["<think>\nsecret\n</think>\n\nParis.", "[THINK]secret[/THINK]Paris."])
def test_well_known_tags_are_cut_off_even_for_an_unknown_model(output: str):
    for variant in VARIANTS.values():
        if variant.response_marker is not None:
            text = output.replace("Paris.", f"Easy. {variant.response_marker} Paris.")
        else:
            text = output
        parsed = variant.split(text, finished=True)
        assert parsed.response == "Paris." and "secret" in parsed.thought
        assert parsed.error is (ParseError.NATIVE_THOUGHT if variant.variant == "direct" else None)


@pytest.mark.parametrize("variant", ["native", "generic"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "hybrid_without_switch"])
@pytest.mark.parametrize("written", [3, 40])
def test_a_thought_at_its_limit_is_ended_so_that_it_can_be_split(kind: str, variant: str, written: int):
    thought_prompt, chat = prompt(kind, variant), encoder(kind)
    start = opening(kind) if variant == "native" or chat.thinking.switch is None else ""
    found = [*tokens_of(kind, start).ids, *letters(kind, "a" * written).ids]
    rules = rules_of(SampleConfig(max_thought_tokens=20), thought_prompt)
    answer = list(letters(kind, " It is 5.").ids)
    forced = Forced(as_argument(rules), chat.tokenizer)
    while len(found) < 20:
        found += letters(kind, "b").ids
    del found[20:]
    while (token := forced.next_token(found)) is not None:
        found.append(token)
    found += answer
    parsed = thought_prompt.split(chat.decode(found), finished=True, tokens=OutputTokens(found, chat.decode))
    assert (parsed.response, parsed.error) == ("It is 5.", None)
    assert "a" in parsed.thought and "5" not in parsed.thought


def test_a_model_configured_not_to_think_stays_switched_off():
    chat = encoder("hybrid")
    template = thinking_template(chat.tokenizer, kind="none")
    assert (template.kind, template.variables(thinking=False)) == ("none", {"enable_thinking": False})


@pytest.mark.parametrize(("prefill", "opened"), [("<think>\n", True), ("<think></think>", False), ("Well", False)])
def test_a_prefill_can_open_the_thought(prefill: str, opened: bool):
    chat = encoder("hybrid")
    thought_prompt = dataclasses.replace(VARIANTS["native"], prefill=prefill).for_model(chat)
    assert isinstance(thought_prompt.native, NativeThoughts) and thought_prompt.native.opened is opened
    assert chat.tokenizer.decode(thought_prompt.encode(chat, QUESTION)).endswith(prefill)
