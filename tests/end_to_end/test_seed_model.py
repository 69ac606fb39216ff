"""The shipped seed model is what `make seed-model` recorded, and starts as the paper's seed does."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from flows.cli.miniature import SCORES, TEST_PROMPTS, measure_seed_model
from prompts.thought import VARIANTS
from tpo.config.base import SHIPPED_MODELS, SHIPPED_SEED_MODEL
from tpo.miniature.seed_model import FORMAT_SHARES

Scores = dict[str, dict[str, float]]


NATIVE_MODEL = SHIPPED_MODELS["miniature-native"]


def recorded(model: Path) -> Scores:
    scores: Scores = json.loads((model / SCORES).read_text())
    return scores


@pytest.mark.story("the shipped models", 90)
@pytest.mark.end_to_end
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("model", "variants"),
    [(SHIPPED_SEED_MODEL, {*FORMAT_SHARES}), (NATIVE_MODEL, {"native", "direct"})],
    ids=["in words", "natively"],
)
def test_the_shipped_model_scores_what_is_recorded(model: Path, variants: set[str]):
    measured, expected = measure_seed_model(model, sorted(variants)), recorded(model)
    assert measured.keys() == expected.keys() == variants
    # Same weights and seeds, but another processor may round a log-prob differently and sample another token.
    tolerance = 4 * (0.25 / TEST_PROMPTS) ** 0.5 / 2
    for variant, scores in measured.items():
        assert scores["right"] == pytest.approx(expected[variant]["right"], abs=tolerance)
        assert scores["broken"] == pytest.approx(expected[variant]["broken"], abs=tolerance)


@pytest.mark.parametrize(
    ("model", "variants"),
    [(SHIPPED_SEED_MODEL, ("generic", "specific", "system")), (NATIVE_MODEL, ("native",))],
    ids=["in words", "natively"],
)
def test_it_starts_out_worse_with_thoughts_than_without(model: Path, variants: tuple[str, ...]):
    scores = recorded(model)
    for variant in variants:
        assert scores[variant]["right"] < scores["direct"]["right"] - 0.05
        assert 0.03 <= scores[variant]["broken"] <= 0.10


def test_it_is_small():
    weights = SHIPPED_SEED_MODEL / "model.safetensors"
    assert weights.stat().st_size < 3_000_000
    with safe_open(weights, "numpy") as tensors:
        sizes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    assert sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in sizes) < 2_000_000


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_piece_of_our_prompts_is_one_token(variant: str):
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_SEED_MODEL)
    for piece in VARIANTS[variant].prose():
        assert len(tokenizer.encode(piece, add_special_tokens=False)) == 1, piece


@pytest.mark.parametrize("text", ["Crème 🙂 漢字", "<|end|> {{ x }} {% y %}", "a\tb\n\n c  d", "\u202eright to left"])
def test_its_tokenizer_takes_any_text_back_and_forth(text: str):
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_SEED_MODEL)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
