"""make's variables as options of `tpo`: `make iterate ITER=3 SET="sample.k=4 seed=1"` is `tpo iterate --to 3 --set …`.

A variable on make's command line that the target doesn't read is refused, since make itself would ignore it: a mistyped
ITR=3 must not start three hours of something else. Variables of the environment are read too, and never refused.
Runs before there is a virtual environment, on any Python 3.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence

OPTIONS = {
    "ITER": "--to",
    "PROFILE": "--profile",
    "SEED": "--seed",
    "RUN": "--run-name",
    "SET": "--set",
    "PORT": "--port",
    "VARIANT": "--variant",
    "KEY": "--api-key",
    "N": "--runs",
    "TO": "--folder",
    "ATTACK_LIMIT": "--attack-limit",
}
"""Variables with a value, if it isn't the variable's own name. SET and BENCH may hold several, separated by spaces."""
FLAGS = {
    "ABLATION": "--ablation",
    "JSON": "--json",
    "WEIGHTS": "--weights",
    "PROBE": "--probe",
    "THOUGHTS": "--allow-thoughts",
    "UNEQUAL": "--unequal",
    "ATTACK": "--attack",
}
"""Variables that only have to be set."""
RUN = ("PROFILE", "JUDGE", "SEED", "RUN", "SET")
READS: Mapping[str, tuple[str, ...]] = {
    "iterate": ("ITER", *RUN),
    "compare": ("ITER", *RUN),
    "thinkpo": RUN,
    "self-train": ("ITER", "ABLATION", *RUN),
    "study": ("SEEDS", "ITER", "AGAINST", "UNEQUAL", "PROFILE", "JUDGE", "RUN", "SET"),
    "plan": ("ITER", "JSON", *RUN),
    "fetch": RUN,
    "check-model": ("MODEL", "PROFILE", "WEIGHTS", "PROBE", "JSON", "SET"),
    "judge-check": (
        "JUDGE",
        "DATA",
        "MODEL",
        "AGAINST",
        "ATTACK",
        "ATTACK_LIMIT",
        "LIMIT",
        "PROFILE",
        "RUN",
        "TO",
        "JSON",
        "SET",
    ),
    "evaluate": ("MODEL", "BENCH", "PROFILE", "RUN", "VARIANT", "LIMIT", "TOKENS", "SET"),
    "serve": ("MODEL", "PORT", "PROFILE", "VARIANT", "THOUGHTS", "KEY", "SET"),
    "publish": ("RUN", "ITER", "TO", "PAIRS", "PUSH", "PROFILE"),
    "view": ("RUN", "PORT", "PROFILE"),
    "lock": ("UPGRADE",),
    "bench": ("ROWS",),
    **dict.fromkeys(("test", "test-slow", "test-all", "exhaustive", "fault-table"), ("JOBS",)),
    "chaos": ("N", "ENGINE", "RECIPE", "SEED"),
}
"""What each target reads; one that isn't listed reads nothing."""
ARGUMENTS = {"judge-check": ("JUDGE",), "check-model": ("MODEL",), "evaluate": ("MODEL",), "serve": ("MODEL",)}
"""Variables that are given by position."""
PROGRAMS = {"chaos": ["tests.faults.chaos"]}
"""Targets that aren't commands of `tpo`, and their modules."""
EVERYWHERE = ("VENV", "GPU", "PYTHON", "SHELL", "MAKEFLAGS")


def given(flags: str) -> dict[str, str]:
    """The variables of make's command line, from MAKEFLAGS, where spaces are escaped and `$` is doubled."""
    words = re.findall(r"(?:\\.|[^\s\\])+", flags.partition("-- ")[2])
    pairs = (re.sub(r"\\(.)", r"\1", word).replace("$$", "$").partition("=") for word in words)
    return {name.rstrip(":?+!"): value for name, equals, value in pairs if equals}


def fault(goals: Sequence[str], variables: Iterable[str]) -> str | None:
    """What is wrong with a command line, or None."""
    read = sorted({name for goal in goals for name in READS.get(goal, ())})
    for name in variables:
        if name in read or name in EVERYWHERE:
            continue
        meant = difflib.get_close_matches(name.upper(), read, 1)
        instead = f"did you mean {meant[0]}? " if meant else ""
        if name == "MODEL" and "SET" in read:
            instead = "set the seed model by SET=model.path=<folder>; "
        reads = " ".join(read) or "no variables"
        return "make {} does not read {}: {}it reads {}".format(" ".join(goals), name, instead, reads)
    return None


def options(target: str, variables: Mapping[str, str]) -> list[str]:
    """The options of `tpo <target>` that the variables translate to; empty ones are left out."""
    words = [variables.get(name, "") for name in ARGUMENTS.get(target, ())]
    for name in READS.get(target, ()):
        value = variables.get(name)
        if not value or name in ARGUMENTS.get(target, ()):
            continue
        if name in FLAGS:
            words.append(FLAGS[name])
        else:
            option = OPTIONS.get(name, "--" + name.lower())
            words += [
                word for each in (value.split() if name in ("SET", "BENCH") else [value]) for word in (option, each)
            ]
    return words


def main() -> None:
    """`check GOAL …` refuses what they don't read; `run TARGET` becomes `tpo TARGET` with its options."""
    what, *goals = sys.argv[1:]
    variables = given(os.environ.get("MAKEFLAGS", ""))
    if what == "check":
        found = fault(goals or ["help"], variables)
        sys.exit("error: " + found if found else 0)
    (target,) = goals
    words = options(target, {**os.environ, **variables})
    os.execv(sys.executable, [sys.executable, "-m", *PROGRAMS.get(target, ["flows", target]), *words])


if __name__ == "__main__":
    main()
