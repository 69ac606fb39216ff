"""The value of thinking: accuracy on the miniature's test prompts against mean thought tokens.

Measures a trained model, by default M_3 of the `laptop` run, with increasing `sample.max_thought_tokens`: `python -m
tests.benchmarks.bench_thought_budget [MODEL]`. Without that run it measures the seed model.
"""

import sys
from pathlib import Path

from judges.base import Group, Response
from judges.verifier import Verifier
from prompts.thought import VARIANTS
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.data import SampleConfig
from tpo.config.judges import VerifierJudge
from tpo.config.resources import ClusterConfig, EngineConfig
from tpo.engines.cluster.room import Room
from tpo.engines.inference.forcing import ThoughtBudget
from tpo.engines.inference.sampler import Output, Request, SamplerPool, request_seed
from tpo.method.stats import mean
from tpo.miniature.world import Problem, problems
from tpo.models.chat import ChatEncoder
from tpo.storage.store import folder_artifact

BUDGETS = (6, 10, 16, 24, 32, 48, None)
PROMPTS = 600
GENERIC = VARIANTS["generic"]
LAST = Path("runs/laptop/iter_3/model")


def main(model: Path) -> None:
    """Measures and prints."""
    encoder = ChatEncoder(model)
    assert GENERIC.response_marker is not None
    (marker,) = encoder.tokenizer.encode(GENERIC.response_marker, add_special_tokens=False)
    drawn = [problem for problem, _ in zip(problems("test", 0), range(PROMPTS), strict=False)]
    requests = [
        Request(encoder.encode(GENERIC.render(problem.instruction)), request_seed(problem.instruction))
        for problem in drawn
    ]
    pool = SamplerPool(EngineConfig(), ClusterConfig(), 352, room=Room(), forcing=True)
    print(f"{model}, {PROMPTS} test prompts, temperature 0.8, one output each")
    print("| max thought tokens | mean thought tokens | right, % [95 %] | broken or cut, % |")
    print("|---|---|---|---|")
    try:
        for budget in BUDGETS:
            rules = [ThoughtBudget(budget, GENERIC.response_marker)] if budget is not None else []
            found = pool.generate(
                folder_artifact(model),
                [requests],
                SampleConfig(),
                n=1,
                tries=1,
                accept=lambda *_: True,
                rules=rules,
            )
            outputs = [output for _, groups in found for (output,) in groups]
            print(_row(budget, drawn, outputs, marker), flush=True)
    finally:
        pool.close()


def _row(budget: int | None, drawn: list[Problem], outputs: list[Output], marker: int) -> str:
    parsed = [GENERIC.split(output.text, finished=output.finished) for output in outputs]
    groups = [
        Group(str(i), problem.instruction, problem.reference, (Response(0, found.response),))
        for i, (problem, found) in enumerate(zip(drawn, parsed, strict=True))
    ]
    right = mean([judgment.outcome or 0.0 for (judgment,) in Verifier(VerifierJudge()).judge(groups)], confidence=0.95)
    ids = [output.token_ids for output in outputs]
    thoughts = [each.index(marker) if marker in each else len(each) for each in ids]
    broken = sum(found.error is not None for found in parsed) / len(parsed)
    return (
        f"| {budget or 'none'} | {sum(thoughts) / len(thoughts):.1f} "
        f"| {100 * right.value:.1f} [{100 * right.low:.1f}, {100 * right.high:.1f}] | {100 * broken:.1f} |"
    )


if __name__ == "__main__":
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else LAST
    main(given if given.is_dir() else SHIPPED_SEED_MODEL)
