"""Claims about benchmarks in a run: every model is measured, nothing is done twice, and other tools get their files.

On mock engines, without Prefect, in a process of their own; with a real engine: tests/end_to_end/test_evaluate.py.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.apart import found_apart, remade_stages, stage_times
from tests.faults import mock_run
from tpo.metrics.catalog import METRICS, REMAINING, REPLY_ERRORS, TOKENS
from tpo.records import Judgment, Sample
from tpo.run_context import run_context
from tpo.storage.ledger import read_ledger
from tpo.storage.store import complete_artifact, read_rows

pytestmark = pytest.mark.slow
MODELS = ["M_0 direct", "M_0", "M_1"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What became of the runs."""
    return found_apart("tests.flows.test_benchmarks", tmp_path_factory.mktemp("benchmarks"))


def table(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(each for each in found["results"]["tables"] if each["name"] == name)


def test_m_0_direct_m_0_and_every_m_t_are_measured_on_every_benchmark(found: Mapping[str, Any]):
    for each in found["results"]["tables"]:
        assert [row["model"] for row in each["rows"]] == MODELS
    names = ["ifeval", "gsm8k", "answers", "math500", "alpaca_eval", "arena_hard", "v2", "own", "liked"]
    assert [each["name"] for each in found["results"]["tables"]] == names


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("ifeval", ["average", "prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose"]),
        ("gsm8k", ["accuracy"]),
        ("math500", ["accuracy"]),
        ("alpaca_eval", ["win_rate", "lc_minimal_win_rate"]),
        ("arena_hard", ["score"]),
        ("v2", ["score", "style_controlled_score"]),
        ("own", ["accuracy"]),
        ("liked", ["win_rate"]),
    ],
)
def test_each_has_its_numbers_with_intervals(found: Mapping[str, Any], name: str, numbers: list[str]):
    row = table(found, name)["rows"][-1]
    assert list(row["numbers"]) == numbers
    assert all(0 <= each["low"] <= each["value"] <= each["high"] <= 100 for each in row["numbers"].values())


def test_categories_get_their_own_numbers(found: Mapping[str, Any]):
    assert set(table(found, "math500")["rows"][0]["by_category"]) == {"Algebra", "Geometry"}
    assert set(table(found, "v2")["rows"][-1]["by_category"]) == {"hard_prompt", "creative_writing"}


def test_a_table_says_what_its_numbers_are_of(found: Mapping[str, Any]):
    gsm8k, alpaca, liked = (table(found, name) for name in ("gsm8k", "alpaca_eval", "liked"))
    assert (gsm8k["prompts"], gsm8k["of"], gsm8k["judge"]) == (4, 6, "verifier (math)")
    assert gsm8k["decoding"] == "greedy, up to 50 tokens" and gsm8k["baseline"] is None
    assert (alpaca["judge"], alpaca["baseline"]) == ("pairwise (miniature)", "gpt4_1106_preview")
    assert liked["baseline"] == "M_0 direct"


def test_without_a_file_of_its_own_the_baseline_is_m_0_answering_directly(found: Mapping[str, Any]):
    direct = table(found, "liked")["rows"][0]
    assert direct["numbers"]["win_rate"]["value"] == 50


def test_greedy_outputs_are_sampled_once(found: Mapping[str, Any]):
    assert found["tries"] == {"gsm8k": 1, "liked": 2}


def test_a_second_call_makes_nothing_and_a_third_knows_that_before_it_starts(found: Mapping[str, Any]):
    assert found["again"] == [] and found["known"]


def test_one_more_benchmark_is_all_that_is_made_for_it(found: Mapping[str, Any]):
    assert found["added"] and all("/benchmarks/more/" in stage for stage in found["added"])


def test_what_it_took_is_in_the_ledger(found: Mapping[str, Any]):
    assert {"benchmark sample", "benchmark judge"} <= set(found["work"])


def test_the_counters_of_prometheus_equal_the_ledger_and_the_records(found: Mapping[str, Any]):
    metrics, ledger, records = found["counted"]
    assert metrics == ledger and {"sample", "judge", "train", "benchmark sample"} <= set(metrics)
    assert records == {work: metrics[work][1] for work in records} and all(records.values())


def test_a_reply_without_a_verdict_is_counted_as_a_judges_error(found: Mapping[str, Any]):
    counted, recorded = found["unreadable"]
    assert counted == recorded > 0


def test_a_run_on_cpus_with_a_judge_exports_what_does_not_need_actors_or_gpus(found: Mapping[str, Any]):
    wanted = {metric.name for metric in METRICS if metric.needs in (None, "judge")} - {REMAINING.name}
    assert set(found["exported"]) == wanted


