"""The shipped seed model is what `make seed-model` recorded, and starts as the paper's seed does."""

import json

import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from flows.cli.miniature import SCORES, TEST_PROMPTS, measure_seed_model
from prompts.thought import VARIANTS
from tpo.config.base import SHIPPED_SEED_MODEL

Scores = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def recorded() -> Scores:
    scores: Scores = json.loads((SHIPPED_SEED_MODEL / SCORES).read_text())
    return scores


@pytest.mark.story("the shipped models", 90)
@pytest.mark.end_to_end
@pytest.mark.timeout(900)
def test_the_shipped_model_scores_what_is_recorded(recorded: Scores):
    measured = measure_seed_model(SHIPPED_SEED_MODEL)
    assert measured.keys() == recorded.keys() == VARIANTS.keys()
    # Same weights and seeds; another processor may round a log-prob differently and sample another token.
    tolerance = 4 * (0.25 / TEST_PROMPTS) ** 0.5 / 2
    for variant, scores in measured.items():
        assert scores["right"] == pytest.approx(recorded[variant]["right"], abs=tolerance)
        assert scores["broken"] == pytest.approx(recorded[variant]["broken"], abs=tolerance)


def test_with_thoughts_it_starts_below_itself_answering_directly(recorded: Scores):
    for variant in ("generic", "specific", "system"):
        assert recorded[variant]["right"] < recorded["direct"]["right"] - 0.05
        assert 0.03 <= recorded[variant]["broken"] <= 0.10


def test_it_is_small():
    weights = SHIPPED_SEED_MODEL / "model.safetensors"
    assert weights.stat().st_size < 3_000_000
    with safe_open(weights, "numpy") as tensors:
        sizes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    assert sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in sizes) < 2_000_000


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_spends_a_token_on_each_piece_of_our_prompts(variant: str):
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_SEED_MODEL)
    for piece in VARIANTS[variant].prose():
        assert len(tokenizer.encode(piece, add_special_tokens=False)) == 1, piece


@pytest.mark.parametrize("text", ["Crème 🙂 漢字", "<|end|> {{ x }} {% y %}", "a\tb\n\n c  d", "\u202eright to left"])
def test_its_tokenizer_takes_any_text_back_and_forth(text: str):
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_SEED_MODEL)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
