"""Claims about `check-model`: what it reports about a model, and its exit status."""

import json
from pathlib import Path

import pytest

from flows.cli.main import main
from tests.hostile_files import sound_model
from tests.models.odd_folders import CONFIGS, WEIGHTS
from tpo.report.model_report import Probe, Trial, advice


def test_the_miniature_is_described_and_accepted(capsys: pytest.CaptureFixture[str]):
    assert main(["check-model", "miniature", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] and found["refusals"] == []
    facts = found["facts"]
    assert facts["family"] == "llama (LlamaForCausalLM)"
    assert (facts["context"], facts["stops at"]) == ("512 tokens", "<|end|> (491)")
    assert facts["splits over"].startswith("1, 2, 4 GPUs") and facts["packing"].startswith("yes")
    assert facts["thinking"].startswith("none") and "native" not in facts["prompts"]


def test_all_reasons_for_a_refusal_are_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = sound_model(tmp_path / "odd")
    WEIGHTS["no head, though it is not tied"].make(folder)
    longer = ["--set", "sample.max_new_tokens=5000", "--set", "train.max_tokens=6000"]
    assert main(["check-model", str(folder), *longer]) == 2
    shown = " ".join(capsys.readouterr().out.split())
    assert "has no lm_head.weight" in shown and "has 512 tokens of context: lower one" in shown


def test_a_model_that_cannot_be_trained_may_still_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = sound_model(tmp_path / "odd")
    CONFIGS["weights quantized by fp8"].make(folder)
    assert main(["check-model", str(folder)]) == 2
    assert "it can be asked for verdicts" in capsys.readouterr().out


def test_for_a_name_on_the_hub_the_download_command_is_given(capsys: pytest.CaptureFixture[str]):
    assert main(["check-model", "org/some-model"]) == 2
    assert "hf download org/some-model --local-dir models/some-model" in capsys.readouterr().out


def test_a_probe_whose_outputs_mostly_break_the_format_says_what_to_do():
    cut, broken = Trial("", "x", "cut_by_length", 0, 9), Trial("", "x", "missing_response_marker", 0, 9)
    (line,) = advice([Probe("generic", [cut, cut, broken], 1.0)], 96)
    assert "2 of 3 outputs were cut off at sample.max_new_tokens = 96: raise it" in line
    (line,) = advice([Probe("generic", [broken, broken, cut], 1.0)], 96)
    assert "break the format: try another prompt.variant" in line