def test_the_report_shows_the_tables(found: Mapping[str, Any]):
    assert found["on the page"] == 3 * 9


def test_alpaca_eval_gets_outputs_and_annotations_without_thoughts(found: Mapping[str, Any]):
    outputs, annotations = found["alpaca_eval"]
    assert [each["instruction"] for each in outputs] == [f"Tell me about {i}." for i in range(8)]
    assert all("thought process" not in each["output"] for each in outputs)
    assert set(outputs[0]) == {"instruction", "output", "generator"} and outputs[0]["generator"] == "run-M_1"
    for each in annotations:
        assert 1 <= each["preference"] <= 2 and each["annotator"] == "pairwise-miniature"
        assert each["output_1"] == f"Baseline on {each['index']}." * (1 + each["index"])


def test_alpaca_eval_gets_a_config_of_its_own_for_the_judge(found: Mapping[str, Any]):
    """By which alpaca_eval 0.6.6 takes annotations.json for that annotator's (docs/benchmarks.md has the command)."""
    config, path = found["annotator"]
    assert list(config) == ["pairwise-miniature"] and path.endswith("run-M_1/pairwise-miniature/configs.yaml")
    assert config["pairwise-miniature"]["prompt_template"] == "pairwise-miniature/prompt.txt"


def test_arena_hard_gets_answers_and_games_in_both_formats(found: Mapping[str, Any]):
    answers, judged, old = found["arena_hard"]
    assert [each["uid"] for each in answers] == [f"u{i}" for i in range(8)]
    assert set(answers[0]["metadata"]) == {"token_len", "header_count", "list_count", "bold_count"}
    assert answers[0]["messages"][-1]["content"]["answer"] == old[0]["choices"][0]["turns"][0]["content"]
    verdicts = {game["score"] for each in judged for game in each["games"]}
    assert verdicts <= {"A>B", "B>A", "A=B", None} and len(verdicts) > 1
    assert all(len(each["games"]) == 2 and each["judge"] == "pairwise-miniature" for each in judged)


def test_ifevals_checker_gets_prompts_and_responses(found: Mapping[str, Any]):
    assert [set(each) for each in found["ifeval"]] == [{"prompt", "response"}] * 6


def main(parent: Path) -> None:
    """Makes the runs; writes what became of them."""
    from flows.iterate import iterate
    from flows.recipes import RECIPES
    from tpo.report.benchmarks import BENCHMARKS

    config = _config(parent / "plain", benchmarks_of(parent))
    iterate.fn(config, 1)
    found: dict[str, Any] = {"counted": _counted(config.root)}
    found["unreadable"] = [run_context().metrics.total(REPLY_ERRORS), _unreadable(config.root)]
    found["exported"] = [metric.name for metric in run_context().metrics.snapshot()]
    results = json.loads((config.root / BENCHMARKS).read_text())
    found["results"] = results
    before = stage_times(config.root)
    iterate.fn(config, 1)
    found["again"] = remade_stages(config.root, before)
    found["known"] = RECIPES["iterate"].ready(config, 1) is not None
    found["work"] = sorted({entry.work for entry in read_ledger(config.root)})
    found["on the page"] = (config.root / "report.html").read_text().count("data-benchmark=")
    found["tries"] = {name: _tries(config.root / f"iter_0/benchmarks/{name}/samples") for name in ("gsm8k", "liked")}
    files = {each["name"]: each["rows"][-1]["exports"] for each in results["tables"]}
    read = {
        name: [_rows(config.root / path) for path in paths if not path.endswith(".txt")]
        for name, paths in files.items()
    }
    found["alpaca_eval"] = [read["alpaca_eval"][0], read["alpaca_eval"][2]]
    found["annotator"] = [read["alpaca_eval"][3], files["alpaca_eval"][-1]]
    found["arena_hard"] = read["arena_hard"][:3]
    found["ifeval"] = read["ifeval"][0]

    more = {"kind": "gsm8k", "name": "more", "path": parent / "gsm8k.jsonl"}
    before = stage_times(config.root)
    iterate.fn(_config(parent / "plain", [*benchmarks_of(parent), more]), 1)
    found["added"] = remade_stages(config.root, before)
    (parent / "found.json").write_text(json.dumps(found))


