"""Claims about commands that name something on the hub."""

import json
from pathlib import Path

import pytest

from flows.cli.main import main
from tests.hub.conftest import MODEL
from tests.hub_server import Hub

WEIGHTS = len(MODEL["model.safetensors"])


def test_a_plan_says_how_much_will_be_fetched_and_fetches_no_weights(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = ["--set", "model.path=hf://o/m", "--set", f"folder={tmp_path}"]
    assert main(["plan", "--to", "1", *run, "--json"]) == 0
    (download,) = json.loads(capsys.readouterr().out)["downloads"]
    assert download["lacking"] == WEIGHTS and download["keys"] == ["model.path"]
    assert not [request for request in hub.asked if request.startswith("GET cdn/")]
    assert not (tmp_path / "laptop").exists()


def test_fetch_and_check_model_accept_an_address(hub: Hub, capsys: pytest.CaptureFixture[str]):
    assert main(["fetch", "--set", "model.path=hf://o/m"]) == 0
    assert f"model.path: hf://o/m@{hub.repositories['models/o/m'].branches['main']} is there" in capsys.readouterr().out
    assert main(["check-model", "hf://o/m"]) == 0
    assert "A run accepts this model." in capsys.readouterr().out


@pytest.mark.parametrize("command", [["check-model"], ["judge-check", "armorm", "--model"]])
def test_a_mistake_in_an_address_is_a_one_line_error(command: list[str], capsys: pytest.CaptureFixture[str]):
    assert main([*command, "hf://o"]) == 2
    assert capsys.readouterr().err.startswith("error: MODEL is hf://o: expected an organization and a name")
