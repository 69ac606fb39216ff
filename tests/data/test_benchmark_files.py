"""Claims about benchmarks' files: the published formats are read as they are, and a fault is named with its row."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from tasks.benchmark_prompts import distinct
from tests.rows import SHARED_DATA
from tpo.config.benchmarks import (
    LAST_ANSWER,
    AlpacaEval,
    ArenaHard,
    Benchmark,
    BenchmarkConfig,
    CustomBenchmark,
    EvaluationConfig,
    Gsm8k,
    IfEval,
    Math500,
)
from tpo.data.benchmark_files import baseline_outputs, question_ids, read_benchmark, read_difficulties
from tpo.data.prompt_files import PromptRow
from tpo.errors import InputError

PUBLISHED = [
    (IfEval, "ifeval.jsonl"),
    (Gsm8k, "gsm8k_test.jsonl"),
    (Math500, "math_500.jsonl"),
    (AlpacaEval, "alpaca_eval_instructions.jsonl"),
    (ArenaHard, "arena_hard_v0.1_questions.jsonl"),
]


def written(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("kind", "name"), PUBLISHED, ids=[name for _, name in PUBLISHED])
def test_the_published_files_are_read_whole(kind: type[Benchmark], name: str):
    if not (SHARED_DATA / name).is_file():
        pytest.skip(f"{SHARED_DATA / name} is not here")
    benchmark = kind(path=SHARED_DATA / name)
    found = read_benchmark(benchmark)
    assert len(found.rows) == found.of == benchmark.known_size == len(distinct(found.rows))


def test_gsm8ks_reference_is_the_number_after_its_mark_and_answer_only_asks_for_that(tmp_path: Path):
    path = written(tmp_path / "g.jsonl", [{"question": "How many?", "answer": "2 + 3 = <<2+3=5>>5\n#### 1,005"}])
    (row,) = read_benchmark(Gsm8k(path=path)).rows
    assert (row.instruction, row.reference) == ("How many?", "1,005")
    (row,) = read_benchmark(Gsm8k(path=path, answer_only=True, instruction="Only the number.")).rows
    assert row.instruction == "How many?\n\nOnly the number."


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}, or \boxed{0.5}.", "0.5"),
        ("4 + 4\n#### 8", "8"),
        (r"#### 1" + "\n" + r"no: \boxed{\text{(A)}}", r"\text{(A)}"),
    ],
)
def test_the_last_marked_answer_counts(response: str, answer: str):
    import re

    assert re.findall(LAST_ANSWER, response)[-1].strip() == answer


def test_a_question_that_occurs_twice_is_asked_twice():
    rows = [PromptRow(text, None, None, None, None) for text in ("a", "b", "a", "a")]
    assert [prompt.instruction for prompt in distinct(rows)] == ["a", "b", "a", "a"]
    assert len({prompt.prompt_id for prompt in distinct(rows)}) == 4


def test_baselines_are_matched_by_instruction_or_uid_and_category(tmp_path: Path):
    asked = written(tmp_path / "a.jsonl", [{"instruction": "x"}, {"instruction": "y"}])
    given = written(tmp_path / "b.jsonl", [{"instruction": t, "output": t * 2} for t in "yx"])
    benchmark = AlpacaEval(path=asked, baseline_path=given)
    assert baseline_outputs(benchmark, read_benchmark(benchmark).rows) == ["xx", "yy"]

    kinds = ("hard_prompt", "creative_writing")
    hard = written(tmp_path / "q.jsonl", [{"uid": k, "prompt": f"{k}?", "category": k, "cluster": ""} for k in kinds])

    def answers(name: str) -> Path:
        rows = [{"uid": k, "messages": [{"role": "assistant", "content": {"answer": f"{name} {k}"}}]} for k in kinds]
        return written(tmp_path / f"{name}.jsonl", rows)

    arena = ArenaHard(version="v2.0", path=hard, baseline_path=answers("o"), creative_baseline_path=answers("g"))
    assert question_ids(arena) == list(kinds)
    assert baseline_outputs(arena, read_benchmark(arena).rows) == ["o hard_prompt", "g creative_writing"]


@pytest.mark.parametrize(
    ("benchmark", "rows", "says"),
    [
        (Gsm8k, [{"question": "q", "answer": "5"}], "row 1: the answer is '5', expected a solution that ends in ####"),
        (IfEval, [{"prompt": " ", "instruction_id_list": [], "kwargs": []}], "row 1 has no prompt"),
        (Math500, [{"problem": "p", "answer": None, "subject": "s", "level": 1}], "row 1 has no reference in 'answer'"),
        (ArenaHard, [{"prompt": "p"}], "has no column 'category'"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(
    tmp_path: Path, benchmark: type[Benchmark], rows: Sequence[Mapping[str, Any]], says: str
):
    with pytest.raises(InputError, match=says):
        read_benchmark(benchmark(path=written(tmp_path / "f.jsonl", rows)))


def test_a_prompt_without_the_baselines_output_is_named(tmp_path: Path):
    path = written(tmp_path / "a.jsonl", [{"instruction": "x"}])
    other = written(tmp_path / "b.jsonl", [{"instruction": "z", "output": "zz"}])
    benchmark = AlpacaEval(path=path, baseline_path=other)
    with pytest.raises(InputError, match="has no output for 'x'"):
        baseline_outputs(benchmark, read_benchmark(benchmark).rows)


def test_difficulties_come_from_alpaca_evals_file(tmp_path: Path):
    path = tmp_path / "df_gamed.csv"
    path.write_text(
        "model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline\na,0,0.5,1.5,2,False\n"
    )
    found = read_difficulties(path)
    assert found.by_row == {0: 2.0} and found.gamed.length.tolist() == [1.5]
    path.write_text(path.read_text().replace("0.5", "1.5"))
    with pytest.raises(InputError, match=r"expected df_gamed\.csv"):
        read_difficulties(path)


@pytest.mark.parametrize(
    ("evaluation", "says"),
    [
        ({"benchmarks": [{"kind": "ifeval", "path": "a"}] * 2}, "has ifeval twice"),
        ({"benchmarks": [{"kind": "alpaca_eval", "path": "a"}]}, "needs a judge, but judge.kind is verifier"),
        ({"benchmarks": [{"kind": "custom", "path": "a", "kwargs_column": "k"}]}, "go together"),
        ({"benchmarks": [{"kind": "custom", "path": "a", "answer_pattern": "x"}]}, "0 groups, expected one"),
        ({"benchmarks": [{"kind": "humaneval", "path": "a"}]}, "does not match any of the expected tags"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_the_profile(evaluation: Mapping[str, Any], says: str):
    with pytest.raises(ValidationError, match=says):
        EvaluationConfig.model_validate(evaluation)


def test_a_custom_benchmark_is_verified_by_what_its_file_has():
    made: TypeAdapter[BenchmarkConfig] = TypeAdapter(BenchmarkConfig)

    def custom(**values: str) -> CustomBenchmark:
        found = made.validate_python({"kind": "custom", "path": "f", **values})
        assert isinstance(found, CustomBenchmark)
        return found

    references, instructions = custom(reference_column="r"), custom(instruction_ids_column="i", kwargs_column="k")
    assert references.verifier is not None and references.verifier.match == "exact"
    assert instructions.verifier is not None and instructions.verifier.match == "instructions"
    assert custom().verifier is None
