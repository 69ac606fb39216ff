"""Claims about a run operated through Prefect: real server, real worker, real engines, all in separate processes.

One story, played once and inspected by all tests, since each start of the engines takes half a minute: two triggers at
once; the worker killed with everything that it runs; the worker restarted; the schedule's trigger, which resumes; a
trigger whose stage fails on purpose; one after the cause is fixed. On SQLite always, and on PostgreSQL with
`TPO_POSTGRES=1`.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.browser.chromium import CHROMIUM, Page
from tests.operations.postgres import postgres
from tests.operations.prefect_server import Operation, Run

pytestmark = [pytest.mark.story("operations", 240), pytest.mark.end_to_end, pytest.mark.timeout(1500)]
SETTINGS = (
    "data.per_iteration=16",
    "data.validation=8",
    "data.test=8",
    "sample.k=4",
    "train.epochs=1",
    "train.batch_size=4",
    "train.micro_batch_size=4",
    "engine.shard_prompts=4",
)
GREEN = "#219d4b"
"""Color of a completed stage's bar in the graph, which is drawn and has no text to read."""


@dataclass
class Story:
    """The events in order; runs as they were when they ended."""

    operation: Operation
    first: Run
    second: Run
    """Triggered together with `first`."""
    at_once: tuple[str, str]
    """The states of both while one of them was running."""
    scheduled: Run
    failed: Run
    fixed: Run
    messages: list[str]
    """The messages that the webhook of `tpo_alert` received."""
    root: Path
    after_kill: dict[str, bytes] = field(default_factory=dict)
    """The manifests at that time, with their contents."""
    after_schedule: dict[str, bytes] = field(default_factory=dict)


