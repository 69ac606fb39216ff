"""Claims about which right outputs the next model imitates."""

from collections.abc import Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tasks.pseudo_label import Labels, make_labels
from tasks.pseudo_label import pseudo_label as label_stage
from tasks.solutions import Question, Written, questions_of
from tests.rows import a_config, a_demonstration, some_answers, stored
from tpo.config.recipes import SelfTrain
from tpo.config.run import RunConfig
from tpo.method.diversity import jaccard
from tpo.records import Demonstration
from tpo.storage.store import read_rows

some_outputs = st.lists(st.text("abcdef", min_size=1, max_size=5), max_size=6, unique=True)
GOLD = "gold"


def a_question(name: str, sampled: Sequence[str], *, gold: str | None = None) -> Question:
    """A question with right outputs whose tokens are their letters."""
    right = {} if gold is None else {gold: Written([*map(ord, gold)], gold, "given")}
    for text in sampled:
        right.setdefault(text, Written([*map(ord, text)], text, "sampled"))
    return Question(name, [1, 2], right)


def labelled(*questions: Question, max_tokens: int = 100, **config: float) -> Labels:
    return make_labels(questions, SelfTrain.model_validate(config), max_tokens=max_tokens)


def outputs(labels: Labels) -> list[str]:
    return [row.output for row in labels.rows]


def test_of_similar_outputs_the_given_one_is_kept_or_else_the_first_by_text():
    assert outputs(labelled(a_question("p", ["abcdx", "abcd"], gold="abcdz"), dedup_threshold=0.5)) == ["abcdz"]
    assert outputs(labelled(a_question("p", ["abcdx", "abcd"]), dedup_threshold=0.5)) == ["abcd"]


def test_a_question_has_no_more_outputs_than_nine_in_ten_questions_have():
    easy = a_question("easy", ["ab", "cd", "ef", "gh"])
    labels = labelled(easy, *(a_question(f"q{i}", ["ab"]) for i in range(19)))
    assert labels.cap == 1
    assert labels.account.dropped == {"over_the_cap": 3}


def test_outputs_are_marked_as_given_or_sampled():
    labels = labelled(a_question("p", ["xyz"], gold="abc"), a_question("q", ["uvw"]), cap_quantile=1.0)
    assert [(row.prompt_id, row.origin) for row in labels.rows] == [("p", "given"), ("p", "sampled"), ("q", "sampled")]


def test_an_output_that_is_too_long_is_dropped_not_cut():
    labels = labelled(a_question("p", ["abcd", "x"]), max_tokens=3)
    assert outputs(labels) == ["x"]
    assert labels.account.dropped == {"too_long": 1}


@given(questions=st.lists(st.tuples(some_outputs, st.booleans()), max_size=8), similarity=st.floats(0, 1))
def test_kept_outputs_differ_gold_ones_stay_and_every_output_is_accounted_for(
    questions: list[tuple[list[str], bool]], similarity: float
):
    asked = [a_question(f"q{i}", texts, gold=GOLD if known else None) for i, (texts, known) in enumerate(questions)]
    labels = labelled(*asked, dedup_threshold=similarity)
    assert labels.account.rows_in == sum(len(question.right) for question in asked)
    for question in asked:
        own = [row for row in labels.rows if row.prompt_id == question.prompt_id]
        assert len(own) <= labels.cap
        assert (GOLD in question.right) == any(row.origin == "given" for row in own)
        kept = [set(row.output_token_ids) for row in own]
        assert all(jaccard(a, b) <= similarity for i, a in enumerate(kept) for b in kept[:i])


def test_right_outputs_of_all_models_so_far_are_imitated_and_no_others(tmp_path: Path):
    recipe = {"kind": "self_train", "cap_quantile": 1}
    config = RunConfig.model_validate(a_config(tmp_path).model_dump() | {"recipe": recipe})
    gold = stored(config.root, "gold", [a_demonstration("p", "abc")])
    first = some_answers(config.root, "one", {"p": [("def", True), ("wrong", False)], "q": [("unknown", None)]})
    second = some_answers(config.root, "two", {"q": [("ghi", True)]})
    artifact = label_stage.fn(config, "iter_2/sft", gold, [first, second])
    assert [(row.prompt_id, row.output) for row in read_rows(artifact, Demonstration)] == [
        ("p", "abc"), ("p", "def"), ("q", "ghi"),
    ]  # fmt: skip
    assert label_stage.fn(config, "iter_2/sft", gold, [first, second]) == artifact
    asked = {question.prompt_id: question for question in questions_of(gold, [first, second])}
    assert [*asked["p"].wrong] == ["wrong"]
    assert not asked["q"].wrong
