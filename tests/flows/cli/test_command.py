"""Claims about the command line: what it resolves and refuses, and that a finished run is recognized quickly."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from flows.cli.main import main
from flows.recipes import finished, resolve_config
from tests.faulty_proxy import Fault, FaultyProxy, Script
from tests.finished_run import finish
from tests.rows import a_config
from tests.s3_server import S3Server, new_url
from tpo.config.judges import PairwiseJudge, VerifierJudge
from tpo.config.run import RunConfig
from tpo.errors import InputError
from tpo.storage.bucket import Bucket
from tpo.storage.lock import only_writer
from tpo.storage.mirror import writing

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A small run, with its profile in `tmp_path`."""
    config = a_config(tmp_path)
    (tmp_path / "tried.toml").write_text(
        f"""
        name = "tried"
        folder = "{config.folder}"
        model.path = "{config.model.path}"
        data.per_iteration = 2
        data.validation = 2
        data.test = 2
        data.source.kind = "file"
        data.source.path = "{tmp_path / "prompts.jsonl"}"
        sample.k = 2
        train.epochs = 2
        """
    )
    return config


def profile_of(config: RunConfig) -> str:
    return str(config.root.parent.parent / "tried.toml")


def resolved(
    config: RunConfig,
    *,
    run_name: str | None = None,
    judge: str | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
):
    return resolve_config(profile_of(config), run_name=run_name, judge=judge, seed=seed, overrides=overrides)


def test_a_profile_resolves_to_what_it_says(config: RunConfig):
    assert resolved(config) == config


def test_each_seed_has_its_own_run_folder(config: RunConfig):
    found = resolved(config, seed=2)
    assert (found.seed, found.name) == (2, "tried-seed2")


def test_a_given_name_is_kept_and_so_is_the_seed(config: RunConfig):
    found = resolved(config, run_name="mine", seed=2, overrides=["seed=7", "sample.k=3"])
    assert (found.seed, found.name, found.sample.k) == (2, "mine", 3)
    assert resolved(config, run_name="mine", overrides=["seed=7"]).seed == 7


def test_a_given_judge_replaces_the_profiles_with_defaults_and_is_in_the_runs_name(config: RunConfig):
    found = resolved(config, judge="pairwise", seed=2, overrides=["judge.mode=probability", "judge.ridge=0.2"])
    assert found.judge == PairwiseJudge(mode="probability", ridge=0.2)
    assert found.name == "tried-pairwise-seed2"
    assert resolved(config, overrides=["judge.length_bias=0.3"], judge="verifier").judge == VerifierJudge(
        length_bias=0.3
    )


@pytest.mark.parametrize("name", ["../up", "a/b", 'a"b', "", "a b", "-a", 'a"\nseed = "9'])
def test_a_run_name_that_is_not_a_folder_name_is_refused(config: RunConfig, name: str):
    with pytest.raises(InputError, match="name"):
        resolved(config, run_name=name)


