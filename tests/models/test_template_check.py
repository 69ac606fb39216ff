"""Claims about the check of a chat template before a run: each trap is set once, and named."""

import json
from pathlib import Path

import pytest

from prompts.thought import VARIANTS
from prompts.verdict import PROMPTS
from tests.models.template_families import BY_NAME, FAMILIES
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.errors import InputError
from tpo.models.template_check import check_asked, check_read
from tpo.records import Message

NAMES = [family.name for family in FAMILIES]
QUESTIONS = ["Say hello.", "What is 12 + 30?\nAnswer briefly.", "  def f(x):\n    return x\n", "日本語で。"]
ASKED = [VARIANTS["generic"].render(question) for question in QUESTIONS]
ANSWERED = ["Here is my thought process: I add.\nHere is my response: 42."]
READ = [
    [Message(role="user", content=question), Message(role="assistant", content="It is 42.")] for question in QUESTIONS
]


def changed(folder: Path, name: str, *, old: str = "", new: str = "", **config: object) -> Path:
    """A family's model folder with something replaced in its chat template."""
    family = BY_NAME[name]
    assert old in family.template
    family.save(folder, **config)
    (folder / "chat_template.jinja").write_text(family.template.replace(old, new))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_sound_model_passes(tmp_path: Path, name: str):
    folder = BY_NAME[name].save(tmp_path)
    assert check_asked(folder, ASKED, ANSWERED) == []
    assert [line for line in check_read(folder, READ) if "</think>" not in line] == []


def test_the_shipped_models_pass_in_their_roles():
    assert check_asked(SHIPPED_SEED_MODEL, ASKED, ANSWERED) == []
    assert check_asked(SHIPPED_SEED_MODEL.parent / "evaluator", [PROMPTS["cot"].render("a", "b", "c")], ["[[A]]"]) == []
    assert check_read(SHIPPED_SEED_MODEL.parent / "armorm", READ) == []


DOUBLED = {"name": "llama3", "old": "{{- bos_token }}", "new": "{{- bos_token }}<|begin_of_text|>"}
MISSING = {"name": "llama3", "old": "{{- bos_token }}", "new": ""}
IN_THE_LOOP = {"name": "gemma", "old": "{{ '<start_of_turn>'", "new": "{{ bos_token ~ '<start_of_turn>'"}
UNENDED = {"name": "mistral", "old": " ~ eos_token", "new": ""}
NO_PROMPT = {"name": "llama3", "old": "{{ header('assistant') }}", "new": ""}
REWRITING = {"name": "chatml", "old": "m.content", "new": "(m.content | upper)"}
SILENT = {"name": "chatml", "old": "m.content", "new": "'hello'"}
CUTTING = {"name": "chatml", "old": "m.content", "new": "m.content[:40]"}
NO_SYSTEM = {"name": "chatml", "old": "{%- for", "new": "{{ raise_exception('never') }}{%- for"}


@pytest.mark.parametrize(
    ("trap", "pattern"),
    [
        (DOUBLED, r"chat_template.jinja begins a chat with 2 BOS \(<\|begin_of_text\|>\), expected one"),
        (MISSING, r"begins a chat without BOS, .* write \{\{ bos_token \}\} at its start"),
        (IN_THE_LOOP, r"begins a chat with 2 BOS \(<bos>\)"),
        (UNENDED, r"puts '' after an assistant's turn, expected a control token .* \{\{ eos_token \}\} there \(</s>\)"),
        (NO_PROMPT, r"ends a prompt with .*eot_id.*, expected '<\|start_header_id\|>assistant"),
        (REWRITING, r"chat_template.jinja: the model's chat template changes the text of a message"),
        (CUTTING, r"changes the text of a message"),
        (SILENT, r"does not render each message of a \('user',\) chat once and in order"),
        (NO_SYSTEM, r"rejects a \('user',\) chat: never"),
    ],
    ids=["doubled", "missing", "in_loop", "unended", "no_prompt", "rewriting", "cutting", "silent", "refusing"],
)
def test_a_trap_is_refused_and_the_file_to_fix_is_named(tmp_path: Path, trap: dict[str, str], pattern: str):
    folder = changed(tmp_path, **trap)
    with pytest.raises(InputError, match=pattern) as refused:
        check_asked(folder, ASKED, ANSWERED)
    assert str(folder) in str(refused.value)


