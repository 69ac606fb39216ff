"""`judge-check` with judges behind vLLM's own server: accuracies, and a server that dies in the middle."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.bench_judge_runs import make_reward_model
from tests.benchmarks.bench_judges import write_preferences
from tests.end_to_end.conftest import ROOT
from tests.vllm_server import VllmServer
from tpo.config.base import SHIPPED
from tpo.storage.ledger import read_ledger

pytestmark = [
    pytest.mark.slow,
    pytest.mark.story("judge-check and servers", 240),
    pytest.mark.end_to_end,
    pytest.mark.timeout(1800),
]
PAIRS = 40
KEY = "sk-check"
CONTEXT = ("--max-model-len", "512", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192")


def profile(folder: Path, server: VllmServer, **judge: Any) -> Path:
    """A file with a judge at the server."""
    path = folder / f"{judge['kind']}.toml"
    suffix = "" if judge["kind"] == "reward_server" else "/v1"
    lines = ["[judge]", *(f"{name} = {json.dumps(value)}" for name, value in judge.items()), "[judge.endpoint]"]
    lines += [f'base_url = "{server.address}{suffix}"', 'key_variable = "CHECK_KEY"', "concurrency = 2", "retries = 1"]
    path.write_text("\n".join(lines) + "\n")
    return path


def check(folder: Path, judge: Path) -> "subprocess.Popen[str]":
    data = folder / "preferences.jsonl"
    if not data.exists():
        write_preferences(data, PAIRS)
    command = [sys.executable, "-m", "flows", "judge-check", str(judge), "--data", str(data), "--json"]
    return subprocess.Popen(
        [*command, "--folder", str(folder / "runs")], cwd=ROOT, env={**os.environ, "CHECK_KEY": KEY},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def report_of(process: "subprocess.Popen[str]") -> dict[str, Any]:
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    found: dict[str, Any] = json.loads(output)["judges"][0]
    return found


def answered(server: VllmServer) -> int:
    """Requests that the server has answered since it started."""
    request = urllib.request.Request(f"{server.address}/metrics", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        counts = re.findall(r"^vllm:request_success_total\{.*\} (\S+)$", answer.read().decode(), re.MULTILINE)
    return round(sum(map(float, counts)))


def test_after_a_server_died_the_same_command_asks_only_for_what_is_missing(tmp_path: Path):
    server = VllmServer(SHIPPED / "evaluator", "judge", tmp_path / "log", *CONTEXT, key=KEY)
    judge = profile(tmp_path, server, kind="pairwise", model="judge", max_new_tokens=128)
    with server:
        process = check(tmp_path, judge)
        journal, deadline = list[Path](), time.monotonic() + 600
        while time.monotonic() < deadline and process.poll() is None:
            journal = list(tmp_path.rglob("journal-*.jsonl"))
            if journal and len(journal[0].read_text().splitlines()) >= 20:
                break
            time.sleep(0.1)
        server.kill()
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 2 and server.address in errors and "Traceback" not in errors
    kept = len(journal[0].read_text().splitlines())
    assert 20 <= kept < 2 * PAIRS
    with server:
        found = report_of(check(tmp_path, judge))
        asked = answered(server)
    assert asked <= 2 * PAIRS - kept + 1, "and one question before it starts"
    assert found["overall"]["unscored"] == 0 and found["overall"]["accuracy"]["value"] > 0.8
    (root,) = (tmp_path / "runs").iterdir()
    assert sum(entry.answers for entry in read_ledger(root)) == 2 * PAIRS, "each reply is booked once"


def test_a_grader_gives_expected_scores_over_a_servers_log_probabilities(tmp_path: Path):
    with VllmServer(SHIPPED / "grader", "judge", tmp_path / "log", *CONTEXT, key=KEY) as server:
        judge = profile(tmp_path, server, kind="rubric", model="judge", max_new_tokens=128)
        explained = report_of(check(tmp_path, judge))
        judge = profile(tmp_path, server, kind="rubric", model="judge", expected_score=True)
        alone = report_of(check(tmp_path, judge))
    assert explained["overall"]["accuracy"]["value"] > 0.85
    assert alone["overall"]["unscored"] == 0 and alone["overall"]["ties"] < explained["overall"]["ties"] + 0.05
    assert 0.5 < alone["overall"]["accuracy"]["value"] < explained["overall"]["accuracy"]["value"]


def test_a_reward_model_behind_a_server_is_measured_as_on_our_own_engines(tmp_path: Path):
    make_reward_model(tmp_path / "rm")
    arguments = ("--runner", "pooling", "--max-model-len", "512")
    with VllmServer(tmp_path / "rm", "judge", tmp_path / "log", *arguments, key=KEY) as server:
        served = report_of(check(tmp_path, profile(tmp_path, server, kind="reward_server", model="judge")))
    own = tmp_path / "own.toml"
    own.write_text(f'[judge]\nkind = "reward_model"\nmodel = "{tmp_path / "rm"}"\n[judge_engine]\ndtype = "float32"\n')
    assert served["overall"] == report_of(check(tmp_path, own))["overall"]
    assert served["overall"]["accuracy"]["value"] > 0.6
