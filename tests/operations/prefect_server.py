"""A Prefect server and its worker, started as an operator does, each in its own process, and the server's API."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

ROOT = Path(__file__).parents[2]
LONG = 900.0
"""Timeout in seconds for everything, on a machine that may be busy."""
Run = Mapping[str, Any]
"""A flow run, as the API describes it."""


class Patient(httpx.HTTPTransport):
    """Retries if the server says that its database is busy (503), as Prefect's own client does.

    Also retries reads that a starved server doesn't answer in time. Requests that change something aren't sent twice.
    """

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        reads = request.method == "GET" or request.url.path.endswith("/filter")
        for _ in range(100):
            try:
                response = super().handle_request(request)
            except httpx.TimeoutException:
                if not reads:
                    raise
                continue
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return response
            response.close()
            time.sleep(0.3)
        raise AssertionError(f"the server does not answer: {request.method} {request.url}")


class Operation:
    """A server with its database below `folder`, or at `database`; the deployments; and a worker."""

    def __init__(self, folder: Path, database: str | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self._environment = {
            **kept,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",  # the default takes a minute to notice schedules
        }
        if database is not None:
            self._environment["PREFECT_API_DATABASE_CONNECTION_URL"] = database
        self.api = httpx.Client(base_url=f"{self.url}/api", timeout=httpx.Timeout(10, read=300), transport=Patient())
        self.worker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.server = self._start("ui")
        try:
            self._deploy()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.worker is not None:
            self.kill_worker()
        _kill(self.server)
        self.api.close()

    def _deploy(self) -> None:
        self.wait(self._answers)
        deploying = self._start("deploy")
        assert deploying.wait(timeout=LONG) == 0, self.log("deploy")
        self.deployment: dict[str, Any] = self._get("/deployments/name/advance/iterate")
        for times in self.deployment["schedules"]:  # an hourly trigger could come in the middle of a test
            path = f"/deployments/{self.deployment['id']}/schedules/{times['id']}"
            self.api.patch(path, json={"active": False}).raise_for_status()

    def start_worker(self) -> None:
        """Starts the worker."""
        self.worker = self._start("worker")

    def kill_worker(self) -> None:
        """Kills the worker's whole session with SIGKILL, including the run's process."""
        assert self.worker is not None
        _kill(self.worker)
        self.worker = None

    def restart_server(self) -> None:
        """Kills the server with SIGKILL and restarts it on the same database."""
        _kill(self.server)
        self.server = self._start("ui")
        self.wait(self._answers)

    def set_parameters(self, **parameters: Any) -> None:
        """Sets the deployment's default parameters, which triggers may override."""
        self.api.patch(f"/deployments/{self.deployment['id']}", json={"parameters": parameters}).raise_for_status()

    def trigger(self, **parameters: Any) -> str:
        """Triggers the deployment now; returns the flow run's id."""
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        made = self.api.post(f"/deployments/{self.deployment['id']}/create_flow_run", json=body)
        return str(made.raise_for_status().json()["id"])

    def alert_to(self, url: str) -> None:
        """Sends messages to a webhook, through the block named by the variable `tpo_alert`."""
        kind = self._get("/block_types/slug/custom-webhook")
        body = {"block_schemas": {"block_type_id": {"any_": [kind["id"]]}}}
        (schema,) = self.api.post("/block_schemas/filter", json=body).raise_for_status().json()
        data = {"name": "ops", "url": url, "json_data": {"subject": "{{subject}}", "body": "{{body}}"}}
        block = {"name": "ops", "data": data, "block_schema_id": schema["id"], "block_type_id": kind["id"]}
        self.api.post("/block_documents/", json=block).raise_for_status()
        variable = {"name": "tpo_alert", "value": "custom-webhook/ops"}
        self.api.post("/variables/", json=variable).raise_for_status()

    def schedule(self) -> str:
        """Gives the deployment a schedule that is due soon; returns that flow run's id.

        On a busy machine, the scheduler may look only after that time and create the next day's run: then a later time
        is tried.
        """
        path = f"/deployments/{self.deployment['id']}/schedules"
        for seconds in (15, 60, 240):
            first = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
            times = {"schedule": {"interval": 86400, "anchor_date": first}, "active": True}
            (made,) = self.api.post(path, json=[times]).raise_for_status().json()
            scheduled: list[Run] = self.wait(lambda: [run for run in self.runs() if run["auto_scheduled"]])
            for run in scheduled:
                if run["expected_start_time"][:19] == first[:19]:
                    return str(run["id"])
            self.api.delete(f"{path}/{made['id']}").raise_for_status()
            self.wait(lambda: not [run for run in self.runs() if run["auto_scheduled"]])
        raise AssertionError(f"nothing is scheduled in time:\n{self.log('ui')}")

    def run(self, run_id: str) -> Run:
        """A flow run."""
        return self._get(f"/flow_runs/{run_id}")

    def runs(self) -> Sequence[Run]:
        """All flow runs of the deployment."""
        body = {"deployments": {"id": {"any_": [self.deployment["id"]]}}}
        found: Sequence[Run] = self.api.post("/flow_runs/filter", json=body).raise_for_status().json()
        return found

    def until(self, run_id: str, *states: str) -> Run:
        """Waits until a flow run is in one of these states."""

        def there() -> Run | None:
            found = self.run(run_id)
            ended = found["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
            assert not ended or found["state_name"] in states, (found["state"], self.logs(run_id), self.log("worker"))
            return found if found["state_name"] in states else None

        run: Run = self.wait(there)
        return run

    def artifacts(self, run_id: str) -> Sequence[Mapping[str, Any]]:
        """The artifacts of a flow run."""
        body = {"flow_runs": {"id": {"any_": [run_id]}}}
        found: Sequence[Mapping[str, Any]] = self.api.post("/artifacts/filter", json=body).raise_for_status().json()
        return found

    def graph(self, run_id: str) -> dict[str, set[str]]:
        """The graph on a run's page: each node's label, with the labels that have an edge to it."""
        nodes = [node for _, node in self._get(f"/flow_runs/{run_id}/graph-v2")["nodes"]]
        labels = {node["id"]: str(node["label"]) for node in nodes}
        return {str(node["label"]): {labels[parent["id"]] for parent in node["parents"]} for node in nodes}

    def logs(self, run_id: str) -> str:
        """The log of a flow run."""
        body = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC"}
        return "\n".join(line["message"] for line in self.api.post("/logs/filter", json=body).json())

    def log(self, command: str) -> str:
        """The end of a process's output."""
        return (self.folder / f"{command}.log").read_text()[-4000:]

    def wait(self, look: Callable[[], Any], seconds: float = LONG) -> Any:
        """Polls until there is a result."""
        deadline = time.monotonic() + seconds
        while not (found := look()):
            assert time.monotonic() < deadline, f"nothing after {seconds:g} s:\n{self.log('ui')}"
            time.sleep(0.3)
        return found

    def _answers(self) -> bool:
        assert self.server.poll() is None, self.log("ui")
        with contextlib.suppress(httpx.HTTPError):
            return self.api.get("/health").is_success
        return False

    def _get(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get(path).raise_for_status().json()
        return found

    def _start(self, command: str) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{command}.log").open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "flows", command],
                cwd=ROOT,
                env=self._environment,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
