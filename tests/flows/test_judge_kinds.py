"""Claims about the loop with each kind of judge that has a server or members: a whole run, what it cost, and how far
the judge agrees with the references.

On mock engines, whose outputs are right half the time, and servers on loopback, in a subprocess without Prefect; with
real engines: tests/end_to_end/test_judge_kinds.py.
"""

import json
import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.apart import found_apart, remade_stages, stage_times
from tests.faults import mock_run

pytestmark = [pytest.mark.story("each kind of judge on mock engines", 50), pytest.mark.slow]

ITERATIONS = 2
PROMPTS = 60


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return found_apart("tests.flows.test_judge_kinds", tmp_path_factory.mktemp("judge_kinds"))


def test_a_run_with_a_rubric_is_made_once_and_agrees_with_the_references(found: dict[str, Any]):
    run = found["rubric"]
    assert run["health"]["reference_agreement"] > 0.9 and run["health"]["reference_pairs"] > 20
    assert 0 < run["health"]["readings"] <= run["health"]["responses"] and run["health"]["unread"] == 0
    assert run["again"] == [] and run["asked_again"] == 0
    assert {*run["rubrics"]} == {"Add up.", "Subtract nothing."}
    assert run["spent"] == {"answers": run["asked"], "tokens_in": 10 * run["asked"], "tokens_out": 5 * run["asked"]}


def test_an_ensemble_asks_the_expensive_member_about_close_prompts_and_books_each_by_itself(found: dict[str, Any]):
    run = found["ensemble"]
    health = run["health"]
    assert 0 < health["escalated"] < health["escalatable"]
    cheap, paid = health["members"]["cheap"], health["members"]["paid"]
    assert cheap["responses"] == health["responses"] and 0 < paid["responses"] < cheap["responses"]
    assert cheap["reference_agreement"] < health["reference_agreement"] and paid["reference_agreement"] > 0.9
    assert {server: spent["answers"] for server, spent in run["by_server"].items()} == run["asked_by_server"]
    assert run["again"] == []
    assert run["pairs"]["members_disagree"] > 0, run["pairs"]
    assert '<tr data-member="M_1 paid">' in run["page"] and 'data-agreement="M_1"' in run["page"]
    assert run["units"] == pytest.approx(run["expected_units"])


def test_a_run_with_a_reward_model_behind_a_server_agrees_with_the_references(found: dict[str, Any]):
    run = found["reward_server"]
    assert run["health"]["reference_agreement"] > 0.9 and run["health"]["unscored"] == {}
    assert run["again"] == [] and run["asked_again"] == 0
    assert 0 < run["asked"] < run["health"]["readings"] * 2, "responses to one prompt share a request"
    assert run["spent"]["answers"] == run["asked"] and run["spent"]["tokens_in"] > 0 == run["spent"]["tokens_out"]


# The runs


@mock_run.prepared(forks=False)
def main(parent: Path) -> None:
    """Makes the runs and writes what they found."""
    found = {
        "rubric": _rubric(parent / "rubric"),
        "ensemble": _ensemble(parent / "ensemble"),
        "reward_server": _reward_server(parent / "reward_server"),
    }
    (parent / "found.json").write_text(json.dumps(found))


def _rubric(folder: Path) -> dict[str, Any]:
    from tests.misbehaving_server import MisbehavingServer

    with MisbehavingServer(says=_grade) as server:
        endpoint = {"base_url": server.base_url, "key_variable": "NO_KEY"}
        run = _made(folder, {"kind": "rubric", "model": "m", "endpoint": endpoint, "rubric": "Subtract nothing."})
        run["asked"] = len(server.asked)
        shown = [each.request["messages"][1]["content"] for each in server.asked]
        again = _made(folder, run["judge"])
        run["asked_again"] = len(server.asked) - run["asked"]
    run["again"] = again["remade"]
    run["rubrics"] = [text.partition("[The Rubric]\n")[2].partition("\n")[0] for text in shown]
    return run


def _ensemble(folder: Path) -> dict[str, Any]:
    """A cheap judge that is often wrong, and one that is asked about close prompts; pairs need both."""
    from tests.misbehaving_server import MisbehavingServer
    from tpo.records import Score
    from tpo.storage.store import complete_artifact, read_manifest, read_rows

    with MisbehavingServer(says=_grade) as good, MisbehavingServer(says=_careless_grade) as careless:
        servers = {"paid": good, "cheap": careless}
        members = [
            {
                "name": name,
                "judge": {
                    "kind": "rubric",
                    "model": name,
                    "endpoint": {"base_url": servers[name].base_url, "key_variable": "NO_KEY"},
                },
                "unit": unit,
            }
            for name, unit in (("cheap", 4.0), ("paid", 2.0))
        ]
        judge = {"kind": "ensemble", "members": members, "escalate_below": 1.0, "agreement": "all"}
        run = _made(folder, judge)
        run["asked_by_server"] = {f"{name} at {server.base_url}": len(server.asked) for name, server in servers.items()}
        run["again"] = _made(folder, judge)["remade"]
    manifest = read_manifest(folder / "run/iter_1/pairs")
    assert manifest is not None and manifest.account is not None
    run["pairs"] = manifest.account["dropped"]
    run["page"] = (folder / "run/report.html").read_text()
    scored = [
        s
        for s in read_rows(complete_artifact(folder / "run/iter_1/validation/epoch_1/scores"), Score)
        if s.member_scores
    ]
    run["units"] = [score.value for score in scored]
    run["expected_units"] = [sum(score.member_scores or ()) / 2 for score in scored]
    return run