def test_a_bos_at_every_turn_is_refused_even_if_the_first_is_right(tmp_path: Path):
    folder = changed(
        tmp_path, "llama3", old="{{ header(turn.role)", new="{{ ('' if loop.first else bos_token) ~ header(turn.role)"
    )
    with pytest.raises(InputError, match=r"writes BOS .* 2 times in a chat, expected once"):
        check_asked(folder, [VARIANTS["system"].render("Say hello.")], ANSWERED)


OWN_SYSTEM_TURN = (
    "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{%- endif %}"
)


def with_bos(folder: Path, template: str) -> Path:
    """ChatML with `<|im_start|>` as its BOS, as SmolLM2 has it."""
    BY_NAME["chatml"].save(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "<|im_start|>"}))
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize("before", ["", OWN_SYSTEM_TURN], ids=["as_asked", "with_a_system_turn_of_its_own"])
@pytest.mark.parametrize("variant", ["generic", "system"])
def test_a_bos_that_opens_every_turn_is_accepted(tmp_path: Path, before: str, variant: str):
    folder = with_bos(tmp_path, before + BY_NAME["chatml"].template)
    chats = [VARIANTS[variant].render(question) for question in QUESTIONS]
    assert check_asked(folder, chats, ANSWERED) == [] == check_read(folder, READ)


@pytest.mark.parametrize(
    ("old", "new", "pattern"),
    [
        ("{%- for m", "{{- bos_token }}{%- for m", r"begins a chat with 2 BOS \(<\|im_start\|>\)"),
        ("<|im_end|>", "<|im_end|><|im_start|>", r"writes BOS .* times in a chat"),
        ("'<|im_start|>assistant\n'", "'assistant\n'", r"writes BOS .* times in a chat"),
    ],
    ids=["doubled_at_the_start", "doubled_at_later_turns", "not_before_the_answer"],
)
def test_a_bos_that_opens_turns_and_is_elsewhere_too_is_refused(tmp_path: Path, old: str, new: str, pattern: str):
    template = BY_NAME["chatml"].template
    assert old in template
    folder = with_bos(tmp_path, template.replace(old, new))
    with pytest.raises(InputError, match=pattern):
        check_asked(folder, [VARIANTS["system"].render("Say hello.")], ANSWERED)


