"""Builds the miniature's seed model M_0 and measures it: what `make seed-model` runs.

In: nothing but the code. Out: the model's folder, and `scores.json` beside the weights: the share of right answers and
of broken formats that each prompt variant gets on 600 test prompts. A test holds the shipped model to them.
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

from judges.base import Group, Response
from judges.verifier import Verifier
from prompts.thought import VARIANTS, ThoughtPrompt
from tpo.config.data import SampleConfig
from tpo.config.judges import VerifierJudge
from tpo.config.resources import ClusterConfig, EngineConfig
from tpo.console import progress_bar
from tpo.engines.inference.sampler import Request, SamplerPool, request_seed
from tpo.miniature.seed_model import CONTEXT_TOKENS, Recipe, train_seed_model
from tpo.miniature.world import Problem, problems
from tpo.models.chat import ChatEncoder
from tpo.storage.disk import write_atomically
from tpo.storage.store import folder_artifact

SCORES = "scores.json"
TEST_PROMPTS = 600


def build_seed_model(folder: Path) -> Mapping[str, Mapping[str, float]]:
    """Trains M_0 into `folder`, measures it and returns its scores by prompt variant."""
    recipe = Recipe()
    with progress_bar("seed model", recipe.steps, "steps") as advance:
        train_seed_model(VARIANTS, folder, recipe, lambda step, loss: advance(step))
    scores = measure_seed_model(folder)
    write_atomically(folder / SCORES, (json.dumps(scores, indent=1) + "\n").encode())
    return scores


def measure_seed_model(folder: Path) -> dict[str, dict[str, float]]:
    """Share of right answers and of outputs that break the format, first outputs only, by prompt variant."""
    asked = list(itertools.islice(problems("test", 0), TEST_PROMPTS))
    encoder = ChatEncoder(folder)
    pool = SamplerPool(EngineConfig(), ClusterConfig(), CONTEXT_TOKENS)
    try:
        return {name: _measure(folder, prompt, asked, encoder, pool) for name, prompt in VARIANTS.items()}
    finally:
        pool.close()


def _measure(
    folder: Path, prompt: ThoughtPrompt, asked: list[Problem], encoder: ChatEncoder, pool: SamplerPool
) -> dict[str, float]:
    requests = [
        Request(encoder.encode(prompt.render(problem.instruction)), request_seed(problem.instruction))
        for problem in asked
    ]
    sampled = pool.generate(
        folder_artifact(folder), [requests], SampleConfig(), n=1, tries=1, accept=lambda text, finished: True
    )
    outputs = [output for _, groups in sampled for (output,) in groups]
    parsed = [prompt.split(output.text, finished=output.finished) for output in outputs]
    groups = [
        Group(str(i), problem.instruction, problem.reference, (Response(0, found.response),))
        for i, (problem, found) in enumerate(zip(asked, parsed, strict=True))
    ]
    readings = [judgment.outcome or 0.0 for (judgment,) in Verifier(VerifierJudge()).judge(groups)]
    return {
        "right": round(sum(readings) / len(readings), 4),
        "broken": round(sum(found.error is not None for found in parsed) / len(parsed), 4),
    }
