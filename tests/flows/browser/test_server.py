"""Claims about who gets the samples of a run: the page itself, on this machine, and nobody by a path."""

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.browser.export import PAGE, assets, newest, write_browser
from flows.browser.server import SampleServer
from flows.browser.site import Site, decoded
from tests.rows import a_prompt, a_sample, a_score
from tests.stored_run import begin_run, write_prompts, write_round
from tpo.config.resources import ReportConfig
from tpo.config.run import RunConfig
from tpo.errors import InputError


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    made = RunConfig(name="seen", folder=tmp_path)
    begin_run(made)
    for t in (1, 2):
        prompts = write_prompts(made.root, f"iter_{t}/prompts", [a_prompt(f"p{t}")])
        write_round(made.root, f"iter_{t}", prompts, [[a_sample(f"p{t}")]], lambda s: a_score(s.prompt_id))
    return made


@pytest.fixture
def server(config: RunConfig) -> Iterator[SampleServer]:
    with SampleServer(Site(config.root), 0) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def ask(server: SampleServer, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    return connection.getresponse()


def test_the_page_and_all_that_it_names_are_served_under_a_strict_policy(server: SampleServer):
    for name in assets():
        assert ask(server, f"/report/{name}").status == 200
    run = ask(server, "/report/data/run.js?1")
    names = [each["table"] for each in decoded(run.read())["rounds"]]
    assert [ask(server, f"/report/data/{name}.js").status for name in names] == [200, 200]
    policy = run.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert run.headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_it_listens_on_loopback_alone(server: SampleServer):
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "path",
    [
        "/report/../config.json", "/report/..%2fconfig.json", "/report/data/../../config.json", "//etc/passwd",
        "/report/data/..%2f..%2f..%2fconfig.js", "/report/data/%2e%2e/run.js", "/config.json",
        "/report/data//etc/passwd",
        "/report/%00", "/report/data/iter_1/samples-0.js", "/iter_1/samples/part-00000.parquet",
    ],
)  # fmt: skip
def test_only_names_that_the_browser_has_made_are_served(server: SampleServer, path: str):
    ask(server, "/report/data/run.js").read()
    assert ask(server, path).status == 404


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example:8090"}, {"Host": ""}, {"Sec_Fetch_Site": "cross-site"}],
)
def test_other_sites_get_nothing(server: SampleServer, headers: dict[str, str]):
    assert ask(server, "/report/data/run.js", **headers).status == 403


def test_a_taken_port_is_said(server: SampleServer):
    with pytest.raises(InputError, match="choose another --port"):
        SampleServer(server.site, server.server_port)


def test_a_folder_that_is_no_run_is_said(tmp_path: Path):
    with pytest.raises(InputError, match=r"no config\.json"):
        Site(tmp_path)


def test_static_files_are_complete_and_written_once(config: RunConfig):
    write_browser(config)
    data = config.root / "report" / "data"
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*.js")}
    (data / "iter_1" / "table-old.js").write_text("")
    write_browser(config)
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*.js")} == before
    rounds = decoded((data / "run.js").read_bytes())["rounds"]
    named = {f"{r['name']}/{kind}-{key}" for r in rounds for kind in ("samples", "judgments") for key in r[kind]}
    assert {p.relative_to(data).as_posix()[:-3] for p in before} == {"run", *named, *(r["table"] for r in rounds)}
    assert (config.root / PAGE).read_bytes() == assets()["index.html"]


def test_beyond_the_limit_the_oldest_rounds_are_left_out(config: RunConfig):
    rounds = Site(config.root).rounds()
    assert [each.round.name for each in newest(rounds, rounds[0].size)] == ["iter_2"]
    assert newest(rounds, 0) == []


def test_a_limit_of_zero_writes_no_files_and_removes_those_that_are_there(config: RunConfig):
    write_browser(config)
    write_browser(config.model_copy(update={"report": ReportConfig(samples_mib=0)}))
    assert not (config.root / "report").exists()
