import itertools
from collections import Counter

import numpy as np
import pytest

from prompts.thought import VARIANTS
from tpo.miniature.lessons import Manners, copying_drill, textbook_page, tuned_answer
from tpo.miniature.world import CATEGORIES, DIFFICULTIES, Problem, problems, split_of

SPLITS = ("seed", "train", "validation", "test")


def take(split: str, count: int, seed: int = 0) -> list[Problem]:
    return list(itertools.islice(problems(split, seed), count))  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_problems_and_another_seed_others():
    assert take("train", 100) == take("train", 100)
    assert take("train", 100) != take("train", 100, seed=1)


def test_a_stream_repeats_no_instruction():
    assert len({problem.instruction for problem in take("train", 4000)}) == 4000


@pytest.mark.parametrize("split", SPLITS)
def test_every_problem_belongs_to_exactly_one_split_for_any_seed(split: str):
    for seed in (0, 1, 2):
        assert {split_of(problem.instruction) for problem in take(split, 500, seed)} == {split}


def test_categories_and_difficulties_come_in_equal_parts():
    counts = Counter((problem.category, problem.difficulty) for problem in take("test", 600))
    assert set(counts) == set(itertools.product(CATEGORIES, DIFFICULTIES))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_problems_with_steps_have_one_per_level_and_end_at_the_reference():
    for problem in take("train", 1200):
        if problem.category not in ("dial", "relay", "cups"):
            assert problem.steps == ()
            continue
        assert len(problem.steps) == problem.difficulty
        assert problem.reference in problem.steps[-1].text
        assert all(step.text != step.wrong_text for step in problem.steps)


def test_wrong_answers_are_wrong():
    for problem in take("train", 1200):
        assert problem.wrong_answers and problem.reference not in problem.wrong_answers


def test_a_dial_turns_as_its_steps_say():
    for problem in (p for p in take("train", 600) if p.category == "dial"):
        words = problem.instruction.split(". ")
        state = int(words[0].split()[-1])
        for turn in words[1].removeprefix("Turn it ").split(", "):
            _, way, amount = turn.split()
            state = (state + (1 if way == "up" else -1) * int(amount)) % 10
        assert str(state) == problem.reference


def test_a_single_category_can_be_requested():
    assert {p.category for p in itertools.islice(problems("train", 0, ("recall",)), 50)} == {"recall"}


def test_a_textbook_page_is_right_and_keeps_the_format():
    rng = np.random.default_rng(0)
    for problem, (name, prompt) in itertools.product(take("seed", 60), VARIANTS.items()):
        if prompt.thinks_natively:  # tests/miniature has no lessons of the seed model's for it
            continue
        parsed = prompt.split(textbook_page(problem, prompt, rng).output, finished=True)
        assert parsed.error is None, (name, parsed)
        assert problem.reference in parsed.response
        if problem.steps and name != "direct":
            assert parsed.thought == " ".join(step.text for step in problem.steps)


def test_the_seeds_manners_have_their_stated_frequencies():
    rng, manners, prompt = np.random.default_rng(0), Manners(), VARIANTS["generic"]
    seen = take("seed", 4000)
    parsed = [prompt.split(tuned_answer(problem, prompt, rng, manners).output, finished=True) for problem in seen]
    broken = np.mean([p.error is not None for p in parsed])
    worked = np.mean([problem.steps[0].text in p.thought or problem.steps[0].wrong_text in p.thought
                      for problem, p in zip(seen, parsed, strict=True) if problem.steps])  # fmt: skip
    assert 0.03 < broken < 0.12
    assert manners.work - 0.05 < worked < manners.work + 0.05
    direct = VARIANTS["direct"]
    assert all(problem.reference in tuned_answer(problem, direct, rng, manners).output for problem in seen[:500])


def test_a_drill_asks_for_a_copy_of_its_prompt():
    drill = copying_drill(VARIANTS["direct"], np.random.default_rng(0))
    assert drill.messages[-1]["content"] == drill.output
