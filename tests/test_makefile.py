"""Claims about what make takes on its command line: what a target does not read is refused before anything starts."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def make(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """What make would do, called from no other make; `setup` counts as done."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "-n", "-o", "setup", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment | variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["iterate", "ITR=3"], "make iterate does not read ITR: did you mean ITER? it reads ITER JUDGE PROFILE"),
        (["iterate", "iter=3"], "does not read iter: did you mean ITER?"),
        (["iterate", "MODEL=x"], "set the seed model by SET=model.path=<folder>"),
        (["thinkpo", "ITER=3"], "make thinkpo does not read ITER: it reads"),
        (["judge-check", "SET=a=1"], "make judge-check does not read SET"),
        (["serve", "HOST=0.0.0.0"], "make serve does not read HOST"),
        (["ui", "PORT=1"], "make ui does not read PORT: it reads no variables"),
        (["iterate", "a;b'c=1"], "make iterate does not read a;b'c"),
        (["iterate", "3"], "there is no target 3"),
    ],
)
def test_what_a_target_does_not_read_is_refused_with_what_it_reads(arguments: list[str], told: str):
    done = make(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert told in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["iterate", "ITER=1", "PROFILE=laptop", "JUDGE=armorm", "SEED=1", "RUN=x", "SET=sample.k=4 data.test=3"],
        ["self-train", "ITER=1", "ABLATION=1"],
        ["plan", "JSON=1", "VENV=other"],
        ["chaos", "N=3", "ENGINE=mock", "RECIPE=iterate", "SEED=1"],
        ["serve", "MODEL=miniature", "PORT=8001", "VARIANT=direct", "THOUGHTS=1", "KEY=K", "SET=engine.threads=2"],
        ["setup", "GPU=1", "PYTHON=python3"],
        ["test", "JOBS=1"],
        ["iterate", "-j2", "-k"],
        ["help"],
    ],
)
def test_what_a_target_reads_is_taken(arguments: list[str]):
    done = make(*arguments)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_variable_of_the_environment_is_nobody_elses_mistake():
    assert make("iterate", MODEL="x").returncode == 0
