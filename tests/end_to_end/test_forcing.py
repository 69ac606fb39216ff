"""Claims about forced tokens in the real engine: thoughts end at their budget, and nothing else changes."""

from collections.abc import Iterator, Sequence

import pytest

from prompts.thought import VARIANTS
from tasks.lineage import SHIPPED_SEED_MODEL
from tpo.config import ClusterConfig, EngineConfig, SampleConfig
from tpo.engines.chat import ChatEncoder
from tpo.engines.forcing import Rule, ThoughtBudget
from tpo.engines.sampler import Output, Request, SamplerPool, request_seed
from tpo.miniature.world import problems
from tpo.store import folder_artifact

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]
GENERIC = VARIANTS["generic"]
assert GENERIC.response_marker is not None
BUDGET = ThoughtBudget(12, GENERIC.response_marker)


@pytest.fixture(scope="module")
def pool() -> Iterator[SamplerPool]:
    made = SamplerPool(EngineConfig(), ClusterConfig(), 352, forcing=True)
    yield made
    made.close()


def sampled(pool: SamplerPool, rules: Sequence[Rule], *, temperature: float = 0.8, prompts: int = 40) -> list[Output]:
    encoder = ChatEncoder(SHIPPED_SEED_MODEL)
    asked = [
        Request(encoder.encode(GENERIC.render(problem.instruction)), request_seed(problem.instruction))
        for problem, _ in zip(problems("test", 0, ("dial", "cups")), range(prompts), strict=False)
    ]
    found = pool.generate(
        folder_artifact(SHIPPED_SEED_MODEL),
        [asked],
        SampleConfig(temperature=temperature),
        n=2,
        tries=1,
        accept=lambda text, finished: True,
        rules=rules,
    )
    return [output for _, groups in found for group in groups for output in group]


def thought_tokens(output: Output) -> int:
    """Tokens before the response's marker, which is one token of the seed model's."""
    (marker,) = ChatEncoder(SHIPPED_SEED_MODEL).tokenizer.encode(BUDGET.marker, add_special_tokens=False)
    return output.token_ids.index(marker) if marker in output.token_ids else len(output.token_ids)


@pytest.mark.parametrize(("temperature", "most"), [(0.8, 12), (0.01, 7)], ids=["sampled", "nearly greedy"])
def test_no_thought_is_longer_than_its_budget_and_shorter_ones_stay_as_they_were(
    pool: SamplerPool, temperature: float, most: int
):
    budget = ThoughtBudget(most, BUDGET.marker)
    free, bound = (sampled(pool, rules, temperature=temperature) for rules in ((), (budget,)))
    long = [thought_tokens(output) > most + 1 for output in free]  # the line's end comes before the marker
    assert 5 < sum(long) < len(long)
    for before, after, too_long in zip(free, bound, long, strict=True):
        assert thought_tokens(after) <= most + 1
        if too_long:
            assert after.token_ids[:most] == before.token_ids[:most]
            assert after.text.count(budget.marker) >= 1
        else:
            assert after.token_ids == before.token_ids


def test_responses_after_a_thought_that_was_ended_keep_the_format(pool: SamplerPool):
    parsed = [GENERIC.split(output.text, finished=output.finished) for output in sampled(pool, [BUDGET])]
    assert sum(found.error is None for found in parsed) >= 0.8 * len(parsed)
