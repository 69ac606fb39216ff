"""Prompts written by a real model on the real engines: new instructions of the world, none close to an earlier one."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tasks.handles import seed_model
from tasks.load_prompts import load_prompts
from tasks.synthesize import synthesize
from tests.end_to_end.tiny_generator import CATEGORIES, CONTEXT_TOKENS, train_tiny_generator
from tests.rows import a_config
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.data import ModelConfig
from tpo.config.run import RunConfig
from tpo.method.similarity import NearTexts
from tpo.miniature import world
from tpo.records import Artifact, Generation, Prompt
from tpo.storage.ledger import read_ledger
from tpo.storage.store import read_manifest, read_rows

pytestmark = [pytest.mark.story("synthetic prompts", 90), pytest.mark.end_to_end, pytest.mark.timeout(900)]

SIMILARITY = 0.9
"""Instructions of the world share most of their words: at 0.7 nearly all would count as duplicates."""


def any_of(words: Sequence[str]) -> str:
    return f"(?:{'|'.join(words)})"


NAME, THING = any_of(world.NAMES), f"{any_of(world.COLOURS)} {any_of(world.THINGS)}"
WORD = any_of([word for pair in world.OPPOSITES for word in pair])
OF_THE_WORLD = re.compile(
    rf"(?:Give|What is) the opposite of {WORD}(?:, {WORD})*\?"
    r"|(?:Which is the largest|What is the biggest) of \d(?:, \d)+\?"
    rf"|{NAME} has a {THING}(?:, {NAME} has a {THING})*\. What does {NAME} have\?"
)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generator")
    train_tiny_generator(folder)
    return folder


def config_for(folder: Path, generator: Path, **synthetic: Any) -> RunConfig:
    settings = {
        "model": str(generator),
        "temperature": 0.8,
        "top_p": 0.95,
        "max_prompt_tokens": CONTEXT_TOKENS - 64,
        "max_new_tokens": 64,
        "max_similarity": SIMILARITY,
        **synthetic,
    }
    source = {"kind": "miniature", "categories": CATEGORIES}
    data = {"source": source, "per_iteration": 40, "validation": 20, "test": 20, "synthetic": settings}
    return a_config(
        folder,
        data=data,
        judge={"kind": "pairwise"},
        model=ModelConfig(path=str(SHIPPED_SEED_MODEL)),
        engine={"shard_prompts": 10},
    )


def two_iterations(config: RunConfig) -> list[Artifact]:
    seed = seed_model(config)
    validation = load_prompts.fn(config, "iter_0/prompts/validation", seed, [])
    test = load_prompts.fn(config, "iter_0/prompts/test", seed, [validation])
    first = synthesize.fn(config, "iter_1/prompts", seed, [validation, test])
    return [validation, test, first, synthesize.fn(config, "iter_2/prompts", seed, [validation, test, first])]


def test_a_real_model_writes_two_iterations_of_new_instructions(tmp_path: Path, generator: Path):
    config = config_for(tmp_path, generator)
    *held_out, first, second = two_iterations(config)
    written = [prompt.instruction for artifact in (first, second) for prompt in read_rows(artifact, Prompt)]
    assert len(set(written)) == 80
    assert sum(OF_THE_WORLD.fullmatch(text) is not None for text in written) >= 60, written
    near = NearTexts(
        SIMILARITY, [prompt.instruction for artifact in held_out for prompt in read_rows(artifact, Prompt)]
    )
    for text in written:
        assert near.first_near(text) is None
        near.add(text)
    manifests = [read_manifest(artifact.path) for artifact in (first, second)]
    accounts = [manifest.account for manifest in manifests if manifest is not None and manifest.account is not None]
    assert [account["rows_in"] - sum(account["dropped"].values()) for account in accounts] == [40, 40]
    generations = read_rows(Artifact(config.root / "iter_1" / "generations", 0, ""), Generation)
    assert all(len(set(generation.example_ids)) == 8 for generation in generations)
    assert {entry.work for entry in read_ledger(config.root)} == {"generate"}

    (again := tmp_path / "again").mkdir()
    assert [a.fingerprint for a in two_iterations(config_for(again, generator))[2:]] == [
        first.fingerprint,
        second.fingerprint,
    ]
