"""Claims about which prompts a set takes: fresh ones, in the seed's order; all others are counted."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.thought import VARIANTS
from tasks.load_prompts import choose_prompts, load_prompts
from tasks.source import make_prompt, origin, question_key, read_source, why_unfit
from tests.conversations import ADVISED, LAST, SHAPES, write_rows
from tests.rows import a_config
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.data import DataConfig, FileSource, MiniatureSource, ModelConfig
from tpo.config.run import RunConfig
from tpo.errors import InputError
from tpo.models.chat import ChatEncoder
from tpo.records import Artifact, Message, Prompt, RowCounts, write_turns
from tpo.storage.store import folder_artifact, read_manifest, read_rows


def prompts_of(*instructions: str) -> list[Prompt]:
    return [make_prompt(text, None, None, None) for text in instructions]


def ids_of(*instructions: str) -> set[str]:
    return {prompt.prompt_id for prompt in prompts_of(*instructions)}


def chosen(*instructions: str, **changes: Any) -> tuple[list[str], RowCounts]:
    settings: dict[str, Any] = {"count": 2, "used": set(), "foreign": set(), "refuse_foreign": False, "name": "iter_1"}
    settings["unfit"] = lambda prompt: "too_long" if len(prompt.instruction) >= 10 else None
    prompts, account = choose_prompts(prompts_of(*instructions), **(settings | changes))
    return [prompt.instruction for prompt in prompts], account


def test_the_first_fresh_prompts_are_taken_and_the_rest_left():
    assert chosen("a", "b", "c") == (["a", "b"], RowCounts(2, 2, {}))


def test_an_equal_instruction_is_the_same_prompt_despite_another_reference():
    first, second, other = (make_prompt(text, ref, None, None) for text, ref in (("a", "1"), ("a", "2"), ("a ", "1")))
    assert first.prompt_id == second.prompt_id != other.prompt_id
    assert len(first.prompt_id) == 16


@pytest.mark.parametrize(
    ("instructions", "changes", "dropped"),
    [
        (("a", "a", "b"), {}, {"duplicate": 1}),
        (("a", "x" * 10, "b"), {}, {"too_long": 1}),
        (("a", " \n", "", "b"), {}, {"empty": 2}),
        (("a", "old", "b"), {"used": ids_of("old")}, {"used_before": 1}),
        (("a", "leak", "b"), {"foreign": ids_of("leak")}, {"overlap": 1}),
        (("a", "old", "b"), {"used": ids_of("old"), "refuse_foreign": True}, {"used_before": 1}),
    ],
)
def test_skipped_prompts_are_counted_by_reason(
    instructions: tuple[str, ...], changes: dict[str, Any], dropped: dict[str, int]
):
    assert chosen(*instructions, **changes) == (["a", "b"], RowCounts(len(instructions), 2, dropped))


FORMS_OF_ONE = ["Why is É blue?", "why is é BLUE?", " Why  is\tÉ\nblue? ", "Why is E\u0301 blue?", "Ｗｈｙ is É blue?"]


@pytest.mark.parametrize("other", FORMS_OF_ONE)
def test_case_spaces_and_unicode_form_make_no_fresh_prompt(other: str):
    fits = {"unfit": lambda text: None}
    first, keys = FORMS_OF_ONE[0], {question_key(FORMS_OF_ONE[0])}
    assert chosen(first, other, "b", **fits) == ([first, "b"], RowCounts(3, 2, {"duplicate": 1}))
    assert chosen("a", other, "b", used=keys, **fits) == (["a", "b"], RowCounts(3, 2, {"used_before": 1}))
    assert chosen("a", other, "b", foreign=keys, **fits) == (["a", "b"], RowCounts(3, 2, {"overlap": 1}))


@pytest.mark.parametrize("other", ["Why is E blue?", "Why is É blue", "Why is Éblue?"])
def test_other_letters_and_punctuation_make_another_question(other: str):
    assert question_key(other) != question_key(FORMS_OF_ONE[0])


def test_validation_and_training_share_no_question_that_differs_only_in_form(tmp_path: Path):
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"instruction": f"{form} {i}"}) + "\n" for i in range(6) for form in FORMS_OF_ONE)
    )
    config, model = a_config(tmp_path), folder_artifact(SHIPPED_SEED_MODEL)
    sets = list[Artifact]()
    for name in ("iter_0/prompts/validation", "iter_0/prompts/test", "iter_1/prompts"):
        sets.append(load_prompts.fn(config, name, model, sets))
    prompts = [prompt for artifact in sets for prompt in read_rows(artifact, Prompt)]
    assert len(prompts) == len({question_key(prompt.instruction) for prompt in prompts}) == 6
    assert all(prompt.prompt_id == make_prompt(prompt.instruction, None, None, None).prompt_id for prompt in prompts)
    manifest = read_manifest(sets[-1].path)
    assert manifest is not None and manifest.account is not None
    assert manifest.account["dropped"] == {"used_before": 8}


def test_an_overlap_is_refused_if_the_config_says_so():
    with pytest.raises(InputError, match=r"iter_1: 'leak' is also in an earlier iteration.*data\.overlap"):
        chosen("a", "leak", foreign=ids_of("leak"), refuse_foreign=True)


def test_too_few_fresh_prompts_are_an_error_with_the_counts():
    with pytest.raises(InputError, match=r"iter_1: 1 fresh prompts in 4 rows \(2 duplicate, 1 too_long\), expected 3"):
        chosen("a", "a", "a", "x" * 10, count=3)


@given(
    st.lists(st.sampled_from(["", "a", "b", "c", "d", "e", "long" * 9])),
    st.sets(st.sampled_from("abc")),
    st.sets(st.sampled_from("bcd")),
    st.integers(1, 4),
)
def test_sets_are_disjoint_and_accounts_add_up(texts: list[str], used: set[str], foreign: set[str], count: int):
    try:
        taken, account = chosen(*texts, used=ids_of(*used), foreign=ids_of(*foreign), count=count)
    except InputError:
        assert len({text for text in texts if 0 < len(text) < 10} - used - foreign) < count
    else:
        assert len(set(taken)) == len(taken) == count == account.rows_out
        assert not set(taken) & (used | foreign)
        assert account.rows_in <= len(texts)


def of_source(folder: Path, name: str, *, seed: int = 0, **source: Any) -> Sequence[str]:
    data = DataConfig(source=FileSource(path=folder / "prompts.jsonl", **source))
    config = a_config(folder, data=data, seed=seed)
    return [prompt.instruction for prompt in read_source(config, name) if isinstance(prompt, Prompt)]


def test_all_sets_of_one_file_draw_from_it_in_one_order_set_by_the_seed(tmp_path: Path):
    first = of_source(tmp_path, "iter_1/prompts")
    assert len(set(first)) == 20
    assert first == of_source(tmp_path, "iter_2/prompts") == of_source(tmp_path, "iter_0/prompts/test")
    other = of_source(tmp_path, "iter_1/prompts", seed=1)
    assert first != other and set(first) == set(other)


def test_a_set_with_its_own_file_draws_from_it(tmp_path: Path):
    (tmp_path / "v.jsonl").write_text('{"instruction": "mine"}')
    assert of_source(tmp_path, "iter_0/prompts/validation", validation_path=tmp_path / "v.jsonl") == ["mine"]


def test_origins_are_equal_exactly_if_rows_are_shared(tmp_path: Path):
    data = DataConfig(source=FileSource(path=tmp_path / "p-{iteration}.jsonl", test_path=tmp_path / "t.jsonl"))
    config = a_config(tmp_path, data=data)
    origins = [origin(config, name) for name in ("iter_1/prompts", "iter_2/prompts", "iter_0/prompts/test")]
    assert len(set(origins)) == 3
    miniature = a_config(tmp_path, data=DataConfig(source=MiniatureSource()))
    assert origin(miniature, "iter_1/prompts") == origin(miniature, "iter_0/prompts/test")


def asked(last: str, *before: str) -> Prompt:
    """A conversation of alternating user and assistant turns."""
    turns = [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(before)]
    return make_prompt(last, None, None, None, history=write_turns(turns))


def test_a_single_turn_keeps_its_id_and_a_conversations_covers_all_its_turns():
    assert make_prompt("Why?", None, None, None).prompt_id == hashlib.sha256(b"Why?").hexdigest()[:16]
    system = write_turns([Message(role="system", content="Be kind.")])
    others = [
        asked("Why?", "Hi", "Ho"),
        asked("Why?", "Hi", "Hey"),
        asked("Why?", "Hi", "Ho", "Hi", "Ho"),
        make_prompt("Why?", None, None, None, history=system),
        make_prompt(json.dumps([["user", "Hi"], ["assistant", "Ho"], ["user", "Why?"]]), None, None, None),
    ]
    assert len({prompt.prompt_id for prompt in [make_prompt("Why?", None, None, None), *others]}) == 6
    assert asked("Why?", "Hi", "Ho") == others[0]


def test_the_same_last_turn_is_fresh_after_other_turns_and_used_after_the_same():
    first, other, same = asked("Why?", "Hi", "Ho"), asked("Why?", "Hi", "Hey"), asked("why? ", "hi", " HO")
    settings: dict[str, Any] = {"foreign": set(), "refuse_foreign": False, "unfit": lambda prompt: None, "name": "x"}
    alone = make_prompt("Why?", None, None, None)
    prompts, account = choose_prompts([first, same, other, alone], count=3, used=set(), **settings)
    assert prompts == [first, other, alone] and account.dropped == {"duplicate": 1}
    used = {question_key(first.instruction, first.history)}
    prompts, account = choose_prompts([same, other], count=1, used=used, **settings)
    assert prompts == [other] and account.dropped == {"used_before": 1}


def on_conversations(folder: Path, rows: Sequence[dict[str, Any]], **changes: Any) -> RunConfig:
    path = write_rows(folder / "prompts.jsonl", rows)
    source = FileSource(path=path, instruction_column="messages")
    data = DataConfig.model_validate({"source": source, "per_iteration": 1, "validation": 1, "test": 1, **changes})
    return a_config(folder, model=ModelConfig(), data=data)


def test_rows_that_cannot_be_prompts_are_counted_by_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tool = [{"role": "user", "content": "Hi"}, {"role": "tool", "content": "{}"}]
    rows = [SHAPES["Tulu 3"].row, *({"messages": broken} for broken in (tool, tool, [], tool[1:]))]
    config = on_conversations(tmp_path, rows)
    data = config.data.model_copy(update={"per_iteration": "all"})
    config = config.model_copy(update={"data": data})
    artifact = load_prompts.fn(config, "iter_1/prompts", folder_artifact(SHIPPED_SEED_MODEL), [])
    (prompt,) = read_rows(artifact, Prompt)
    assert (prompt.instruction, prompt.earlier) == (LAST, ADVISED)
    manifest = read_manifest(artifact.path)
    assert manifest is not None and manifest.account is not None
    assert manifest.account["dropped"] == {"tool_turn": 3, "no_user_turn": 1}
    assert "1 prompts, 1 of them conversations up to their last user turn (" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize("turns", [1, 15])
def test_the_length_limit_counts_the_whole_conversation(tmp_path: Path, turns: int):
    chat = [*({"role": ("user", "assistant")[i % 2], "content": "hello"} for i in range(2 * turns - 1))]
    config = on_conversations(tmp_path, [{"messages": chat}])
    encoder = ChatEncoder(SHIPPED_SEED_MODEL)
    (prompt,) = [prompt for prompt in read_source(config, "iter_1/prompts") if isinstance(prompt, Prompt)]
    tokens = len(VARIANTS["generic"].encode(encoder, prompt.instruction, prompt.earlier))
    assert len(prompt.earlier) == 2 * turns - 2
    for longest, reason in ((tokens, None), (tokens - 1, "too_long")):
        data = config.data.model_copy(update={"max_prompt_tokens": longest})
        assert why_unfit(config.model_copy(update={"data": data}), encoder)(prompt) == reason