def test_a_profile_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    assert resolve_config("laptop", run_name=None, judge=None, seed=None, overrides=[]).name == "laptop"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "sample.k=1"], "sample.k: Input should be greater than or equal to 2"),
        (["--set", "sample.k"], "has no value"),
        (["--seed", "-1"], "seed: Input should be greater than or equal to 0"),
        (["--set", "model.path=/nowhere"], "/nowhere is not a folder"),
        (["--judge", "oracle"], "judge: Input tag 'oracle'"),
        (["--judge", "reward_model"], "judge.model: Field required"),
        (["--judge", "armorm", "--set", "judge.model=/nowhere"], "/nowhere is not a folder"),
        (["--judge", "pairwise", "--set", "judge.user_template=/nowhere"], "/nowhere cannot be read"),
        (["--profile", "nowhere.toml"], "there is no profile nowhere.toml"),
    ],
)
def test_an_error_is_one_message_and_exit_status_2(
    config: RunConfig, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    assert main(["iterate", "--profile", profile_of(config), *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ") and shown.err.count("error: ") == 1
    assert message in shown.err
    assert not config.root.parent.exists()


@pytest.mark.parametrize("to", ["-1", "three", "1.5", "", "²", "٣", "99999999999999999999", "9" * 5000])
@pytest.mark.parametrize("command", ["iterate", "compare", "self-train", "plan"])
def test_the_last_iteration_is_a_whole_number_from_0(capsys: pytest.CaptureFixture[str], command: str, to: str):
    with pytest.raises(SystemExit) as stopped:
        main([command, f"--to={to}"])
    assert stopped.value.code == 2
    stderr = capsys.readouterr().err
    assert "--to" in stderr and "is not a whole number from 0 to 1000000" in stderr
    assert stderr.count("\n") == 1 and len(stderr) < 500


@pytest.mark.parametrize("seed", ["x", "", "1.5", "9" * 5000])
def test_a_seed_is_a_whole_number(capsys: pytest.CaptureFixture[str], seed: str):
    with pytest.raises(SystemExit) as stopped:
        main(["iterate", f"--seed={seed}"])
    assert stopped.value.code == 2
    stderr = capsys.readouterr().err
    assert "--seed" in stderr and stderr.count("\n") == 1 and len(stderr) < 500


@pytest.mark.parametrize("profile", ["", "a/b", "deploy/profiles/laptop", "laptop ", "a\0b"])
def test_anything_but_a_profiles_name_or_file_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, profile: str
):
    monkeypatch.chdir(ROOT)
    assert main(["plan", "--profile", profile]) == 2
    assert (
        "is not a profile: expected a file that ends in .toml, or one of api-judge, laptop" in capsys.readouterr().err
    )


def test_more_iterations_than_the_disk_can_hold_are_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    profile = str(ROOT / "deploy" / "profiles" / "laptop.toml")
    command = ["iterate", "--to", "1000000", "--profile", profile, "--set", f"folder={tmp_path}"]
    assert main([*command, "--set", "train.epochs=10000"]) == 2
    stderr = capsys.readouterr().err
    assert "needs up to" in stderr and "is free there: free some space" in stderr


def test_a_run_locked_by_another_process_is_refused_before_prefect_starts(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
):
    with only_writer(config.root):
        assert main(["iterate", "--to", "1", "--profile", profile_of(config)]) == 2
    stderr = capsys.readouterr().err
    assert f"is being written by process {os.getpid()}" in stderr and "run tried" not in stderr


def test_a_missing_command_is_an_error_with_the_usage(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["2", "1", "0"])
def test_a_finished_run_shows_its_table_and_says_so(config: RunConfig, capsys: pytest.CaptureFixture[str], to: str):
    finish(config, 2)
    before = {path: path.stat().st_mtime_ns for path in config.root.rglob("*")}
    assert main(["iterate", "--to", to, "--profile", profile_of(config)]) == 0
    shown = capsys.readouterr().out
    assert "M_2" in shown
    assert f"M_{to} of run tried is complete: nothing to do." in shown
    assert {path: path.stat().st_mtime_ns for path in config.root.rglob("*")} == before


def test_a_finished_run_is_recognized_without_heavy_imports(config: RunConfig):
    finish(config, 1)
    code = (
        "import sys; from flows.cli.main import main\n"
        f"assert main(['iterate', '--to', '1', '--profile', {profile_of(config)!r}]) == 0\n"
        "heavy = {'boto3', 'datasets', 'pandas', 'prefect', 'pyarrow', 'ray', 'torch', 'transformers', 'vllm'}\n"
        "sys.exit(str(sorted(heavy & sys.modules.keys())) if heavy & sys.modules.keys() else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def in_bucket(config: RunConfig, s3: S3Server, folder: Path, **changes: object) -> RunConfig:
    """The same run in a bucket, and a profile of it in `folder`."""
    moved = config.model_copy(update={"folder": new_url(), "storage": s3.storage(folder / "cache", **changes)})
    storage = moved.storage.model_dump(mode="json", exclude_none=True)
    lines = [f"storage.{name} = {json.dumps(value)}\n" for name, value in storage.items()]
    text = Path(profile_of(config)).read_text().replace(f'folder = "{config.folder}"', f'folder = "{moved.folder}"')
    (folder / "bucket.toml").write_text(text + "".join(lines))
    return moved


@pytest.mark.slow
def test_a_finished_run_in_a_bucket_is_recognized_from_an_empty_disk(
    config: RunConfig, tmp_path: Path, s3: S3Server, capsys: pytest.CaptureFixture[str]
):
    moved = in_bucket(config, s3, tmp_path)
    with only_writer(moved.root), writing(moved):
        finish(moved, 1)
    for machine in ("first", "first", "second"):
        command = ["iterate", "--to", "1", "--profile", str(tmp_path / "bucket.toml")]
        assert main([*command, "--set", f"storage.cache={tmp_path / machine}"]) == 0
        shown = capsys.readouterr().out
        assert f"M_1 of run tried is complete: nothing to do. Report: {moved.folder}/tried/report.html" in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "script", "message"),
    [
        ({"endpoint_url": "http://127.0.0.1:9", "max_attempts": 1}, None, "failed in up to"),
        ({}, lambda request: Fault(status=403, code="AccessDenied"), "access denied (AccessDenied"),
        ({}, lambda request: Fault(ignore_conditions=True), "does not support conditional writes"),
    ],
)
def test_an_unusable_bucket_is_refused_before_anything_starts(
    config: RunConfig,
    tmp_path: Path,
    s3: S3Server,
    proxy: FaultyProxy,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    script: Script | None,
    message: str,
):
    proxy.script = script or proxy.script
    moved = in_bucket(config, s3, tmp_path, **({"endpoint_url": proxy.endpoint} | changes))
    assert main(["iterate", "--to", "1", "--profile", str(tmp_path / "bucket.toml")]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and message in shown.err and "Traceback" not in shown.err
    assert Bucket(moved.place, s3.storage(tmp_path)).versions() == {}


@pytest.mark.parametrize("lost", ["summary.json", "report.html", "config.json", "iter_1/pairs/manifest.json"])
def test_a_run_that_lacks_anything_does_not_count_as_finished(config: RunConfig, lost: str):
    finish(config, 1)
    assert finished(config, 1) is not None
    (config.root / lost).write_text('{"models": [') if lost == "summary.json" else (config.root / lost).unlink()
    assert finished(config, 1) is None


def test_the_exit_status_of_a_plan_tells_whether_the_run_can_work(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "--profile", "llama3-8b-ste", "--to", "1"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("It fits.")
    assert main(["plan", "--profile", "llama3-8b-ste", "--set", "cluster.gpus=2"]) == 2
    assert "Problems: it can't run like this\n- " in capsys.readouterr().out


def test_a_plan_as_json_is_json(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "--profile", "single-gpu-lora", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "single-gpu-lora"
