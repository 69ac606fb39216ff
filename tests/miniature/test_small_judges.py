import json
import math
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.cli.miniature import SCORES, SHIPPED_JUDGES, grading
from prompts.rubric import SCORE_BEGINS, labels_of, read_score
from prompts.verdict import LABELS, PROMPTS
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.judges import RubricJudge
from tpo.miniature.armorm import Architecture, ArmoRMRecipe, train_armorm
from tpo.miniature.evaluator import EvaluatorRecipe, Verdicts, train_evaluator
from tpo.miniature.grader import GraderRecipe, grade, train_grader
from tpo.miniature.opinions import VERBOSITY, RatedResponse, Worth
from tpo.miniature.seed_model import CONTEXT_TOKENS
from tpo.miniature.world import Problem
from tpo.models.armorm import ArmoRM, load_armorm, save_armorm
from tpo.models.armorm_format import ATTRIBUTES
from tpo.models.folder import check_model_folder

VERDICTS = Verdicts(PROMPTS["cot"], PROMPTS["label"], LABELS)
EVALUATOR, ARMORM, GRADER = (SHIPPED_JUDGES / name for name in ("evaluator", "armorm", "grader"))


def same_weights(first: Path, second: Path) -> bool:
    one, other = (load_file(folder / "model.safetensors") for folder in (first, second))
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.mark.drawn(1)
def test_the_same_seed_gives_the_same_evaluator(tmp_path: Path):
    recipe, losses = EvaluatorRecipe(lessons=32, hardening_lessons=32), list[float]()
    for name in ("a", "b"):
        train_evaluator(SHIPPED_SEED_MODEL, VERDICTS, tmp_path / name, recipe, lambda step, loss: losses.append(loss))
    assert recipe.steps == 2 and len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert check_model_folder(tmp_path / "a") == CONTEXT_TOKENS


@pytest.mark.drawn(1)
def test_the_same_seed_gives_the_same_armorm(tmp_path: Path):
    recipe, losses = ArmoRMRecipe(duels=32, gate_duels=16, gate_steps=2), list[float]()
    for name in ("a", "b"):
        train_armorm(
            SHIPPED_SEED_MODEL, Architecture(ArmoRM, save_armorm), tmp_path / name, recipe,
            lambda step, loss: losses.append(loss),
        )  # fmt: skip
    assert recipe.steps == 4 and len(losses) == 8
    assert all(math.isfinite(loss) for loss in losses)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert load_armorm(tmp_path / "a", "float32").reward_transform_matrix[VERBOSITY, VERBOSITY].item() == pytest.approx(
        0, abs=1e-5
    )


@pytest.mark.drawn(1)
def test_the_same_seed_gives_the_same_grader(tmp_path: Path):
    recipe, losses = GraderRecipe(lessons=64), list[float]()
    for name in ("a", "b"):
        train_grader(EVALUATOR, grading(), tmp_path / name, recipe, lambda step, loss: losses.append(loss))
    assert recipe.steps == 2 and len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert check_model_folder(tmp_path / "a") == CONTEXT_TOKENS


@pytest.mark.parametrize(
    ("text", "answer", "worth", "form", "expected"),
    [
        ("The answer is 4.", "4", Worth.RIGHT, "score", "The answer is 4. It says 4 there. So 4 there. [[Score: 9]]"),
        ("7", "7", Worth.WRONG, "score", "The answer is 4. It says 7 there. So 4 nowhere. [[Score: 2]]"),
        ("ha", None, Worth.NO_ANSWER, "additive", "The answer is 4. It says nothing there. So 4 nowhere. Score: 0"),
        ("4.", "4", Worth.RIGHT, "label", "8"),
    ],
)
def test_a_grade_depends_on_the_answer_and_a_little_on_its_sentence(
    text: str, answer: str | None, worth: Worth, form: str, expected: str
):
    problem = Problem("largest", 1, "Which is larger, 1 or 4?", "4", "Which?", ("1",))
    assert grade(problem, RatedResponse(text, answer, worth), form, SCORE_BEGINS) == expected
    config = RubricJudge(expected_score=form == "label", template="additive" if form == "additive" else "score")
    if form == "label":
        assert expected in labels_of(config)
    else:
        assert read_score(expected, config, finished=True) == float(expected.rstrip("]")[-1])


@pytest.mark.parametrize("folder", [EVALUATOR, ARMORM, GRADER], ids=["evaluator", "armorm", "grader"])
def test_a_shipped_judge_is_small(folder: Path):
    weights = folder / "model.safetensors"
    assert weights.stat().st_size < 3_000_000
    with safe_open(weights, "numpy") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    assert sum(math.prod(shape) for shape in shapes) < 1_500_000


def test_each_prompt_piece_and_label_is_one_token_of_the_shipped_evaluator():
    tokenizer = AutoTokenizer.from_pretrained(EVALUATOR)
    for piece in VERDICTS.phrases():
        assert len(tokenizer.encode(piece, add_special_tokens=False)) == 1, piece
    assert AutoModelForCausalLM.from_pretrained(EVALUATOR).config.vocab_size == len(tokenizer)


def test_each_prompt_piece_is_one_token_of_the_shipped_grader():
    tokenizer = AutoTokenizer.from_pretrained(GRADER)
    for piece in grading().phrases():
        assert len(tokenizer.encode(piece, add_special_tokens=False)) == 1, piece
    assert AutoModelForCausalLM.from_pretrained(GRADER).config.vocab_size == len(tokenizer)


def test_the_shipped_armorm_reads_llama_3_chats():
    tokenizer, model = AutoTokenizer.from_pretrained(ARMORM), load_armorm(ARMORM)
    chat = [{"role": "user", "content": " Why? "}, {"role": "assistant", "content": "So."}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nSo.<|eot_id|>"
    )
    assert model.config.vocab_size == len(tokenizer)
    assert tuple(model.reward_transform_matrix.shape) == (len(ATTRIBUTES), len(ATTRIBUTES))


def scores(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / SCORES).read_text())
    return found


def test_the_shipped_evaluator_agrees_with_references_in_either_order():
    assert scores(EVALUATOR)["cot_agreement"] >= 0.9
    assert 0.45 < scores(EVALUATOR)["cot_first_shown"] < 0.55
    assert scores(EVALUATOR)["cot_attack_wins"] <= 0.01


def test_the_shipped_grader_agrees_with_references_and_resists_attacks():
    assert scores(GRADER)["score_agreement"] >= 0.9 and scores(GRADER)["additive_agreement"] >= 0.9
    assert scores(GRADER)["expected_score_agreement"] >= 0.6, "without working it out, it can only guess"
    assert max(scores(GRADER)[f"{form}_attack_wins"] for form in ("score", "additive", "expected_score")) <= 0.01


def test_the_shipped_armorm_agrees_with_references():
    assert scores(ARMORM)["agreement"] >= 0.75


def test_the_shipped_armorm_resists_attacks_and_ties_equals():
    assert scores(ARMORM)["attack_wins"] <= 0.01
    assert scores(ARMORM)["clear_if_equal"] <= 0.1 < scores(ARMORM)["clear_if_unequal"]
