"""Claims about make: targets pass their variables on verbatim, and refuse others before anything starts."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from flows.cli.make import PROGRAMS, READS, fault, given, options

ROOT = Path(__file__).parents[3]


def without_make() -> dict[str, str]:
    """This environment without variables of a make that runs these tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}


def make(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs make as if from a shell and set up, with a virtual environment that doesn't exist."""
    command = ["make", "-s", "-o", "setup", "VENV=/nowhere", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=without_make() | variables, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("goal", "variables", "message"),
    [
        ("iterate", ["ITR"], "make iterate does not read ITR: did you mean ITER? it reads ITER JUDGE PROFILE"),
        ("iterate", ["iter"], "does not read iter: did you mean ITER?"),
        ("iterate", ["MODEL"], "set the seed model by SET=model.path=<folder>"),
        ("thinkpo", ["ITER"], "make thinkpo does not read ITER: it reads"),
        ("judge-check", ["SEED"], "make judge-check does not read SEED"),
        ("serve", ["HOST"], "make serve does not read HOST"),
        ("ui", ["PORT"], "make ui does not read PORT: it reads no variables"),
        ("iterate", ["a;b'c"], "make iterate does not read a;b'c"),
    ],
)
def test_a_variable_that_a_target_does_not_read_is_refused_with_those_it_reads(
    goal: str, variables: Sequence[str], message: str
):
    assert message in (fault([goal], variables) or "")


def test_make_refuses_before_anything_is_set_up():
    refused = make("iterate", "ITR=3")
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr.startswith("error: make iterate does not read ITR: did you mean ITER?")
    refused = make("iterate", "3")
    assert refused.returncode == 2 and "there is no target 3: see make help" in refused.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["setup", "GPU=1", "PYTHON=python3"],
        ["test", "JOBS=1"],
        ["exhaustive", "JOBS=4"],
        ["iterate", "-j2", "-k"],
        ["help"],
        ["chaos", "N=3", "ENGINE=mock", "RECIPE=iterate", "SEED=1"],
    ],
)
def test_a_variable_that_a_target_reads_is_accepted(arguments: list[str]):
    done = make(*arguments)
    assert "does not read" not in done.stderr and "no target" not in done.stderr


def test_an_unread_variable_in_the_environment_is_no_error():
    assert "does not read" not in make("iterate", MODEL="x").stderr


def test_every_value_is_passed_on_verbatim(tmp_path: Path):
    values = {"ITER": "4", "RUN": "it's $(echo ours); `id`", "SET": 'a=["x","y"] b=$HOME;c c=*\\d', "SEED": ""}
    show = tmp_path / "Makefile"
    show.write_text(f"all:\n\t@{sys.executable} -c 'import os; print(os.environ[\"MAKEFLAGS\"])'\n")
    command = ["make", "-s", *(f"{name}={value}" for name, value in values.items())]
    shown = subprocess.run(command, cwd=tmp_path, env=without_make(), capture_output=True, text=True, check=True)
    flags = shown.stdout.rstrip("\n")
    assert given(flags) == values
    assert options("iterate", given(flags)) == [
        *("--to", "4", "--run-name", values["RUN"]),
        *("--set", 'a=["x","y"]', "--set", "b=$HOME;c", "--set", "c=*\\d"),
    ]


@pytest.mark.parametrize(
    ("target", "variables", "words"),
    [
        ("self-train", {"ITER": "1", "ABLATION": "1"}, "--to 1 --ablation"),
        ("plan", {"JSON": "1", "JUDGE": "armorm"}, "--json --judge armorm"),
        ("judge-check", {"JUDGE": "armorm", "MODEL": "models/x"}, "armorm --model models/x"),
        ("judge-check", {"JUDGE": "x.toml", "DATA": "a.jsonl", "ATTACK": "1"}, "x.toml --data a.jsonl --attack"),
        ("check-model", {"MODEL": "miniature", "WEIGHTS": "1", "PROBE": "1"}, "miniature --weights --probe"),
        ("serve", {"MODEL": "", "PORT": "1", "THOUGHTS": "1", "KEY": "K"}, " --port 1 --allow-thoughts --api-key K"),
        ("publish", {"RUN": "x", "TO": "y", "PAIRS": "0"}, "--run-name x --folder y --pairs 0"),
        ("chaos", {"N": "3", "ENGINE": "mock", "RECIPE": "iterate"}, "--runs 3 --engine mock --recipe iterate"),
    ],
)
def test_variables_become_options_and_arguments(target: str, variables: dict[str, str], words: str):
    assert options(target, variables) == words.split(" ")


def test_every_option_exists_in_its_command():
    samples = {
        "ITER": "1",
        "PORT": "1",
        "SEED": "1",
        "N": "1",
        "PAIRS": "0",
        "BENCH": "ifeval=a.jsonl gsm8k=b.jsonl",
        "LIMIT": "10",
        "ATTACK_LIMIT": "0.1",
        "TOKENS": "100",
        "JUDGE": "armorm",
        "ENGINE": "mock",
        "RECIPE": "iterate",
        "SEEDS": "0,1",
    }
    commands = []
    for target in (target for target in READS if READS[target] != ("JOBS",) and target not in ("lock", "bench")):
        words = options(target, {name: samples.get(name, "generic") for name in READS[target]})
        commands.append([*PROGRAMS.get(target, ["flows", target]), *words])
    command = [sys.executable, "-c", PARSES, json.dumps(commands)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["parsed"] * len(commands)


PARSES = """
import argparse, json, runpy, sys
class Parsed(BaseException): pass
parse = argparse.ArgumentParser.parse_args
def only_parse(self, *arguments, **named):
    parse(self, *arguments, **named)
    raise Parsed
argparse.ArgumentParser.parse_args = only_parse
commands = json.loads(sys.argv[1])
sys.path.insert(0, ".")
for sys.argv in commands:
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except Parsed:
        print("parsed")
"""