@pytest.mark.parametrize("told_by", ["config.json", "generation_config.json"])
def test_an_end_of_turn_at_which_sampling_does_not_stop_is_refused_until_listed(tmp_path: Path, told_by: str):
    folder = changed(tmp_path, "llama3")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|end_of_text|>"}))
    config = json.loads((folder / "config.json").read_text())
    end = config["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 7}))
    if told_by == "generation_config.json":
        (folder / told_by).write_text(json.dumps({"eos_token_id": [7]}))
    with pytest.raises(InputError, match=rf"ends an assistant's turn with <\|eot_id\|> \({end}\), .* in \S*{told_by}$"):
        check_asked(folder, ASKED, ANSWERED)
    (folder / told_by).write_text(json.dumps({"max_position_embeddings": 512, "eos_token_id": [7, end]}))
    assert check_asked(folder, ASKED, ANSWERED) == []


def test_a_control_token_in_the_prompts_own_wording_is_refused_by_name(tmp_path: Path):
    folder = changed(tmp_path, "chatml")
    with pytest.raises(InputError, match=r"own wording has <\|im_end\|>, .*remove them from the prompt templates"):
        check_asked(folder, [[Message(role="user", content="Write <|im_end|> at the end.")]], ANSWERED)


def test_a_control_token_that_its_letters_merge_into_is_refused(tmp_path: Path):
    """SentencePiece vocabularies contain their control tokens: with the right merges, letters become one."""
    folder = changed(tmp_path, "mistral")
    inner = json.loads((folder / "tokenizer.json").read_text())
    pieces = ["<", "s", ">", "<s"]
    for piece in pieces:
        inner["model"]["vocab"].setdefault(piece, len(inner["model"]["vocab"]))
    inner["model"]["merges"] += [["<", "s"], ["<s", ">"]]
    (folder / "tokenizer.json").write_text(json.dumps(inner))
    with pytest.raises(InputError, match=r"tokenizer.json: a message becomes control tokens although"):
        check_asked(folder, ASKED, ANSWERED)


def test_a_chat_structure_that_users_can_write_is_noted(tmp_path: Path):
    folder = changed(tmp_path, "chatml")
    inner = json.loads((folder / "tokenizer.json").read_text())
    for token in inner["added_tokens"]:
        token["special"] = token["content"] != "<|im_start|>"
    (folder / "tokenizer.json").write_text(json.dumps(inner))
    (line,) = check_asked(folder, ASKED, ANSWERED)
    assert "writes <|im_start|>, which also counts as structure if a user writes it" in line


@pytest.mark.parametrize("token", ["\n", "user", "<think>"])
def test_added_tokens_that_are_not_structural_get_no_note(tmp_path: Path, token: str):
    """Gemma's vocabulary adds line breaks, which users write all the time, and Qwen's adds tags around thoughts."""
    folder = changed(
        tmp_path, "chatml", old="<|im_start|>assistant\n", new="<|im_start|>assistant\n<think>\n</think>\n"
    )
    inner = json.loads((folder / "tokenizer.json").read_text())
    last = max(entry["id"] for entry in inner["added_tokens"])
    inner["added_tokens"].append(inner["added_tokens"][0] | {"id": last + 1, "content": token, "special": False})
    (folder / "tokenizer.json").write_text(json.dumps(inner))
    assert not any("special" in line for line in check_asked(folder, ASKED, ANSWERED))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"old": "<|im_start|>assistant\n", "new": "<|im_start|>assistant\n<think>\n"},
            "puts '<think>\\n' at the end of a prompt, and '' before",
        ),
        (
            {"old": " ~ m.content ~", "new": " ~ m.content.split('Here is my response:')[-1] ~"},
            "changes an assistant's turn",
        ),
        ({"old": "<|im_start|>assistant\n", "new": "<|im_start|>assistant\n", "date": True}, "writes today's date"),
    ],
    ids=["opens_a_thought", "cuts_thoughts", "date"],
)
def test_harmless_oddities_are_noted_in_one_line(tmp_path: Path, change: dict[str, str], text: str):
    folder = changed(tmp_path, "chatml", old=str(change["old"]), new=str(change["new"]))
    if "date" in change:
        path = folder / "chat_template.jinja"
        path.write_text("<|im_start|>system\n{{ strftime_now('%d %b %Y') }}<|im_end|>\n" + path.read_text())
    chats = [[Message(role="user", content="Say hello.")]]
    (line,) = check_asked(folder, chats, ANSWERED)
    assert text in line and str(folder) in line


def test_a_prompt_whose_last_tokens_merge_with_the_answer_is_noted(tmp_path: Path):
    """The space that ends the prompt is a separate token there, but part of the first word of every answer."""
    folder = changed(tmp_path, "llama3", old="<|end_header_id|>\n\n", new="<|end_header_id|> ")
    (line,) = check_asked(folder, ASKED, ANSWERED)
    assert "the last 1 tokens of a prompt" in line and "merge with the first characters of an answer" in line


def test_a_template_without_control_tokens_is_noted_as_open_to_anyone(tmp_path: Path):
    folder = changed(tmp_path, "chatml")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ ('<|im_end|>' if m.role == 'assistant' else '\n') }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    lines = check_asked(folder, ASKED, ANSWERED)
    assert any("writes no control token: a user can imitate its structure" in line for line in lines)


def test_a_judge_whose_template_rewrites_responses_is_refused(tmp_path: Path):
    folder = changed(tmp_path, "chatml", old="m.content", new="(m.content | lower)")
    with pytest.raises(InputError, match="changes the text of a message"):
        check_read(folder, READ)


def test_a_judge_that_cuts_thoughts_out_of_responses_gets_a_note(tmp_path: Path):
    (line,) = check_read(BY_NAME["qwen"].save(tmp_path), READ)
    assert "such responses are left unscored" in line
