import math
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

from prompts.thought import VARIANTS
from tpo.miniature.seed_model import CONTEXT_TOKENS, Recipe, train_seed_model
from tpo.models.folder import check_model_folder


@pytest.mark.drawn(1)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same_weights(tmp_path: Path, seed: int):
    recipe = Recipe(seed=seed, drills=64, textbook_lessons=64, tuning_lessons=64)
    losses: list[float] = []
    for name in ("a", "b"):
        train_seed_model(VARIANTS, tmp_path / name, recipe, lambda step, loss: losses.append(loss))
    assert recipe.steps == 6 and len(losses) == 12
    assert all(math.isfinite(loss) for loss in losses)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)
    assert check_model_folder(tmp_path / "a") == CONTEXT_TOKENS
    assert AutoTokenizer.from_pretrained(tmp_path / "a").chat_template
