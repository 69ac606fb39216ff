import itertools
import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from tpo.config.data import InstructionSource
from tpo.data.writing import TYPES, writing_tasks
from tpo.method.similarity import words_of

COUNT = 3000
IFEVAL = Path(__file__).parents[3] / "shared" / "data" / "ifeval.jsonl"


def some(split="train", seed=0, count=COUNT, **options):
    return list(itertools.islice(writing_tasks(split, seed, **options), count))


def ids(task):
    return [constraint["id"] for constraint in json.loads(task.constraints)]


def test_every_type_of_ifeval_is_drawn():
    assert len(TYPES) == 25
    assert {name for task in some() for name in ids(task)} == set(TYPES)


def test_a_seed_gives_the_same_tasks_and_another_seed_others():
    assert some(count=200) == some(count=200)
    both = {task.instruction for task in some(count=200)} & {task.instruction for task in some(seed=1, count=200)}
    assert all(instruction.startswith("Do you agree") for instruction in both)  # few texts are possible here


def test_splits_share_no_writing_task_for_any_seed():
    splits = ("train", "validation", "test")
    tasks = {split: {task.instruction for seed in (0, 1) for task in some(split, seed)} for split in splits}
    for one, other in itertools.combinations(splits, 2):
        assert not tasks[one] & tasks[other]


def test_no_task_is_repeated():
    tasks = some(count=20_000)
    assert len({task.instruction for task in tasks}) == 20_000


def test_a_stream_of_few_possible_tasks_ends():
    tasks = list(writing_tasks("test", 0, types=("detectable_format:constrained_response",)))
    assert 0 < len(tasks) < 50


@pytest.mark.parametrize(
    "pair",
    [
        ("change_case:english_capital", "change_case:english_lowercase"),
        ("detectable_format:json_format", "detectable_format:title"),
        ("startend:end_checker", "detectable_content:postscript"),
        ("length_constraints:number_paragraphs", "length_constraints:nth_paragraph_first_word"),
    ],
)
def test_instructions_that_contradict_each_other_are_never_combined(pair):
    tasks = some(types=pair, max_instructions=5)
    assert {tuple(ids(task)) for task in tasks} == {(name,) for name in pair}


def test_counts_and_words_stay_below_the_requested_maximum():
    tasks = some(max_instructions=2, max_words=40)
    assert {task.difficulty for task in tasks} == {1, 2}
    words = [c["kwargs"]["num_words"] for t in tasks for c in json.loads(t.constraints) if "num_words" in c["kwargs"]]
    assert min(words) >= 10 and max(words) <= 40


@pytest.mark.skipif(not IFEVAL.exists(), reason="no IFEval prompts here")
def test_no_writing_task_shares_eight_words_in_a_row_with_ifeval():
    def runs(text):
        words = words_of(text)
        return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}

    prompts = [json.loads(line)["prompt"] for line in IFEVAL.read_text(encoding="utf-8").splitlines()]
    published = set().union(*map(runs, prompts))
    assert not {
        task.instruction for task in some(count=20_000) if runs(re.split(r"[.?] ", task.instruction)[0]) & published
    }


def test_unknown_types_are_rejected_by_name():
    with pytest.raises(ValidationError, match="keywords:existance"):
        InstructionSource(types=("keywords:existance",))
