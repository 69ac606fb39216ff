"""Claims about detecting how a template handles thinking, on all chat templates of real families in TRL's wheel."""

import re
from pathlib import Path

import pytest
import trl

from tests.models.template_families import BY_NAME
from tpo.errors import InputError
from tpo.models.chat import ChatEncoder
from tpo.models.template_check import check_thinking
from tpo.models.thinking_template import ThinkingTemplate, thinking_template
from tpo.records import Message

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
NONE = ThinkingTemplate()
THINK = ("<think>", "</think>")
HYBRID = ThinkingTemplate("hybrid", *THINK, "enable_thinking")
PREFILLED = ThinkingTemplate("prefilled", *THINK, "enable_thinking")
R1 = ThinkingTemplate("prefilled", *THINK)
GEMMA_4 = ThinkingTemplate("hybrid", "<|channel>thought", "<channel|>", "enable_thinking")
KINDS = {
    **dict.fromkeys(["llama3", "llama3_1", "llama3_2", "qwen2_5", "qwen3_instruct_2507", "phi3", "phi3_5"], NONE),
    **dict.fromkeys(["gemma", "gemma3", "cohere", "cohere2", "lfm2"], NONE),
    **dict.fromkeys(["qwen3", "glm4moe"], HYBRID),
    **dict.fromkeys(["gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5"], GEMMA_4),
    "lfm2_2_5": ThinkingTemplate("hybrid", *THINK),
    **dict.fromkeys(["qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "qwen3_8", "nemotron_3_nano"], PREFILLED),
    **dict.fromkeys(["deepseek_r1_distill", "deepseekv3"], R1),
    "gptoss": ThinkingTemplate(
        "channels", "<|channel|>analysis<|message|>", "<|end|>", heading="<|channel|>final<|message|>"
    ),
    "muse_glimmer": ThinkingTemplate("channels", "to=self<|message|>", "<|eom|>", heading="to=user<|message|>"),
}
ASKED = [Message(role="user", content="Say hello.")]


@pytest.mark.parametrize("name", KINDS)
def test_the_kind_of_a_real_template_is_detected(name: str):
    tokenizer = BY_NAME["chatml"].tokenizer()
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    assert thinking_template(tokenizer) == KINDS[name]


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("{{ raise_exception('never') }}", NONE),
        # DeepSeek R1's first template, which lets the model open its thought.
        (
            "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}",
            ThinkingTemplate("hybrid", *THINK),
        ),
        # DeepSeek V3.1 and Granite have another name for the switch.
        (
            "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<think>' if thinking else '</think>' }}{% endif %}",
            ThinkingTemplate("prefilled", *THINK, "thinking"),
        ),
        (BY_NAME["chatml"].template + "{# nothing here thinks as in <think> </think> #}", NONE),
    ],
    ids=["refuses", "r1_without_prefill", "another_switch", "named_in_a_comment"],
)
def test_the_kind_is_detected_from_rendered_chats(template: str, kind: ThinkingTemplate):
    tokenizer = BY_NAME["chatml"].tokenizer()
    tokenizer.chat_template = template
    assert thinking_template(tokenizer) == kind


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.switch])
def test_thinking_that_can_be_switched_off_is_off_in_every_prompt(tmp_path: Path, name: str):
    """A prompt ends without an open thought; Qwen's have an empty one, as in its training."""
    folder = BY_NAME["chatml"].save(tmp_path)
    (folder / "chat_template.jinja").write_text((TEMPLATES / f"{name}.jinja").read_text())
    encoder = ChatEncoder(folder)
    shown = encoder.render(ASKED)
    opening, closing = encoder.thinking.tags
    assert shown.count(opening) == shown.count(closing)
    assert encoder.encode(ASKED) == encoder.by_template(ASKED)
    on = encoder.tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert shown != on


def test_a_model_always_thinks_if_no_prompt_can_prevent_it():
    assert [name for name, kind in KINDS.items() if kind.always_thinks] == [
        "deepseek_r1_distill",
        "deepseekv3",
        "gptoss",
        "muse_glimmer",
    ]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("deepseek_r1_distill", r"opens every answer with a thought \(<think>\) and has no variable"),
        ("lfm2_2_5", "knows thoughts between <think> and </think>, and no way to switch them off"),
        ("llama3", None),
        ("qwen3", None),
        ("qwen3_6", None),
    ],
)
def test_only_a_model_that_cannot_be_kept_from_thinking_gets_a_note(tmp_path: Path, name: str, pattern: str | None):
    folder = folder_with(tmp_path, name)
    lines = check_thinking(folder, ChatEncoder(folder), natively=False)
    assert len(lines) == (pattern is not None)
    assert all(re.search(str(pattern), line) and str(folder) in line for line in lines)


@pytest.mark.parametrize("name", KINDS)
def test_native_thinking_is_for_models_that_think_natively(tmp_path: Path, name: str):
    folder = folder_with(tmp_path, name)
    if KINDS[name].kind == "channels":  # their headings need special tokens, which tests/zoo has
        with pytest.raises(InputError, match="no tokens for"):
            check_thinking(folder, ChatEncoder(folder), natively=True)
    elif KINDS[name].kind == "none":
        with pytest.raises(InputError, match=r'variant is "native", and .* shows no native thoughts'):
            check_thinking(folder, ChatEncoder(folder), natively=True)
    else:
        assert check_thinking(folder, ChatEncoder(folder), natively=True) == []


def folder_with(folder: Path, name: str) -> Path:
    """A tokenizer with the template of a family."""
    BY_NAME["chatml"].save(folder)
    (folder / "chat_template.jinja").write_text((TEMPLATES / f"{name}.jinja").read_text())
    return folder
