"""Claims about win rates by kind of instruction: rated once, resumed, current, and the same in all pages.

The runs are those of `tests.faults.mock_run`, on mock engines and with a rater on loopback, in a subprocess.
"""

import dataclasses
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.apart import found_apart, remade_stages, stage_times
from tests.faults import mock_run
from tests.misbehaving_server import Fail, MisbehavingServer, Say

pytestmark = [pytest.mark.story("kinds of instruction", 40), pytest.mark.slow]
TEST_PROMPTS, BENCHMARK_PROMPTS = 24, 6


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What became of the runs."""
    return found_apart("tests.flows.test_fine_grained", tmp_path_factory.mktemp("fine-grained"))


def test_a_rater_that_dies_is_asked_nothing_twice_and_each_prompt_once_for_all_models(found: Mapping[str, Any]):
    assert found["died"] and 0 < found["before it died"] < TEST_PROMPTS
    assert found["asked"] == TEST_PROMPTS + BENCHMARK_PROMPTS
    assert found["asked most"] == 1


def test_every_m_t_has_a_win_rate_over_m_0_direct_in_every_category(found: Mapping[str, Any]):
    kinds = found["summary"]["fine_grained"]
    assert (kinds["against"], kinds["rated"]) == ("M_0 direct", ["category", "complexity"])
    assert [row["model"] for row in kinds["rows"]] == ["M_0", "M_1"]
    for row in kinds["rows"]:
        assert set(row["by_category"]) == {"Coding", "Mathematics"} and set(row["by_complexity"]) == {"1", "2", "3"}


def test_what_cannot_be_read_is_unknown_and_in_no_kind(found: Mapping[str, Any]):
    kinds = found["summary"]["fine_grained"]
    assert kinds["no_category"] == {"no_label": 6} and kinds["no_complexity"] == {"not_listed": 6}
    for row in kinds["rows"]:
        for groups, unknown in (("by_category", "no_category"), ("by_complexity", "no_complexity")):
            assert sum(each["n"] for each in row[groups].values()) + row[unknown]["n"] == row["overall"]["n"]


def test_the_win_rates_follow_from_the_rows(found: Mapping[str, Any]):
    for row, expected in zip(found["summary"]["fine_grained"]["rows"], found["expected"], strict=True):
        assert row["overall"]["value"] == pytest.approx(expected["all"])
        for name, value in expected["by category"].items():
            assert row["by_category"][name]["value"] == pytest.approx(value)


def test_a_second_call_makes_nothing_and_a_third_knows_that_before_it_starts(found: Mapping[str, Any]):
    assert found["again"] == [] and found["known"]


def test_other_categories_make_the_ratings_stale_and_how_the_server_is_reached_does_not(found: Mapping[str, Any]):
    assert found["stale"] == {"other categories": True, "another address": False, "another rater": True}


def test_of_a_benchmark_only_what_its_file_does_not_bring_is_rated(found: Mapping[str, Any]):
    (mine,) = found["benchmarks"]
    assert mine["rater"].startswith("rater at http://127.0.0.1")
    assert set(mine["rows"][0]["by_category"]) == {"odd", "even"}
    assert set(mine["rows"][0]["by_complexity"]) == {"1", "2", "3"}


def test_a_comparison_has_the_leads_by_kind_and_rates_nothing(found: Mapping[str, Any]):
    compared = found["comparison"]
    assert compared["fine_grained"]["against"] == "the same model of run-direct"
    assert [row["model"] for row in compared["fine_grained"]["rows"]] == ["M_0", "M_1"]
    assert compared["fine_grained"]["rows"][1]["overall"] == compared["leads"][1]["overall"]
    assert compared["direct"]["fine_grained"] is None


def test_what_rating_took_is_in_the_ledger(found: Mapping[str, Any]):
    answers, tokens = found["spent"]
    assert (answers, tokens) == (TEST_PROMPTS + BENCHMARK_PROMPTS, 15 * (TEST_PROMPTS + BENCHMARK_PROMPTS))


def test_pages_and_markdown_have_the_tables(found: Mapping[str, Any]):
    assert found["on the pages"] == {"report.html": 9, "comparison.html": 18, "benchmarks": 3}
    assert "| Coding |" in found["markdown"] and "| unknown |" in found["markdown"]


def main(parent: Path) -> None:
    """Makes the runs; writes what became of them."""
    from flows.compare import compare_with_direct
    from flows.iterate import iterate
    from flows.recipes import RECIPES
    from tpo.errors import StageError
    from tpo.storage.ledger import read_ledger

    asked, found = Counter[str](), dict[str, Any]()

    def script(request: dict[str, Any], _: int) -> Say | Fail:
        if "before it died" not in found and asked.total() >= 13:
            return Fail(500)
        asked[_instruction(request)] += 1
        return Say()

    with MisbehavingServer(script, says=_says) as server:
        config = _config(parent, server.base_url)
        try:
            iterate.fn(config, 1)
        except StageError:
            found["died"] = True
        found["before it died"] = asked.total()
        comparison = compare_with_direct.fn(config, 1)
        found["comparison"] = dataclasses.asdict(comparison)
        found["asked"], found["asked most"] = asked.total(), max(asked.values())
        found["spent"] = _spent(read_ledger(config.root))
        found["summary"] = json.loads((config.root / "summary.json").read_text())
        found["benchmarks"] = json.loads((config.root / "benchmarks.json").read_text())["tables"]
        found["expected"] = [_expected(config.root, t) for t in (0, 1)]
        before = stage_times(parent)
        assert compare_with_direct.fn(config, 1) == comparison
        found["again"] = remade_stages(parent, before)
        found["known"] = RECIPES["compare"].ready(config, 1) is not None
        page = {name: (config.root / name).read_text() for name in ("report.html", "comparison.html")}
        found["on the pages"] = {name: len(re.findall("data-kind-of=", text)) for name, text in page.items()}
        found["on the pages"]["benchmarks"] = len(re.findall('data-benchmark-kind="', page["report.html"]))
        found["markdown"] = (config.root / "fine_grained.md").read_text()
        found["stale"] = {
            "other categories": _is_stale(_config(parent, server.base_url, categories=("Coding", "Poetry"))),
            "another address": _is_stale(_config(parent, "http://127.0.0.1:9/v1")),
            "another rater": _is_stale(_config(parent, server.base_url, model="other")),
        }
    (parent / "found.json").write_text(json.dumps(found))


def _says(request: dict[str, Any]) -> str:
    """By the number in the instruction: a quarter has no category, another no complexity."""
    number = int(re.findall(r"\d+", _instruction(request))[0])
    category = ["[[Category: coding]]", "[[Category: Mathematics]]", "It is Coding.", "[[Category:Coding]]"][number % 4]
    return f"The user wants a number. {category} [[Complexity: {[1, 2, 3, 'three'][number % 4]}]]"


def _instruction(request: dict[str, Any]) -> str:
    text: str = request["messages"][-1]["content"]
    return text.partition("[The Start of the Instruction]\n")[2].partition("\n[The End")[0]


def _is_stale(config: Any) -> bool:
    """Whether the test prompts would be rated again."""
    from tasks.rate import RATINGS, Brought, ratings_stage
    from tpo.storage.store import complete_artifact

    prompts = complete_artifact(config.root / "iter_0/prompts/test")
    return ratings_stage(config, RATINGS, prompts, Brought(categories=False, complexities=False)).complete() is None


def _config(parent: Path, base_url: str, **changes: Any) -> Any:
    from tpo.config.run import RunConfig

    rows = [{"instruction": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(200)]
    mine = [{"instruction": f"Say {i}.", "kind": ["even", "odd"][i % 2]} for i in range(6)]
    (parent / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[TEST_PROMPTS:]))
    (parent / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:TEST_PROMPTS]))
    (parent / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mine))
    values = mock_run.config_of(parent, mock_run.Plan("verifier")).model_dump(mode="json")
    source = {"kind": "file", "path": parent / "prompts.jsonl", "test_path": parent / "test.jsonl"}
    endpoint = {"base_url": base_url, "retries": 0, "concurrency": 1}
    evaluation = {
        "judge": {"kind": "pairwise"},
        "fine_grained": {"model": "rater", "endpoint": endpoint, "min_prompts": 5, **changes},
        "benchmarks": [
            {"kind": "custom", "name": "mine", "path": parent / "mine.jsonl", "category_column": "kind"},
        ],
    }
    data = {
        **values["data"],
        "source": source | {"reference_column": "answer"},
        "test": TEST_PROMPTS,
        "max_prompt_tokens": 150,
    }
    return RunConfig.model_validate(
        {**values, "model": {"path": "miniature"}, "data": data, "evaluation": evaluation, "tracking": {"to": "none"}}
    )


def _expected(root: Path, t: int) -> dict[str, Any]:
    """The win rates of M_t, computed from the stored rows."""
    won = {row.prompt_id: row.value for row in _rows(root / f"iter_{t}/against_direct/scores", "Score")}
    kinds = {row.prompt_id: row.category for row in _rows(root / "iter_0/ratings", "Rating")}
    scored = {key: value for key, value in won.items() if value is not None}
    groups: dict[str, list[float]] = {}
    for key, value in scored.items():
        if kinds[key] is not None:
            groups.setdefault(kinds[key], []).append(value)
    means = {name: sum(values) / len(values) for name, values in groups.items()}
    return {"all": sum(scored.values()) / len(scored), "by category": means}


def _rows(folder: Path, record: str) -> list[Any]:
    from tpo import records
    from tpo.storage.store import complete_artifact, read_rows

    return list(read_rows(complete_artifact(folder), getattr(records, record)))


def _spent(entries: Any) -> tuple[int, int]:
    rated = [entry for entry in entries if entry.work == "rate"]
    return sum(entry.answers for entry in rated), sum(entry.tokens for entry in rated)


if __name__ == "__main__":
    with mock_run.prepared(forks=False):
        main(Path(sys.argv[1]))
