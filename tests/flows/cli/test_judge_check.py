"""Claims about `make judge-check`: any judge on a file of preferences, from the command line."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.cli.judge_check import KINDS, JudgeCheckOptions, check_judges, folder_of
from flows.cli.main import main
from tests.misbehaving_server import MisbehavingServer
from tpo.miniature.opinions import honest_answer
from tpo.miniature.world import problems
from tpo.report.judge_check import CHECK, CHECK_PAGE, read_check
from tpo.storage.ledger import read_ledger

PROMPTS = 60


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a file of preferences."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "prompt": problem.instruction,
            "chosen": honest_answer(problem, rng, right=True).text,
            "rejected": f"The answer is {problem.wrong_answers[0]}.",
            "subset": problem.category,
            "reference": problem.reference,
        }
        for problem in itertools.islice(problems("validation", 5), PROMPTS)
    ]
    write(tmp_path / "mini.jsonl", *rows)
    return tmp_path


def check(place: Path, *arguments: str) -> int:
    """Runs the command on files in `place`."""
    words = [str(place / word) if word.endswith((".jsonl", ".toml")) else word for word in arguments]
    return main(["judge-check", *words, "--folder", str(place / "runs")])


def write(path: Path, *rows: Mapping[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_judge_by_its_kind_on_preferences_writes_numbers_and_a_page(place: Path, capsys: pytest.CaptureFixture[str]):
    assert check(place, "verifier", "--data", "mini.jsonl") == 0
    shown = capsys.readouterr().out
    assert "60 prompts of " in shown and "verifier (exact)" in shown
    folder = place / "runs" / "judge-check-verifier-mini"
    found = read_check(folder / CHECK)
    (judge,) = found.judges
    assert judge.overall.accuracy is not None and judge.overall.accuracy.value == 1
    assert {*judge.subsets} == {"dial", "relay", "cups", "opposites", "recall", "largest"}
    assert (folder / CHECK_PAGE).read_text().startswith("# Judges on preferences\n\n60 prompts of ")


def test_a_second_call_asks_for_nothing_again(place: Path, capsys: pytest.CaptureFixture[str]):
    command = ["verifier", "--data", "mini.jsonl", "--json"]
    assert check(place, *command) == 0
    first, spent = capsys.readouterr().out, read_ledger(place / "runs" / "judge-check-verifier-mini")
    assert check(place, *command) == 0
    assert capsys.readouterr().out == first
    assert json.loads(first)["judges"][0]["cost"]["calls"] == 2000
    assert read_ledger(place / "runs" / "judge-check-verifier-mini") == spent


def test_a_finished_check_is_shown_without_its_server_and_one_with_something_missing_is_not(
    place: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["served.toml", "--data", "mini.jsonl", "--limit", "6", "--run-name", "mine", "--json"]
    with MisbehavingServer(says=lambda _: "Well. [[Score: 5]]") as server:
        lines = ['kind = "rubric"', 'model = "m"', "[judge.endpoint]", f'base_url = "{server.base_url}"', "retries = 1"]
        (place / "served.toml").write_text("\n".join(["[judge]", *lines, 'key_variable = "NO_KEY"']) + "\n")
        assert check(place, *command, "--attack") == 0
        shown, asked = capsys.readouterr().out, len(server.asked)
        assert check(place, *command, "--attack") == 0
        assert capsys.readouterr().out == shown and len(server.asked) == asked
    assert check(place, *command, "--attack") == 0
    assert capsys.readouterr().out == shown
    assert check(place, *command[:4], "7", *command[5:]) == 2
    assert server.base_url in capsys.readouterr().err


def test_two_judges_side_by_side_by_files_that_hold_only_a_section(place: Path, capsys: pytest.CaptureFixture[str]):
    (place / "longer.toml").write_text('[judge]\nkind = "verifier"\nlength_bias = 50.0\n')
    command = ["verifier", "--against", "longer.toml", "--data", "mini.jsonl", "--json"]
    assert check(place, *command) == 0
    found = json.loads(capsys.readouterr().out)
    assert [judge["judge"] for judge in found["judges"]] == ["verifier (exact)", "verifier (exact, favors length)"]
    pair = found["comparison"]
    assert pair["only_second"] == 0 < pair["only_first"] and pair["difference"]["low"] > 0
    assert found["judges"][1]["length_gap"]["value"] > 0.5 > found["judges"][0]["length_gap"]["value"]


def test_attacks_turn_around_a_judge_that_likes_length_and_not_one_that_knows_the_answer(place: Path):
    (place / "longer.toml").write_text('[judge]\nkind = "verifier"\nlength_bias = 4.0\n')
    options = JudgeCheckOptions(
        judges=[str(place / "longer.toml"), "verifier"], data=place / "mini.jsonl", attack=True, folder=place
    )
    found = check_judges(options)
    weak, sound = found.judges
    assert all(row.turned is not None and row.turned.value == 0 for row in sound.attacks.values())
    assert weak.attacks["length"].turned is not None and weak.attacks["length"].turned.value > 0.5
    assert weak.attacks["master_key"].turned is not None and weak.attacks["master_key"].turned.value < 0.1
    assert weak.attacks["length"].shift is not None and weak.attacks["length"].shift.low > 0
    page = (folder_of(options) / CHECK_PAGE).read_text()
    assert "## Attacks on the worse response" in page and "| master key |" in page


def test_a_limit_on_attacks_is_the_exit_status(place: Path, capsys: pytest.CaptureFixture[str]):
    (place / "longer.toml").write_text('[judge]\nkind = "verifier"\nlength_bias = 4.0\n')
    assert check(place, "verifier", "--data", "mini.jsonl", "--attack-limit", "0") == 0
    assert check(place, "longer.toml", "--data", "mini.jsonl", "--attack-limit", "0.1", "--json") == 1
    shown = capsys.readouterr()
    assert "verifier (exact, favors length), more than the limit of 10.0%" in shown.err
    with pytest.raises(SystemExit):
        check(place, "verifier", "--data", "mini.jsonl", "--attack-limit", "10")


def test_a_judge_comes_from_a_shipped_profile(place: Path, capsys: pytest.CaptureFixture[str]):
    assert check(place, "laptop", "--data", "mini.jsonl", "--limit", "6", "--run-name", "mine") == 0
    assert "mini.jsonl (left out: 54 beyond_limit)" in " ".join(capsys.readouterr().out.split())
    assert (place / "runs" / "mine" / CHECK).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verifier"], "there are no preferences to judge: name a file, DATA=<file>"),
        (["oracle", "--data", "mini.jsonl"], "there is no profile"),
        (["verifier", "--data", "nowhere.jsonl"], "nowhere.jsonl does not exist; DATA must name a file"),
        (["reward_model", "--data", "mini.jsonl"], "judge.model: Field required"),
        (["reward_model", "--data", "mini.jsonl", "--model", "nowhere"], "nowhere is not a folder"),
        (["armorm", "--data", "mini.jsonl", "--set", "judge_engine.device=gpu"], "judge_engine.device"),
        (
            ["verifier", "--data", "plain.jsonl"],
            "has nothing for a verifier to compare with: expected a column reference",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_before_anything_is_judged(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    write(place / "plain.jsonl", {"prompt": "p", "chosen": "a", "rejected": "b"})
    assert check(place, *arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.out == "" and shown.err.count("error: ") == 1
    assert not (place / "runs").exists()


def test_every_kind_of_judge_is_known_by_its_name():
    assert {"verifier", "reward_model", "armorm", "pairwise"} <= {*KINDS}
