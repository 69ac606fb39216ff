"""Claims about `python -m flows serve` before the server starts: what it resolves, and what it refuses."""

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from flows.cli.main import main
from tests.rows import a_config, a_model
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.serve import KEY, SETTINGS, ServeConfig


class Became(Exception):
    """Raised in place of `os.execve`, with its arguments."""

    def __init__(self, path: str, command: list[str], environment: dict[str, str]) -> None:
        self.command, self.environment = command, environment
        self.settings = ServeConfig.model_validate_json(environment[SETTINGS])

    def option(self, name: str) -> str:
        return self.command[self.command.index(name) + 1]


def become(*arguments: str) -> Became:
    with pytest.raises(Became) as found:
        main(["serve", *arguments])
    return found.value


@pytest.fixture(autouse=True)
def _no_exec(monkeypatch: pytest.MonkeyPatch) -> None:
    def execve(*arguments: Any) -> None:
        raise Became(*arguments)

    monkeypatch.setattr(os, "execve", execve)


@pytest.fixture
def port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_by_default_it_listens_on_loopback_behind_the_layer_and_hides_thoughts(port: str):
    server = become("miniature", "--port", port)
    assert (server.option("--host"), server.option("--port")) == ("127.0.0.1", port)
    assert server.option("--middleware") == "deploy.serving.layer.ResponsesOnly"
    assert "--no-trust-remote-code" in server.command and server.option("--load-format") == "safetensors"
    assert server.environment["VLLM_NO_USAGE_STATS"] == server.environment["DO_NOT_TRACK"] == "1"
    assert server.environment[KEY] == ""
    settings = server.settings
    assert (settings.prompt.variant, settings.max_attempts, settings.context_tokens) == ("generic", 8, 512)
    assert not settings.allow_thoughts


def test_a_runs_model_is_served_with_the_prompt_and_sampling_of_its_run(tmp_path: Path, port: str):
    config = a_config(tmp_path, prompt={"variant": "specific"})
    model = config.root / "iter_1" / "model"
    shutil.copytree(SHIPPED_SEED_MODEL, model)
    (config.root / "config.json").write_text(config.model_dump_json())
    assert become(str(model), "--port", port).settings.prompt.variant == "specific"
    assert become(str(model), "--port", port, "--variant", "direct").settings.prompt.variant == "direct"
    assert become(str(model), "--port", port, "--profile", "laptop").settings.prompt.variant == "generic"
    limited = ("--set", "sample.max_thought_tokens=40")
    assert "thought_budget" in become(str(model), "--port", port, *limited).settings.forced
    assert become(str(model), "--port", port, *limited, "--variant", "direct").settings.forced == ""


def test_a_key_is_named_by_its_variable_and_never_on_a_command_line(monkeypatch: pytest.MonkeyPatch, port: str):
    monkeypatch.setenv("MINE", "sk-secret")
    server = become("miniature", "--port", port, "--api-key", "MINE", "--host", "0.0.0.0", "--allow-thoughts")
    assert server.environment[KEY] == "sk-secret" and "sk-secret" not in json.dumps(server.command)
    assert "sk-secret" not in server.environment[SETTINGS] and server.settings.allow_thoughts


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["miniature", "--host", "0.0.0.0"], "can be reached by others: name a key's variable"),
        (["miniature", "--api-key", "NOT_SET"], "names NOT_SET, which is not set"),
        (["miniature", "--context", "513"], "--context is 513, more than the 512 tokens"),
        (["miniature", "--profile", "nowhere"], "there is no profile"),
        (["miniature", "--host", "nowhere.invalid"], "set --host to an address of this machine"),
        (["miniature", "--host", "192.0.2.1"], "set --host to an address of this machine"),
        (["miniature", "--host", "a" * 70 + "." + "b" * 70], "set --host to an address of this machine"),
        (["miniature", "--host", ""], "--host is empty"),
        (["nowhere"], "nowhere is not a folder"),
        ([""], "there is no model: name its folder"),
    ],
)
def test_impossible_settings_are_refused_before_vllm_starts(
    arguments: list[str], complaint: str, port: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["serve", "--port", port, *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_a_model_folder_with_code_is_not_served(tmp_path: Path, port: str, capsys: pytest.CaptureFixture[str]):
    model = a_model(tmp_path / "model", auto_map={"AutoModel": "evil.Model"})
    assert main(["serve", str(model), "--port", port]) == 2
    assert "contains code" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "99999", "-1", "http", "9" * 5000])
def test_an_invalid_port_is_refused_in_one_line(number: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "miniature", f"--port={number}"])
    assert stopped.value.code == 2
    stderr = capsys.readouterr().err
    assert "is not a whole number from 1 to 65535" in stderr and stderr.count("\n") == 1


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert main(["serve", "miniature", "--port", str(port)]) == 2
    assert f"127.0.0.1 port {port} cannot be listened on" in capsys.readouterr().err