def _reward_server(folder: Path) -> dict[str, Any]:
    from tests.reward_http import RewardHttp

    def score(chat: list[dict[str, str]]) -> float:
        right, shown = is_right(f"{chat[0]['content']} {chat[-1]['content']}"), chat[-1]["content"]
        return (1.0 if right else -1.0) + random.Random(shown).uniform(-0.5, 0.5)

    with RewardHttp(of_chat=score) as server:
        endpoint = {"base_url": f"{server.address}/reward", "key_variable": "NO_KEY"}
        judge = {"kind": "reward_server", "model": "rm", "protocol": "json", "endpoint": endpoint}
        run = _made(folder, judge)
        run["asked"] = len(server.asked)
        run["again"] = _made(folder, judge)["remade"]
        run["asked_again"] = len(server.asked) - run["asked"]
    return run


def _careless_grade(request: dict[str, Any]) -> str:
    """As `_grade`, for a third of the responses at random."""
    shown = request["messages"][1]["content"]
    dice = random.Random(f"careless {shown}")
    return f"Well. [[Score: {dice.choice((2, 4, 6, 8))}]]" if dice.random() < 2 / 3 else _grade(request)


def _grade(request: dict[str, Any]) -> str:
    """9 for a right sum, 2 for a wrong one, with noise."""
    shown = request["messages"][1]["content"]
    return f"Well. [[Score: {(9 if is_right(shown) else 2) + random.Random(shown).choice((-1, 0, 1))}]]"


def is_right(shown: str) -> bool:
    """Whether a text has a sum and ends with its result."""
    asked, answer = re.search(r"What is (\d+) \+ 1\?", shown), re.findall(r"answer is (\d+)", shown)
    return asked is not None and answer[-1:] == [str(int(asked[1]) + 1)]


def _made(folder: Path, judge: dict[str, Any]) -> dict[str, Any]:
    """A run to M_T with a judge, and what is in its folder."""
    from flows.iterate import iterate
    from tests.faults.mock_engines import MockEngines
    from tpo.run_context import RunContext, using
    from tpo.storage.ledger import read_ledger

    before = stage_times(folder)
    with using(RunContext(engines=MockEngines(adding_pool()))):
        iterate.fn(small_config(folder, judge), ITERATIONS)
    health = json.loads((folder / "run/iter_1/scores/manifest.json").read_text())["facts"]["health"]
    entries = [entry for entry in read_ledger(folder / "run") if entry.server]
    servers = {entry.server for entry in entries}
    by_server = {
        server: {"answers": sum(entry.answers for entry in entries if entry.server == server)} for server in servers
    }
    return {
        "by_server": by_server,
        "judge": judge,
        "health": health,
        "remade": remade_stages(folder, before),
        "spent": {
            name: sum(getattr(entry, name) for entry in entries) for name in ("answers", "tokens_in", "tokens_out")
        },
    }


def small_config(folder: Path, judge: dict[str, Any]) -> Any:
    """A small run on sums, every other one with its own rubric."""
    from tpo.config.run import RunConfig

    folder.mkdir(exist_ok=True)
    if not (folder.parent / "seed").exists():
        mock_run.make_seed(folder.parent / "seed")
    rows = [
        {"instruction": f"What is {i} + 1?", "answer": str(i + 1), "how": "Add up." if i % 2 else None}
        for i in range(4 * PROMPTS)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {
        "kind": "file",
        "path": folder / "prompts.jsonl",
        "reference_column": "answer",
        "rubric_column": "how",
    }
    values = mock_run.config_of(folder, mock_run.Plan("verifier")).model_dump(mode="json")
    values["data"] |= {"source": source, "per_iteration": PROMPTS, "validation": 10, "test": 10}
    return RunConfig.model_validate(values | {"judge": judge, "sample": values["sample"] | {"k": 4}})


def adding_pool() -> Any:
    """A pool whose outputs answer sums, right half the time."""
    from prompts.thought import VARIANTS
    from tests.faults.mock_engines import MockPool
    from tpo.config.base import SHIPPED_SEED_MODEL
    from tpo.engines.inference.sampler import Output, Request
    from tpo.models.chat import ChatEncoder
    from tpo.records import Artifact

    tokenizer, prompt = ChatEncoder(SHIPPED_SEED_MODEL).tokenizer, VARIANTS["generic"]

    def answered(model: Artifact, request: Request, index: int) -> Output:
        asked = re.search(r"What is (\d+) \+ 1\?", tokenizer.decode(request.prompt_token_ids))
        dice = random.Random(f"{model.fingerprint} {request.seed} {index}")
        answer = int(asked[1]) + dice.choice((1, 1, 2, 10)) if asked else 0
        text = (
            f"{prompt.thought_marker} I add.\n{prompt.response_marker} {'So ' * dice.randint(0, 2)}answer is {answer}."
        )
        return Output(list(text.encode()), text, True, 1)

    class AddingPool(MockPool):
        def generate(
            self, model: Artifact, shards: Iterable[Sequence[Request]], *_: Any, n: int, **__: Any
        ) -> Iterator[tuple[int, list[list[Output]]]]:
            for i, shard in enumerate(shards):
                yield i, [[answered(model, request, j) for j in range(n)] for request in shard]

    return AddingPool()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
