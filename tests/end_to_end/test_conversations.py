"""A whole iteration on a file of conversations in three published formats and single questions."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conversations import write_rows
from tests.end_to_end.conftest import Iterate
from tests.end_to_end.test_iterate import artifact
from tpo.miniature import world
from tpo.models.chat import ChatEncoder
from tpo.records import Judgment, Pair, Prompt, Sample
from tpo.storage.store import read_manifest, read_rows

pytestmark = [pytest.mark.story("conversations", 90), pytest.mark.end_to_end, pytest.mark.timeout(900)]

SYSTEM = "Answer briefly."
SETTINGS = (
    *("data.per_iteration=24", "data.validation=8", "data.test=12", "train.epochs=1", "sample.k=4"),
    *("data.max_prompt_tokens=160", "judge={kind='armorm'}", "evaluation.judge={kind='pairwise', mode='verdict'}"),
)


def in_turn(question: str, earlier: world.Problem, kind: int) -> Any:
    """A question as text, or in the format of WildChat, Tulu 3 or ShareGPT."""
    before = [("user", earlier.instruction), ("assistant", f"the answer is {earlier.reference} .")]
    turns = [*before, ("user", question), ("assistant", "a reply that is left out")]
    match kind:
        case 0:
            return question
        case 1:
            return [{"role": role, "content": text, "toxic": False, "language": "English"} for role, text in turns]
        case 2:
            return [{"role": role, "content": text} for role, text in (("system", SYSTEM), *turns)]
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names[role], "value": text} for role, text in turns]


def rows(count: int) -> Iterator[dict[str, Any]]:
    problems = world.problems("train", 0, None)
    for i, (earlier, problem) in enumerate(itertools.islice(zip(problems, problems, strict=False), count)):
        yield {"conversation": in_turn(problem.instruction, earlier, i % 4), "answer": problem.reference}
        if i % 8 == 0:
            with_tool = [{"role": "user", "content": problem.instruction}, {"role": "tool", "content": "{}"}]
            yield {"conversation": with_tool, "answer": None}


@pytest.fixture(scope="module")
def run(iterate: Iterate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_rows(tmp_path_factory.mktemp("conversations") / "rows.jsonl", list(rows(60)))
    source = f'data.source={{kind="file", path="{path}", instruction_column="conversation", reference_column="answer"}}'
    done = iterate(1, source, *SETTINGS, name="talk")
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(iterate.folder) / "talk"  # type: ignore[attr-defined]


def test_all_formats_are_sampled_and_judged_with_their_earlier_turns(run: Path):
    prompts = {prompt.prompt_id: prompt for prompt in read_rows(artifact(run / "iter_1/prompts"), Prompt)}
    kinds = {tuple(turn["role"] for turn in prompt.earlier) for prompt in prompts.values()}
    assert kinds == {(), ("user", "assistant"), ("system", "user", "assistant")}
    encoder = ChatEncoder(run / "iter_1/model")
    samples = read_rows(artifact(run / "iter_1/samples"), Sample)
    for sample in samples:
        shown = encoder.tokenizer.decode(sample.prompt_token_ids)
        earlier = [turn["content"] for turn in prompts[sample.prompt_id].earlier]
        places = [shown.index(text) for text in (*earlier, prompts[sample.prompt_id].instruction)]
        assert places == sorted(places) and "left out" not in shown
    judged = read_rows(artifact(run / "iter_1/judgments"), Judgment)
    parsed = {sample.prompt_id for sample in samples if sample.parse_error is None}
    assert {judgment.prompt_id for judgment in judged if judgment.outcome is not None} == parsed
    assert any(prompts[prompt_id].history for prompt_id in parsed)


def test_pairs_of_conversations_train_a_model_and_are_on_the_report(run: Path):
    prompts = {prompt.prompt_id: prompt for prompt in read_rows(artifact(run / "iter_1/prompts"), Prompt)}
    pairs = read_rows(artifact(run / "iter_1/pairs"), Pair)
    assert any(prompts[pair.prompt_id].history for pair in pairs)
    page = (run / "report.html").read_text()
    assert 'class="earlier"' in page and SYSTEM in page


def test_rows_that_cannot_be_prompts_are_counted(run: Path):
    manifest = read_manifest(run / "iter_1/prompts")
    assert manifest is not None and manifest.account is not None
    assert manifest.account["dropped"]["tool_turn"] > 0
