"""Set-up: locks don't say where packages come from; setup.sh knows when to install (a scripted uv takes uv's place)."""

import ast
import os
import re
import stat
import subprocess
import sys
import tomllib
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import packages_distributions
from pathlib import Path
from shutil import copy

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = {kind: (ROOT / "requirements" / f"{kind}.txt").read_text() for kind in ("cpu", "gpu", "uv")}
FAKE = """#!/bin/sh
echo "$@" "${UV_DEFAULT_INDEX:-} ${UV_FIND_LINKS:-} ${UV_TORCH_BACKEND:-}" >> "$(dirname "$0")/calls"
for last; do :; done
case "$1 $2" in
"venv "*) mkdir -p "$last/bin" && touch "$last/pyvenv.cfg" && ln -sf /bin/true "$last/bin/python" ;;
"pip sync") [ ! -e "$(dirname "$0")/fails" ] ;;
esac
"""


def entries(lock: str) -> list[str]:
    """One text per package, hashes included."""
    return re.findall(r"^[A-Za-z0-9](?:.*\\\n)*.*\n?", lock, re.MULTILINE)


def pins(texts: list[str]) -> dict[str, str]:
    """Versions by package; empty for none."""
    found = [re.match(r"([\w.-]+)(?:\[.*?\])?(?:==([\w.+]+))?", text) for text in texts]
    return {match[1]: match[2] or "" for match in found if match}


class Checkout:
    """A checkout with the scripts and a lock, and a PATH with a scripted uv."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "path"
        (folder / "requirements").mkdir()
        self.bin.mkdir()
        for name in ("setup.sh", "uv.sh"):
            copy(ROOT / "requirements" / name, folder / "requirements")
        for kind in ("cpu", "gpu"):
            (folder / "requirements" / f"{kind}.txt").write_text(f"{kind}==1\n")
        (folder / "pyproject.toml").write_text("")
        (folder / "flows").mkdir()
        (self.bin / "uv").write_text(FAKE)
        (self.bin / "uv").chmod(stat.S_IRWXU)

    def set_up(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Runs setup.sh."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
        environment = kept | {"PATH": f"{self.bin}:{os.environ['PATH']}", "PIP_CONFIG_FILE": os.devnull} | variables
        command = ["requirements/setup.sh", *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def calls(self) -> list[str]:
        """The commands given to uv since the last call."""
        path = self.bin / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("kind", LOCKS)
def test_a_lock_holds_only_names_versions_hashes_and_markers(kind: str):
    entry = re.compile(r"[a-z0-9][a-z0-9-]*==[\w.+]+( ; [\w .'\"<>=()]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n")
    assert [text for text in entries(LOCKS[kind]) if not entry.fullmatch(text)] == []
    assert "".join(entries(LOCKS[kind])) == LOCKS[kind]


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_lock_has_what_the_project_requires(kind: str):
    project = PYPROJECT["project"]
    asked = project["dependencies"] + project["optional-dependencies"][kind] + PYPROJECT["dependency-groups"]["dev"]
    locked = pins(entries(LOCKS[kind]))
    assert set(pins(asked)) <= set(locked)
    assert {name: version for name, version in pins(asked).items() if version and locked[name] != version} == {}


def test_the_cpu_lock_has_the_cpu_torch_and_none_of_the_packages_that_exist_for_cuda_only():
    names = pins(entries(LOCKS["cpu"]))
    assert names["torch"].endswith("+cpu")
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(names)
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-"))]


BROUGHT = {"botocore", "httpx2", "latex2sympy2_extended", "markupsafe"}
"""Imported, and a part of boto3, openai, math-verify and Jinja."""
OPTIONAL = {"mlflow", "wandb"}
"""Imported only on demand, with a message if they aren't installed."""


