"""A run of the loop with each kind of judge on the miniature: what it makes of the model, how far it agrees with the
references, and what it costs.

The loop, the engines and the judges are real; the laptop profile is made smaller, and T = 1. All runs have the same
seed, settings and number of epochs, and are tested by the exact verifier, which only `verifier` knows in training.

- **Same prompts.** Each judge scores the same 8 outputs of M_0 for the same prompts, so calls and tokens are what the
  kinds cost beside each other.
- **Equal budget.** Each judge gets the prompts, from the beginning of the same stream, that `--tokens` tokens of its
  judging pay for, at what a prompt took it in the first run, from 40 to `--most`: cheap judges train on more. A judge
  whose `--most` prompts cost less doesn't use its budget up, and the verifier's costs nothing.

ArmoRM, the evaluator and the grader are shipped. `reward_model` is ArmoRM's Llama with its row for correctness as the
only output; `reward_server` is the same model behind vLLM's own server. The ensembles have ArmoRM and, with four times
the weight, the evaluator.

    python -m tests.benchmarks.bench_judge_runs FOLDER [--prompts 120] [--tokens 110000] [--most 320] [--same-only]
        [--write]

Runs are kept in FOLDER and resumed. `--same-only` leaves the second half out. `--write` puts the table into
docs/judges.md. Seconds are the judge's on training samples, on the machine as it is, starts of engines included.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForSequenceClassification

from flows.recipes import PROFILES, finished, working
from judges.base import groups_of
from tests.benchmarks.bench_judge_kinds import agreement_error
from tests.faults.table import write_between
from tests.vllm_server import VllmServer
from tpo.config.base import SHIPPED
from tpo.config.load import load_config
from tpo.config.run import RunConfig
from tpo.models.armorm import load_armorm
from tpo.models.armorm_format import ATTRIBUTES
from tpo.records import JudgeHealth, Prompt, Sample, Score
from tpo.report.summary import Interval, ModelRow, Summary
from tpo.storage.ledger import Entry, read_ledger
from tpo.storage.store import complete_artifact, read_rows

PAGE = Path(__file__).parents[2] / "docs" / "judges.md"
BEGIN, END = "<!-- written by bench_judge_runs -->\n", "<!-- end of bench_judge_runs -->\n"
SMALLER = (
    "data.validation=120", "data.test=400", "train.epochs=2", "engine.shard_prompts=40",
    "judge_engine.shard_prompts=40", "report.samples_mib=0",
)  # fmt: skip
LEAST_PROMPTS = 40
CORRECTNESS = "helpsteer-correctness"
ARMORM: dict[str, Any] = {"kind": "armorm"}
EVALUATOR: dict[str, Any] = {"kind": "pairwise", "mode": "cot", "tournament": "adaptive"}
BOTH: dict[str, Any] = {
    "kind": "ensemble",
    "members": [
        {"name": "armorm", "judge": ARMORM, "unit": 0.3},
        {"name": "evaluator", "judge": EVALUATOR, "unit": 2.0, "weight": 4.0},
    ],
}


@dataclass(frozen=True)
class Made:
    """A run with one judge."""

    judge: str
    """Its name in the table."""
    prompts: int
    """Prompts that it was trained on the pairs of."""
    summary: Summary
    """The run."""
    judging: list[Entry]
    """The ledger's lines of the judgments of its training samples."""
    error: float
    """Standard error of the agreement with references, over prompts."""

    @property
    def tokens(self) -> int:
        """Tokens that judging took, read and written."""
        return sum(entry.tokens for entry in self.judging)


def judges(folder: Path, server: str) -> dict[str, dict[str, Any]]:
    """Every kind."""
    endpoint = {"base_url": server, "key_variable": "NO_KEY"}
    return {
        "verifier": {"kind": "verifier", "length_bias": 0.3},
        "reward_model": {"kind": "reward_model", "model": str(folder / "reward_model")},
        "armorm": ARMORM,
        "reward_server": {"kind": "reward_server", "model": "rm", "endpoint": endpoint},
        "rubric": {"kind": "rubric"},
        "rubric, expected score": {"kind": "rubric", "expected_score": True},
        "pairwise": EVALUATOR,
        "ensemble, mean": BOTH,
        "ensemble, escalate_below = 1": BOTH | {"escalate_below": 1.0},
    }


def make_reward_model(folder: Path) -> None:
    """ArmoRM's Llama as a model for sequence classification with one output, in float32."""
    shipped = load_armorm(SHIPPED / "armorm", "float32")
    config = shipped.config
    config.num_labels = 1
    model = LlamaForSequenceClassification(config)
    model.model.load_state_dict(shipped.model.state_dict())
    row = shipped.regression_layer.weight[ATTRIBUTES.index(CORRECTNESS)]
    with torch.no_grad():
        model.score.weight.copy_(row[None])
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(SHIPPED / "armorm").save_pretrained(folder)


