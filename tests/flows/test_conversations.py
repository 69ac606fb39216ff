"""Claims about conversations that a model's template refuses: they are reported before work starts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.conversations import check_conversations
from flows.preflight import preflight
from flows.prompt_counts import count_prompts, too_few_prompts
from tests.conversations import SHAPES, write_rows
from tests.judges.tiny_models import reward_folder
from tests.models.template_families import BY_NAME
from tests.rows import LLAMA, a_config, some_weights
from tpo.config.data import DataConfig, FileSource, PromptConfig
from tpo.config.judges import RewardModelJudge
from tpo.config.run import RunConfig
from tpo.errors import InputError

ADVISED, TALK = SHAPES["Tulu 3"].row, {"messages": SHAPES["WildChat"].row["conversation"]}
ALONE = {"messages": [{"role": "user", "content": "Why?"}]}


def on(folder: Path, rows: Sequence[dict[str, Any]], family: str = "chatml", **changes: Any) -> RunConfig:
    source = FileSource(path=write_rows(folder / "prompts.jsonl", rows), instruction_column="messages")
    config = a_config(folder, data=DataConfig(source=source, per_iteration=1, validation=1, test=1), **changes)
    some_weights(BY_NAME[family].save(Path(config.model.path), **LLAMA))
    return config


@pytest.mark.parametrize("family", ["llama3", "qwen", "mistral", "chatml"])
def test_a_template_that_accepts_every_conversation_gets_no_warning(tmp_path: Path, family: str):
    assert check_conversations(on(tmp_path, [ADVISED, TALK, ALONE], family)) == []


def test_a_template_without_a_system_role_is_named_with_the_number_of_refused_prompts(tmp_path: Path):
    (line,) = check_conversations(on(tmp_path, [ADVISED, ADVISED, TALK, ALONE], "gemma"))
    assert "rejects a ('system', 'user', 'assistant', 'user') chat: there is no system turn" in line
    assert "2 of 4 prompts in" in line and "they are dropped, and counted as chat_template" in line


def test_a_file_is_refused_if_the_template_refuses_all_of_it(tmp_path: Path):
    with pytest.raises(InputError, match=r"2 of 2 prompts in .* so no prompt is left: use another model"):
        check_conversations(on(tmp_path, [ADVISED, ADVISED], "gemma"))


@pytest.mark.parametrize("row", [ADVISED, TALK, ALONE])
def test_a_judge_whose_template_refuses_conversations_is_refused(tmp_path: Path, row: dict[str, Any]):
    folder = reward_folder(tmp_path / "judge")
    template = "{{ bos_token }}{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}"
    body = "{% for m in messages %}{{ '<|start_header_id|>' + m.role + m.content + '<|eot_id|>' }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template + body)
    config = on(tmp_path, [row, ALONE, ALONE], judge=RewardModelJudge(model=str(folder)))
    if row is ALONE:
        assert check_conversations(config) == []
        return
    with pytest.raises(InputError, match=r"judge: .*rejects .*one turn; 1 of 3 prompts .*remove such conversations"):
        check_conversations(config)


def test_a_system_variant_needs_no_second_system_turn(tmp_path: Path):
    assert check_conversations(on(tmp_path, [ADVISED], "mistral", prompt=PromptConfig(variant="system"))) == []


def test_conversations_are_counted_by_all_their_turns_before_work(tmp_path: Path):
    other = json.loads(json.dumps(ADVISED).replace("Elbe", "Rhine"))
    tool = {"messages": [{"role": "user", "content": "Hi"}, {"role": "tool", "content": "{}"}]}
    config = on(tmp_path, [ADVISED, ADVISED, other, TALK, tool])
    assert count_prompts(config, tmp_path / "prompts.jsonl") == 3
    assert list(too_few_prompts(config, 1)) == []
    preflight(config)
    (fault,) = too_few_prompts(on(tmp_path, [ADVISED, tool, tool]), 1)
    assert "has 1 different prompt," in fault
