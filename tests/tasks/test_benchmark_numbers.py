"""Claims about a benchmark's numbers: what a judge of single responses makes of a comparison, and what is left out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.benchmark_numbers import measure_benchmarks
from tasks.benchmark_prompts import distinct
from tasks.handles import BenchmarkAnswers, BenchmarkSet, JudgedSamples
from tests.rows import stored
from tpo.config.run import RunConfig
from tpo.data.benchmark_files import read_benchmark
from tpo.records import Sample, Score
from tpo.report.benchmarks import BenchmarkTable

Answer = tuple[str, float | None]
"""A response and its score."""


def measured(
    folder: Path,
    benchmark: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    model: Sequence[Answer],
    baseline: Sequence[Answer] | None = None,
    judge: Mapping[str, Any] = {"kind": "armorm"},
) -> tuple[RunConfig, BenchmarkTable]:
    """The table of one model in one benchmark."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = {"judge": judge, "benchmarks": [{**benchmark, "path": str(folder / "rows.jsonl")}]}
    config = RunConfig.model_validate({"name": "run", "folder": folder, "evaluation": evaluation})
    config.root.mkdir(exist_ok=True)
    (asked,) = config.evaluation.benchmarks
    prompts = distinct(read_benchmark(asked).rows)

    def judged(name: str, answers: Sequence[Answer]) -> JudgedSamples:
        pairs = [(prompt.prompt_id, *answer) for prompt, answer in zip(prompts, answers, strict=True)]
        samples = [Sample(key, 0, [1], [1], text, "", text, None, 1) for key, text, _ in pairs]
        scores = [
            Score(key, 0, value, None if value is not None else "x", None, len(text)) for key, text, value in pairs
        ]
        return JudgedSamples(
            stored(config.root, f"{name}/samples", samples), stored(config.root, f"{name}/scores", scores)
        )

    of = BenchmarkSet(asked, stored(config.root, "prompts", prompts), None)
    against = None if baseline is None else judged("baseline", baseline)
    answers = BenchmarkAnswers(of, "M_1", judged("model", model), against)
    without_task = measure_benchmarks.fn
    (table,) = without_task(config, [answers]).tables
    return config, table


def test_a_judge_of_single_responses_prefers_the_higher_score(tmp_path: Path):
    rows = [{"instruction": f"Tell {i}."} for i in range(4)]
    model, baseline = [("a", 2.0), ("bb", 1.0), ("c", 0.5), ("d", None)], [("x", 1.0)] * 4
    _, table = measured(tmp_path, {"kind": "alpaca_eval"}, rows, model, baseline)
    (row,) = table.rows
    assert row.numbers["win_rate"].value == 50 and row.numbers["win_rate"].n == 3
    assert row.unscored == 1
    assert table.judge == "armorm (miniature)"
    (remark,) = row.remarks
    assert remark.startswith(
        "No length-controlled win rate for M_1: preference has shape (3,), expected (n,) with n at l"
    )


def test_arena_hard_gets_the_same_verdict_in_both_orders_from_such_a_judge(tmp_path: Path):
    rows = [{"uid": f"u{i}", "prompt": f"Do {i}.", "category": "c", "cluster": ""} for i in range(3)]
    model, baseline = [("a", 2.0), ("b", 1.0), ("c", 0.5)], [("x", 1.0)] * 3
    config, table = measured(tmp_path, {"kind": "arena_hard"}, rows, model, baseline)
    (row,) = table.rows
    assert row.numbers["score"].value == 50
    (judgments,) = (path for path in row.exports if "model_judgment" in path and "old/" not in path)
    games = [json.loads(line)["games"] for line in (config.root / judgments).read_text().splitlines()]
    assert [[game["score"] for game in each] for each in games] == [["B>A", "A>B"], ["A=B", "A=B"], ["A>B", "B>A"]]


def test_a_mean_score_keeps_the_judges_unit_and_its_digits(tmp_path: Path):
    rows = [{"instruction": f"Tell {i}.", "topic": "ab"[i % 2]} for i in range(4)]
    model = [("a", 0.125), ("b", 0.25), ("c", 0.375), ("d", None)]
    _, table = measured(tmp_path, {"kind": "custom", "category_column": "topic"}, rows, model)
    (row,) = table.rows
    assert row.numbers["mean_score"].value == 0.25 and row.unscored == 1
    assert {name: each.value for name, each in row.by_category.items()} == {"a": 0.25, "b": 0.25}
    assert table.scale.number(0.25) == "0.250" and table.baseline is None


def test_a_part_is_called_one(tmp_path: Path):
    rows = [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(4)]
    _, table = measured(tmp_path, {"kind": "gsm8k", "limit": 2}, rows, [("0", 1.0), ("2", 0.0)])
    assert table.about == ("2 prompts, a part: the first of 4; greedy, up to 96 tokens; scored by verifier (math).")
    assert table.rows[0].numbers["accuracy"].value == 50