def run(folder: Path, name: str, judge: str, settings: dict[str, Any], prompts: int) -> Made:
    """A run to M_1; what doesn't depend on the judge is taken from a run with as many prompts."""
    from flows.iterate import iterate

    values = load_config(PROFILES / "laptop.toml", [*SMALLER, f"data.per_iteration={prompts}"]).model_dump(mode="json")
    config = RunConfig.model_validate(values | {"name": name, "folder": folder, "judge": settings})
    if not config.root.exists():
        _share(folder, config.root, prompts)
    return _made(config, judge, prompts, finished(config, 1) or iterate(config, 1))


def _share(folder: Path, root: Path, prompts: int) -> None:
    """Copies prompts and M_0's outputs from an earlier run, whose judge never touched them."""
    for earlier in sorted(folder.glob("*/finished.json")):
        config = json.loads((earlier.parent / "config.json").read_text())
        if config["data"]["per_iteration"] == prompts:
            for stage in ("prompts", "direct", "test", "validation/epoch_0/samples"):
                shutil.copytree(earlier.parent / "iter_0" / stage, root / "iter_0" / stage)
            for stage in ("prompts", "samples"):
                shutil.copytree(earlier.parent / "iter_1" / stage, root / "iter_1" / stage)
            return


def _made(config: RunConfig, judge: str, prompts: int, summary: Summary) -> Made:
    prompts_, samples, scores = (
        complete_artifact(config.root / "iter_1" / n) for n in ("prompts", "samples", "scores")
    )
    groups = groups_of(read_rows(prompts_, Prompt), read_rows(samples, Sample), with_errors=False)
    health = _health(summary)
    error = agreement_error(groups, read_rows(scores, Score), health.reference_agreement or 0.0)
    judging = [entry for entry in read_ledger(config.root) if entry.stage == "iter_1/judgments"]
    return Made(judge, prompts, summary, judging, error)


def _health(summary: Summary) -> JudgeHealth:
    health = summary.models[-1].judge
    assert health is not None
    return health


def table(same: list[Made], equal: list[Made], tokens: int) -> list[str]:
    """The table, in Markdown."""
    head = (
        "| judge | prompts | M_1's test score, % | over M_0 | agrees with references, % | calls | tokens in + out | "
        "judge, s |\n"
    )
    lines = [head, f"|{'---|' * 8}\n"]
    first = same[0].summary.models[1]
    lines.append(f"| none: M_0 | | {_percent(first.score)} | | | | | |\n")
    lines += ["| *same prompts* | | | | | | | |\n", *map(_line, same)]
    if equal:
        lines += [f"| *up to {tokens:,} tokens of judging* | | | | | | | |\n", *map(_line, equal)]
    return lines


def _line(made: Made) -> str:
    last: ModelRow = made.summary.models[-1]
    health = _health(made.summary)
    agreement, error = 100 * (health.reference_agreement or 0.0), 196 * made.error
    cells = [
        made.judge,
        str(made.prompts),
        _percent(last.score),
        _percent(last.gain, signed=True),
        f"{agreement:.1f} ± {error:.1f}",
        f"{sum(entry.answers for entry in made.judging):,}",
        f"{sum(entry.tokens_in for entry in made.judging):,} + {sum(entry.tokens_out for entry in made.judging):,}",
        f"{sum(entry.seconds for entry in made.judging):.0f}",
    ]
    return f"| {' | '.join(cells)} |\n"


def _percent(found: Interval | None, *, signed: bool = False) -> str:
    if found is None:
        return "–"
    low, high = (f"{100 * each:{'+' if signed else ''}.1f}" for each in (found.low, found.high))
    return f"{100 * found.value:{'+' if signed else ''}.1f} [{low}, {high}]".replace("-", "−")


@contextmanager
def all_judges(folder: Path) -> Iterator[Mapping[str, dict[str, Any]]]:
    """Every kind of judge, with its model and server."""
    model = folder / "reward_model"
    if not model.exists():
        make_reward_model(model)
    with VllmServer(model, "rm", folder / "server.log", "--runner", "pooling", "--max-model-len", "512") as server:
        yield judges(folder, server.address)


def main() -> None:
    """Makes all runs, prints the table, and writes it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=120)
    parser.add_argument("--tokens", type=int, default=110_000)
    parser.add_argument("--most", type=int, default=320)
    parser.add_argument("--same-only", action="store_true")
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    same, equal = list[Made](), list[Made]()
    with ExitStack() as stack:
        known = stack.enter_context(all_judges(folder))
        stack.enter_context(working())
        for number, (judge, settings) in enumerate(known.items()):
            same.append(run(folder, f"same-{number}", judge, settings, chosen.prompts))
            print(_line(same[-1]), end="", file=sys.stderr)
        for number, (made, settings) in enumerate([] if chosen.same_only else zip(same, known.values(), strict=True)):
            each = made.tokens / made.prompts
            affordable = int(chosen.tokens / each) if each else chosen.most
            prompts = max(LEAST_PROMPTS, min(chosen.most, affordable))
            equal.append(run(folder, f"equal-{number}", made.judge, settings, prompts))
            print(_line(equal[-1]), end="", file=sys.stderr)
    lines = table(same, equal, chosen.tokens)
    print("".join(lines))
    if chosen.write:
        write_between(PAGE, BEGIN, END, "".join(lines))


if __name__ == "__main__":
    main()