def benchmarks_of(parent: Path) -> list[dict[str, Any]]:
    """One of each kind, of rows in the published formats."""
    checked: list[dict[str, Any]] = [
        {"prompt": f"Write about {i} without a comma.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
        for i in range(6)
    ]
    grade: list[dict[str, Any]] = [
        {"question": f"What is {i} + 1?", "answer": f"One more.\n#### {i + 1}"} for i in range(6)
    ]
    hard: list[dict[str, Any]] = [
        {"problem": f"Find ${i}$.", "answer": str(i), "subject": ["Algebra", "Geometry"][i % 2], "level": 1}
        for i in range(4)
    ]
    tasks: list[dict[str, Any]] = [{"instruction": f"Tell me about {i}."} for i in range(8)]
    given: list[dict[str, Any]] = [
        row | {"output": f"Baseline on {i}." * (1 + i), "generator": "gpt4_1106_preview"} for i, row in enumerate(tasks)
    ]
    questions: list[dict[str, Any]] = [
        {"uid": f"u{i}", "prompt": f"Do {i}.", "category": ["hard_prompt", "creative_writing"][i % 2]} for i in range(8)
    ]
    answered: list[dict[str, Any]] = [
        {
            "uid": row["uid"],
            "messages": [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": {"answer": f"# Done {row['uid']}\n- so"}},
            ],
        }
        for row in questions
    ]
    files: dict[str, list[dict[str, Any]]] = {
        "ifeval": checked,
        "gsm8k": grade,
        "math": hard,
        "alpaca": tasks,
        "baseline": given,
        "arena": questions,
        "answers": answered,
    }
    paths = {name: parent / f"{name}.jsonl" for name in files}
    for name, rows in files.items():
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = {"baseline_path": paths["answers"], "creative_baseline_path": paths["answers"]}
    columns = {"instruction_column": "question", "reference_column": "answer"}
    return [
        {"kind": "ifeval", "path": paths["ifeval"]},
        {"kind": "gsm8k", "path": paths["gsm8k"], "limit": 4, "max_new_tokens": 50},
        {"kind": "gsm8k", "name": "answers", "path": paths["gsm8k"], "answer_only": True},
        {"kind": "math500", "path": paths["math"]},
        {"kind": "alpaca_eval", "path": paths["alpaca"], "baseline_path": paths["baseline"]},
        {"kind": "arena_hard", "path": paths["arena"], "baseline_path": paths["answers"]},
        {"kind": "arena_hard", "name": "v2", "version": "v2.0", "path": paths["arena"], **both},
        {"kind": "custom", "name": "own", "path": paths["gsm8k"], **columns},
        {"kind": "custom", "name": "liked", "path": paths["alpaca"], "temperature": None},
    ]


def _config(folder: Path, benchmarks: list[dict[str, Any]]) -> Any:
    from tpo.config.run import RunConfig

    folder.mkdir(exist_ok=True)
    values = mock_run.config_of(folder, mock_run.Plan("verifier")).model_dump(mode="json")
    evaluation = {"judge": {"kind": "pairwise"}, "benchmarks": benchmarks}
    return RunConfig.model_validate({**values, "model": {"path": "miniature"}, "evaluation": evaluation})


def _rows(path: Path) -> Any:
    text = path.read_text()
    return json.loads(text) if path.suffix in (".json", ".yaml") else [json.loads(line) for line in text.splitlines()]


def _counted(root: Path) -> tuple[dict[str, list[int]], dict[str, list[int]], dict[str, int]]:
    """Tokens read and written by kind of work, in the metrics and in the ledger; tokens in the records of some work."""
    metrics, ledger = defaultdict[str, list[int]](lambda: [0, 0]), defaultdict[str, list[int]](lambda: [0, 0])
    for (work, direction), value in run_context().metrics.snapshot()[TOKENS].items():
        metrics[work][direction == "out"] += int(value)
    for entry in read_ledger(root):
        ledger[entry.work] = [ledger[entry.work][0] + entry.tokens_in, ledger[entry.work][1] + entry.tokens_out]
    records = {
        work: sum(len(row.output_token_ids) for stage in stages for row in read_rows(complete_artifact(stage), Sample))
        for work, stages in {
            "sample": root.glob("iter_*/samples"),
            "benchmark sample": root.glob("iter_*/benchmarks/**/samples"),
        }.items()
    }
    return metrics, ledger, records


def _unreadable(root: Path) -> int:
    """Comparisons without a verdict, in the records."""
    rows = (row for stage in root.rglob("judgments") for row in read_rows(complete_artifact(stage), Judgment))
    return sum(row.other_index is not None and row.outcome is None for row in rows)


def _tries(folder: Path) -> int:
    """How often an output may be sampled, by the stage's manifest."""
    values = json.loads((folder / "manifest.json").read_text())
    return int(values["config"]["sample"]["tries"])


if __name__ == "__main__":
    with mock_run.prepared(forks=False):
        main(Path(sys.argv[1]))
