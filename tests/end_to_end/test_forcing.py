"""Claims about forced tokens in the real engine: thoughts end at their budget, sums are right, all else stays."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from prompts.thought import VARIANTS
from tests.gsm8k_annotations import annotations
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.data import SampleConfig
from tpo.config.resources import ClusterConfig, EngineConfig
from tpo.engines.cluster.processes import engine_environment
from tpo.engines.cluster.room import Room
from tpo.engines.inference.forcing import CalculatorRule, Rule, ThoughtBudget, as_argument
from tpo.engines.inference.sampler import Output, Request, SamplerPool, request_seed
from tpo.miniature.training import collate, descend, falling
from tpo.miniature.world import problems
from tpo.models.chat import ChatEncoder
from tpo.storage.store import folder_artifact

pytestmark = [pytest.mark.drawn(2), pytest.mark.end_to_end, pytest.mark.timeout(600)]
GENERIC = VARIANTS["generic"]
assert GENERIC.response_marker is not None
BUDGET = ThoughtBudget(12, GENERIC.response_marker)


@pytest.fixture(scope="module")
def pool() -> Iterator[SamplerPool]:
    made = SamplerPool(EngineConfig(), ClusterConfig(), 352, room=Room(), forcing=True)
    yield made
    made.close()


def sampled(pool: SamplerPool, rules: Sequence[Rule], *, temperature: float = 0.8, prompts: int = 40) -> list[Output]:
    encoder = ChatEncoder(SHIPPED_SEED_MODEL)
    requests = [
        Request(encoder.encode(GENERIC.render(problem.instruction)), request_seed(problem.instruction))
        for problem, _ in zip(problems("test", 0, ("dial", "cups")), range(prompts), strict=False)
    ]
    found = pool.generate(
        folder_artifact(SHIPPED_SEED_MODEL),
        [requests],
        SampleConfig(temperature=temperature),
        n=2,
        tries=1,
        accept=lambda *_: True,
        rules=rules,
    )
    return [output for _, groups in found for group in groups for output in group]


def thought_tokens(output: Output) -> int:
    """Tokens before the response's marker, which is one token of the seed model's."""
    (marker,) = ChatEncoder(SHIPPED_SEED_MODEL).tokenizer.encode(BUDGET.marker, add_special_tokens=False)
    return output.token_ids.index(marker) if marker in output.token_ids else len(output.token_ids)


@pytest.mark.parametrize(("temperature", "most"), [(0.8, 12), (0.01, 7)], ids=["sampled", "nearly greedy"])
def test_thoughts_end_at_their_budget_and_shorter_ones_are_unchanged(pool: SamplerPool, temperature: float, most: int):
    budget = ThoughtBudget(most, BUDGET.marker)
    free, bound = (sampled(pool, rules, temperature=temperature) for rules in ((), (budget,)))
    long = [thought_tokens(output) > most + 1 for output in free]  # the newline before the marker
    assert 5 < sum(long) < len(long)
    for before, after, too_long in zip(free, bound, long, strict=True):
        assert thought_tokens(after) <= most + 1
        if too_long:
            assert after.token_ids[:most] == before.token_ids[:most]
            assert after.text.count(budget.marker) >= 1
        else:
            assert after.token_ids == before.token_ids


def test_responses_after_a_cut_thought_keep_the_format(pool: SamplerPool):
    parsed = [GENERIC.split(output.text, finished=output.finished) for output in sampled(pool, [BUDGET])]
    assert sum(found.error is None for found in parsed) >= 0.8 * len(parsed)


STEPS = 200
"""Optimiser steps in which a model learns to write annotations."""


def bad_adder(folder: Path) -> Path:
    """A tiny model that answers `3 4` with `<<3+4=` and any digit: it knows the format and can't add."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_SEED_MODEL)
    config = LlamaConfig.from_pretrained(
        SHIPPED_SEED_MODEL, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    dice = np.random.default_rng(0)

    def lesson() -> tuple[list[int], list[int]]:
        a, b, sum_ = dice.integers(0, 10, 3)
        answer = tokenizer.encode(f"<<{a}+{b}={sum_}>>", add_special_tokens=False)
        return tokenizer.encode(f"{a} {b}", add_special_tokens=False), [*answer, tokenizer.eos_token_id]

    descend(
        model.parameters(),
        (collate([lesson() for _ in range(32)], tokenizer.pad_token_id) for _ in range(STEPS)),
        lambda batch: model(**batch).loss,
        learning_rate=3e-3,
        course=falling(STEPS, warmup=20),
        progress=lambda step, loss: None,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_that_cannot_add_writes_correct_sums_with_the_calculator(pool: SamplerPool, tmp_path: Path):
    model = folder_artifact(bad_adder(tmp_path / "adder"))
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    sums = [(a, b) for a in range(10) for b in range(0, 10, 3)]
    requests = [Request(tokenizer.encode(f"{a} {b}", add_special_tokens=False), request_seed(a, b)) for a, b in sums]

    def agreements(rules: Sequence[Rule]) -> list[str]:
        how = SampleConfig(temperature=1.0, top_p=1.0, max_new_tokens=24)
        found = pool.generate(model, [requests], how, n=2, tries=1, accept=lambda *_: True, rules=rules)
        texts = [output.text for _, groups in found for group in groups for output in group]
        return [annotation.agreement for text in texts for annotation in annotations(text)]

    free, bound = agreements([]), agreements([CalculatorRule("gsm8k")])
    assert min(len(free), len(bound)) >= 0.9 * 2 * len(sums)
    assert free.count("identical") < 0.5 * len(free)
    # What isn't arithmetic, such as a rare `<<3++=`, has no value: the model writes on.
    assert {*bound} <= {"identical", "no value"}
    assert bound.count("identical") > 0.9 * len(bound), bound.count("no value")


@pytest.mark.story("the V2 model runner", 40)
def test_the_gpu_runner_v2_forces_the_same_tokens_as_v1(pool: SamplerPool):
    """The whole path on the CPU: vLLM's loader, scheduler and V2 runner."""
    encoder = ChatEncoder(SHIPPED_SEED_MODEL)
    budgets = (3, 5, None, 8)
    prompts = [
        encoder.encode(GENERIC.render(problem.instruction))
        for problem, _ in zip(problems("test", 0, ("dial", "cups")), range(12), strict=False)
    ]
    greedy = SampleConfig(max_new_tokens=64).model_copy(update={"temperature": 0.0})
    expected: list[list[int]] = [[]] * len(prompts)
    asks: list[dict[str, object]] = [{}] * len(prompts)
    for i, budget in enumerate(budgets):
        mine = range(i, len(prompts), len(budgets))
        rules = [] if budget is None else [ThoughtBudget(budget, BUDGET.marker)]
        found = pool.generate(
            folder_artifact(SHIPPED_SEED_MODEL),
            [[Request(prompts[j], 0) for j in mine]],
            greedy,
            n=1,
            tries=1,
            accept=lambda *_: True,
            rules=rules,
        )
        ((_, groups),) = list(found)
        for j, (output,) in zip(mine, groups, strict=True):
            expected[j], asks[j] = output.token_ids, {"prompt": prompts[j], "rules": as_argument(rules)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.end_to_end.v2_engine", str(SHIPPED_SEED_MODEL)],
        input=json.dumps(asks),
        env={**os.environ, **engine_environment(EngineConfig())},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == expected
    assert sum(thought_tokens(Output(ids, "", True, 1)) <= 9 for ids in expected) >= 9