def test_the_products_imports_are_required_and_not_only_for_development():
    ours = PYPROJECT["tool"]["importlinter"]["root_packages"]
    files = [path for name in ours for path in (ROOT / name).rglob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    names = {name for tree in trees for node in ast.walk(tree) for name in imported(node)}
    foreign = names - {*ours, *sys.stdlib_module_names, "__future__"}
    project = PYPROJECT["project"]
    asked = pins(project["dependencies"] + project["optional-dependencies"]["cpu"])
    packages = packages_distributions()
    missing = {name for name in foreign if not {normal(each) for each in packages.get(name, [name])} & set(asked)}
    assert missing == BROUGHT | OPTIONAL


def imported(node: ast.AST) -> set[str]:
    """The packages that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {node.module.partition(".")[0]} if isinstance(node, ast.ImportFrom) and node.module else set()


def normal(name: str) -> str:
    """A package's name as written in locks."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.drawn(3)
def test_a_complete_environment_is_left_alone_and_a_changed_lock_starts_an_empty_one(checkout: Checkout):
    assert checkout.set_up().returncode == 0
    venv, sync, project = checkout.calls()
    assert venv.startswith("venv --quiet --clear --no-config --python 3.11 .venv")
    assert "pip sync" in sync and "--require-hashes" in sync and sync.endswith("cpu")
    assert "--no-deps --no-build-isolation -e" in project
    assert checkout.set_up().returncode == 0 and checkout.calls() == []
    (checkout.folder / "requirements" / "cpu.txt").write_text("cpu==2\n")
    assert checkout.set_up().returncode == 0 and checkout.calls()[0].startswith("venv --quiet --clear")


@pytest.mark.drawn(3)
def test_an_installation_that_fails_is_not_taken_for_complete(checkout: Checkout):
    checkout.set_up()
    (checkout.folder / "pyproject.toml").write_text("#")
    (checkout.bin / "fails").touch()
    failed = checkout.set_up()
    assert failed.returncode == 1 and "uv ended with an error" in failed.stderr
    (checkout.bin / "fails").unlink()
    checkout.calls()
    assert checkout.set_up().returncode == 0 and len(checkout.calls()) == 3


@pytest.mark.drawn(3)
def test_an_environment_for_gpus_stays_one_without_being_asked_again(checkout: Checkout):
    checkout.set_up("--gpu")
    venv, sync, _ = checkout.calls()
    assert "--python 3.12" in venv and sync.rstrip().endswith("requirements/gpu.txt")
    (checkout.folder / "requirements" / "gpu.txt").write_text("gpu==2\n")
    checkout.set_up()
    assert "--python 3.12" in checkout.calls()[0]


@pytest.mark.drawn(3)
def test_a_folder_that_is_not_an_environment_is_not_cleared(checkout: Checkout):
    (checkout.folder / "mine").mkdir()
    (checkout.folder / "mine" / "thesis.txt").write_text("")
    refused = checkout.set_up("mine")
    assert refused.returncode == 1 and "mine holds files and isn't a virtual environment" in refused.stderr
    assert (checkout.folder / "mine" / "thesis.txt").exists() and checkout.calls() == []


@pytest.mark.drawn(3)
def test_another_platform_is_refused_before_anything_is_fetched(checkout: Checkout):
    (checkout.bin / "uname").write_text("#!/bin/sh\necho Darwin arm64\n")
    (checkout.bin / "uname").chmod(stat.S_IRWXU)
    refused = checkout.set_up()
    assert "found Darwin arm64, expected Linux x86_64" in refused.stderr and checkout.calls() == []


@pytest.mark.drawn(3)
def test_pips_settings_reach_uv(checkout: Checkout, tmp_path: Path):
    settings = {"PIP_INDEX_URL": "http://mirror/simple", "PIP_FIND_LINKS": "/a /b", "PIP_NO_INDEX": "1"}
    checkout.set_up(**settings)
    sync = checkout.calls()[1]
    assert sync.endswith("--no-index http://mirror/simple /a,/b ")
    (tmp_path / "pip.conf").write_text("[global]\nfind-links = /wheels\n")
    checkout.set_up("other", PIP_CONFIG_FILE=str(tmp_path / "pip.conf"))
    assert checkout.calls()[1].strip().endswith("/wheels")


def a_wheel(folder: Path, name: str) -> str:
    """A wheel with one module in a folder; its hash."""
    files: Mapping[str, str] = {
        f"{name}.py": "",
        f"{name}-1.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
        f"{name}-1.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: us\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={urlsafe_b64encode(sha256(text.encode()).digest()).decode().rstrip('=')},{len(text)}\n"
        for path, text in files.items()
    )
    wheel = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**files, f"{name}-1.dist-info/RECORD": record}.items():
            archive.writestr(path, text)
    return sha256(wheel.read_bytes()).hexdigest()


@pytest.mark.drawn(3)
def test_uv_installs_offline_from_a_folder_of_wheels_only_those_with_the_locked_hash(checkout: Checkout):
    (checkout.bin / "uv").unlink()
    (checkout.folder / "flows").rmdir()  # without the checkout's code, only the lock is installed
    if uv := next(iter((ROOT / ".uv" / "bin").glob("uv")), None):
        (checkout.bin / "uv").symlink_to(uv)
    wheels = checkout.folder / "wheels"
    wheels.mkdir()
    found, lock = a_wheel(wheels, "ours"), checkout.folder / "requirements" / "cpu.txt"
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PYTHON": sys.executable}
    lock.write_text(f"ours==1 --hash=sha256:{'0' * 64}\n")
    refused = checkout.set_up(**offline)
    assert refused.returncode == 1 and "ash" in refused.stderr
    lock.write_text(f"ours==1 --hash=sha256:{found}\n")
    done = checkout.set_up(**offline)
    assert done.returncode == 0, done.stderr
    assert list((checkout.folder / ".venv").glob("lib/python*/site-packages/ours.py"))


@pytest.mark.slow
def test_a_wheel_has_every_file_of_the_packages(tmp_path: Path):
    folders = PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    command = ["git", "ls-files", "--", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in listed:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, tmp_path / "source" / name)
    pip = (sys.executable, "-m", "pip")
    build = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", str(tmp_path)]
    subprocess.run([*build, str(tmp_path / "source")], capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert {name for name in listed if "/" in name} <= {*zipfile.ZipFile(wheel).namelist()}