class Webhook(ThreadingHTTPServer):
    """Records the messages that it receives."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Listener)
        self.messages: list[str] = []


class _Listener(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        self.server.messages.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def webhook() -> Iterator[Webhook]:
    with Webhook() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def operation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operation]:
    folder = tmp_path_factory.mktemp("operation")
    with postgres(folder) as database, Operation(folder, database) as operation:
        yield operation


@pytest.fixture(scope="module")
def story(operation: Operation, webhook: Webhook, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("runs")
    settings = [*SETTINGS, f'folder="{folder}"']
    operation.set_parameters(run_name="tiny", overrides=settings, last=1)
    operation.alert_to(f"http://127.0.0.1:{webhook.server_port}/")
    operation.start_worker()
    triggered = [operation.trigger(), operation.trigger()]
    running = operation.wait(lambda: [i for i in triggered if operation.run(i)["state_name"] == "Running"])[0]
    (other,) = set(triggered) - {running}
    operation.wait((folder / "tiny/iter_0/validation/epoch_0/samples/plan.json").exists)
    at_once = (operation.run(running)["state_name"], operation.run(other)["state_name"])
    operation.kill_worker()
    kept = read_manifests(folder / "tiny")
    operation.start_worker()
    first = operation.until(running, "Crashed")
    scheduled = operation.until(operation.schedule(), "Completed")
    manifests = read_manifests(folder / "tiny")
    failed = operation.until(operation.trigger(overrides=[*settings, "pair.min_margin=100"]), "Failed")
    fixed = operation.until(operation.trigger(), "Completed")
    return Story(
        operation,
        first,
        operation.run(other),
        at_once,
        scheduled,
        failed,
        fixed,
        webhook.messages,
        folder / "tiny",
        kept,
        manifests,
    )


def read_manifests(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.rglob("manifest.json")}


def test_two_triggers_at_once_do_not_run_at_once(story: Story):
    assert story.at_once == ("Running", "Cancelled")
    assert story.second["state"]["message"] == "Deployment concurrency limit reached."
    assert story.second["total_run_time"] == 0


def test_a_run_whose_worker_was_killed_is_crashed_and_says_so(story: Story):
    assert story.first["state"]["message"] == "Its worker was killed, and the run with it."
    assert [a["key"] for a in story.operation.artifacts(story.first["id"]) if a["type"] == "markdown"] == [
        "tpo-stopped"
    ]


def test_the_schedules_trigger_resumes_the_interrupted_run(story: Story):
    assert story.scheduled["auto_scheduled"] and story.scheduled["name"] == "tiny to M_1"
    assert {"tpo", "tiny"} <= set(story.scheduled["tags"])
    assert (story.root / "iter_1/model/model.safetensors").exists()
    assert story.after_kill and story.after_kill.items() <= story.after_schedule.items()
    assert "iter_0/prompts/validation: 8 prompts" not in story.operation.logs(story.scheduled["id"])


def test_a_failed_stage_says_why_on_the_runs_page_in_its_log_and_in_an_alert(story: Story):
    why = "iteration 1: 0 pairs from 16 prompts"
    assert why in story.failed["state"]["message"]
    (note,) = [a for a in story.operation.artifacts(story.failed["id"]) if a["key"] == "tpo-stopped"]
    assert why in note["data"].replace("\n", " ") and "the next trigger resumes" in note["data"]
    assert why in story.operation.logs(story.failed["id"])
    assert [json.loads(message)["subject"] for message in story.messages] == [
        "tiny to M_1 crashed",
        "tiny to M_1 failed",
    ]
    assert why in json.loads(story.messages[1])["body"]


def test_after_a_fix_the_run_resumes_and_remakes_nothing(story: Story):
    changed = {path for path, content in story.after_schedule.items() if Path(path).read_bytes() != content}
    assert changed == {str(story.root / "iter_1/pairs/manifest.json")}
    assert (story.root / "summary.json").exists()


def test_a_trigger_past_the_last_iteration_has_nothing_to_do(story: Story):
    run = story.operation.until(story.operation.trigger(), "NothingToDo")
    assert run["state"]["message"] == "M_1 of tiny is complete, and `last` is 1"


def test_a_trigger_with_a_wrong_answer_in_the_form_is_refused(story: Story):
    body = {"parameters": {"last": -1}, "state": {"type": "SCHEDULED"}}
    path = f"/deployments/{story.operation.deployment['id']}/create_flow_run"
    assert story.operation.api.post(path, json=body).status_code == 409


def test_the_graph_has_an_edge_exactly_if_a_stage_uses_another(story: Story):
    validation, test, direct = "iter_0/validation/epoch_0", "iter_0/test", "iter_0/direct"
    first = {f"sample {validation}", f"judge {validation}", f"sample {test}", f"judge {test}"}
    assert story.operation.graph(story.scheduled["id"]) == {
        "load iter_0/prompts/validation": set(),
        "load iter_0/prompts/test": {"load iter_0/prompts/validation"},
        f"sample {validation}": {"load iter_0/prompts/validation"},
        f"judge {validation}": {f"sample {validation}", "load iter_0/prompts/validation"},
        f"sample {test}": {"load iter_0/prompts/test"},
        f"judge {test}": {f"sample {test}", "load iter_0/prompts/test"},
        f"sample {direct}": {"load iter_0/prompts/test"},
        f"judge {direct}": {f"sample {direct}", "load iter_0/prompts/test", f"sample {test}", f"judge {test}"},
        "iteration / M_1 of tiny": {"load iter_0/prompts/validation", "load iter_0/prompts/test", *first},
        "report": {
            *first,
            f"sample {direct}",
            f"judge {direct}",
            "load iter_0/prompts/test",
            "iteration / M_1 of tiny",
        },
    }


def test_the_graph_of_an_iteration_shows_the_method(story: Story):
    body = {"flow_runs": {"name": {"any_": ["M_1 of tiny"]}, "state": {"type": {"any_": ["COMPLETED"]}}}}
    iterations = story.operation.api.post("/flow_runs/filter", json=body).json()
    epoch = "iter_1/validation/epoch_1"
    for iteration in iterations:
        assert story.operation.graph(iteration["id"]) == {
            "load iter_1/prompts": set(),
            "sample iter_1": {"load iter_1/prompts"},
            "judge iter_1": {"sample iter_1", "load iter_1/prompts"},
            "pair iteration 1": {"sample iter_1", "judge iter_1"},
            "train iter_1": {"pair iteration 1"},
            f"sample {epoch}": {"train iter_1"},
            f"judge {epoch}": {f"sample {epoch}"},
            "validate iteration 1": {"train iter_1", f"sample {epoch}", f"judge {epoch}"},
            "sample iter_1/test": {"validate iteration 1"},
            "judge iter_1/test": {"sample iter_1/test"},
        }
    assert len(iterations) == 2  # The schedule's run, and the one after the fix.


def test_a_long_stage_shows_its_progress(story: Story):
    artifacts = story.operation.api.post("/artifacts/filter", json={}).json()
    shown = [artifact for artifact in artifacts if artifact["type"] == "progress"]
    assert [artifact["data"] for artifact in shown if artifact["description"].startswith("train iter_1")] == [100.0]


KEYED = """
import os
from prefect.blocks.system import Secret
from flows.prefect_ops import fetch_keys
from flows.recipes import PROFILES
from tpo.config.load import load_config
Secret(value="canary-of-a-key").save("judge-key")
fetch_keys(load_config(PROFILES / "api-judge.toml", ["judge.endpoint.key_variable=JUDGE_KEY"]))
print(os.environ["JUDGE_KEY"])
"""


def test_a_key_that_the_worker_lacks_comes_from_a_secret_block_and_is_nowhere_in_the_clear(
    story: Story, tmp_path: Path
):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {"PREFECT_API_URL": f"{story.operation.url}/api", "PREFECT_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", KEYED], env=kept | environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["canary-of-a-key"]
    files = [path for folder in (story.operation.folder, tmp_path) for path in folder.rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"canary-of-a-key" in path.read_bytes()]


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_the_run_its_stages_its_artifacts_and_the_form(story: Story, tmp_path: Path):
    """Screenshots stay in the test's folder."""
    url, run = story.operation.url, story.scheduled["id"]
    shown = {artifact["key"]: artifact["id"] for artifact in story.operation.artifacts(run)}
    with Page(tmp_path / "profile") as page:
        page.open(f"{url}/runs/flow-run/{run}", "tiny to M_1", "Completed", "iter_0/direct/scores: 8 scored")
        story.operation.wait(lambda: page.colours().get(GREEN, 0) > 5000)
        page.screenshot(tmp_path / "run.png")
        page.click("Task Runs")
        page.wait("sample iter_0/test", "judge iter_0/direct", "report")
        page.click("Artifacts")
        page.wait("tpo-tiny-report")
        page.open(f"{url}/artifacts/artifact/{shown['tpo-tiny']}", "M_0 direct", "Task Run\nreport")
        page.open(f"{url}/artifacts/artifact/{shown['tpo-tiny-report']}", "Test score by iteration")
        page.open(f"{url}/deployments/deployment/{story.operation.deployment['id']}/run", "profile", "overrides")
    assert page.errors == []
