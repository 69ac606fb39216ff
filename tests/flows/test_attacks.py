"""Claims about the limit on attacks (`health.max_attacked`): a gullible judge stops a run before its first training.

On mock engines and a server on loopback that grades, in a subprocess without Prefect.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.apart import found_apart, remade_stages, stage_times
from tests.faults import mock_run
from tests.flows.test_judge_kinds import adding_pool, is_right, small_config

pytestmark = [pytest.mark.story("attacks on a run's judge", 40), pytest.mark.slow]

LIMIT = {"max_attacked": 0.2, "attacked_prompts": 20}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return found_apart("tests.flows.test_attacks", tmp_path_factory.mktemp("attacks"))


def test_a_judge_that_praise_wins_over_stops_the_run_before_it_trains(found: dict[str, Any]):
    run = found["stopped"]
    assert run["error"].startswith("iter_1/attacks/shares: the judge can be won over: flattery (praise of the user")
    assert "health.max_attacked allows at most 0.2" in run["error"] and "ensemble with one" in run["error"]
    assert "verdict" not in run["error"], "attacks that it withstands aren't named"
    assert "iter_1/attacks/shares" in run["stages"]
    assert not {stage for stage in run["stages"] if stage.startswith(("iter_1/pairs", "iter_1/train"))}


def test_the_next_start_says_the_same_and_asks_nothing(found: dict[str, Any]):
    assert found["again"]["error"] == found["stopped"]["error"]
    assert found["again"]["asked"] == 0 and found["again"]["remade"] == []


def test_with_a_higher_limit_the_run_goes_on_and_its_report_has_the_shares(found: dict[str, Any]):
    run = found["raised"]
    assert run["error"] == "" and not [stage for stage in run["remade"] if "attacks" in stage]
    shares = {each["attack"]: each for each in run["attacks"]["M_1"]}
    assert shares["flattery"]["turned"] > 0.2 >= shares["verdict"]["turned"]
    assert 0 < shares["flattery"]["pairs"] <= LIMIT["attacked_prompts"]
    assert run["attacks"]["M_0"] == run["attacks"]["M_2"] == []
    assert '<tr data-attack="flattery">' in run["page"] and run["seconds"]["attacks"] > 0


def test_attacks_are_booked_and_a_prompt_keeps_its_own_rubric(found: dict[str, Any]):
    run = found["stopped"]
    assert run["booked"] == run["asked_about_attacks"] > 100
    assert {*run["rubrics"]} == {"Add up.", "Subtract nothing."}


def test_a_server_that_dies_among_the_attacks_costs_no_reply_twice(found: dict[str, Any]):
    run = found["died"]
    assert "server" in run["error"] and 10 < run["answered_before"] < found["stopped"]["booked"]
    assert run["second_error"] == found["stopped"]["error"]
    assert run["same_replies"], "each question was answered as often as in the run that nothing interrupted"


def test_without_a_limit_nothing_is_attacked_and_no_stage_is_another(found: dict[str, Any]):
    run = found["off"]
    assert not [stage for stage in run["stages"] if "attacks" in stage]
    assert run["fingerprints"] == found["raised"]["fingerprints"]
    assert 'id="attacks"' not in run["page"]


# The runs


@mock_run.prepared(forks=False)
def main(parent: Path) -> None:
    """Makes the runs and writes what they found."""
    from tests.misbehaving_server import Fail, MisbehavingServer, Say

    found = dict[str, Any]()
    with MisbehavingServer(says=_grade) as server:
        stopped = _made(parent / "run", server, LIMIT)
        asked = [each.request["messages"][1]["content"] for each in server.asked]
        chats = [json.dumps(each.request["messages"]) for each in server.asked]
        stopped["rubrics"] = [text.partition("[The Rubric]\n")[2].partition("\n")[0] for text in asked]
        stopped["asked_about_attacks"] = stopped["asked"] - stopped["answers"]
        found["stopped"] = stopped
        found["again"] = _made(parent / "run", server, LIMIT)
        found["raised"] = _made(parent / "run", server, LIMIT | {"max_attacked": 0.99})
        found["off"] = _made(parent / "off", server, {})
    answered, dead = Counter[str](), [True]

    def dies(request: dict[str, Any], n: int) -> Any:
        if dead[0] and answered.total() > 330:
            return Fail(500)
        answered[json.dumps(request["messages"])] += 1
        return Say()

    with MisbehavingServer(dies, says=_grade) as server:
        died = _made(parent / "died", server, LIMIT)
        died["answered_before"], dead[0] = answered.total() - died["answers"], False
        died["second_error"] = _made(parent / "died", server, LIMIT)["error"]
    died["same_replies"] = answered == Counter(chats)
    found["died"] = died
    (parent / "found.json").write_text(json.dumps(found))


def _grade(request: dict[str, Any]) -> str:
    """9 for praise of the user, otherwise 8 for a right sum and 2 for a wrong one."""
    shown = request["messages"][1]["content"]
    response = shown.partition("[The Start of the Response]\n")[2].partition("\n[The End of the Response]")[0]
    flatters = re.search("excellent and thoughtful|fully agree|^You ask: ", response)
    return f"Well. [[Score: {9 if flatters else 8 if is_right(shown) else 2}]]"


def _made(folder: Path, server: Any, health: dict[str, Any]) -> dict[str, Any]:
    from flows.iterate import iterate
    from tests.faults.mock_engines import MockEngines
    from tpo.config.run import RunConfig
    from tpo.errors import StageError
    from tpo.report.summary import SUMMARY, read_summary
    from tpo.run_context import RunContext, using
    from tpo.storage.ledger import read_ledger
    from tpo.storage.store import read_manifest

    endpoint = {"base_url": server.base_url, "key_variable": "NO_KEY", "retries": 1}
    judge = {"kind": "rubric", "model": "m", "endpoint": endpoint, "rubric": "Subtract nothing."}
    values = small_config(folder, judge).model_dump(mode="json")
    config = RunConfig.model_validate(values | {"health": values["health"] | health})
    before, asked, error = stage_times(folder), len(server.asked), ""
    try:
        with using(RunContext(engines=MockEngines(adding_pool()))):
            iterate.fn(config, 2)
    except StageError as stopped:
        error = str(stopped)
    root = config.root
    stages = sorted(stage.removeprefix("run/") for stage in stage_times(folder))
    summary = read_summary(root / SUMMARY) if not error else None
    entries = [entry for entry in read_ledger(root) if entry.server]
    return {
        "error": error,
        "asked": len(server.asked) - asked,
        "stages": stages,
        "remade": remade_stages(folder, before),
        "booked": sum(entry.answers for entry in entries if "attacks" in entry.stage),
        "answers": sum(entry.answers for entry in entries if "attacks" not in entry.stage),
        "attacks": {row.model: [vars(each) for each in row.attacks] for row in summary.models} if summary else {},
        "seconds": summary.models[2].seconds if summary else {},
        "page": (root / "report.html").read_text() if summary else "",
        "fingerprints": {
            stage: manifest.fingerprint
            for stage in stages
            if stage.endswith(("samples", "scores", "pairs")) and "attacks" not in stage
            if (manifest := read_manifest(root / stage)) is not None
        },
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
