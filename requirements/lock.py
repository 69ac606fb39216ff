"""Resolves each .in file here into the .txt beside it: names, versions and hashes, and not one address.

Run by `make lock`, with uv in a venv of its own, built from tools.txt as it is before. Versions that are in the locks
already stay unless an .in file says otherwise; give --upgrade to take newer ones. The CPU's torch comes from the folder
in PIP_FIND_LINKS or, where that is not set, from PyTorch's CPU index.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).absolute().parent
COMMON = ["--quiet", "--no-config", "--no-header", "--no-annotate", "--generate-hashes"]
CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")
"""vLLM's CPU build asks for these; they exist as CUDA builds only, and their import crashes beside a CPU torch."""


def main() -> int:
    """Writes both locks; everything on the command line goes to uv."""
    wheels = os.environ.get("PIP_FIND_LINKS")
    torch = [word for folder in wheels.split() for word in ("--find-links", folder)] if wheels else []
    torch = torch or ["--torch-backend", "cpu"]
    left_out = [word for name in CUDA_ONLY for word in ("--no-emit-package", name)]
    sets = {
        "cpu": ["--python-version", "3.11", *torch, *left_out],
        "gpu": ["--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_28"],
        "tools": ["--python-version", "3.11"],
    }
    with tempfile.TemporaryDirectory() as folder:
        tools = Path(folder) / "bin"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [str(tools / "python"), "-I", "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
        subprocess.run([*pip, "-r", str(HERE / "tools.txt")], check=True)
        for name, options in sets.items():
            print(f"resolving {name}.in", flush=True)
            command = [str(tools / "uv"), "pip", "compile", f"{name}.in", "-o", f"{name}.txt", *COMMON, *options]
            finished = subprocess.run([*command, *sys.argv[1:]], cwd=HERE, check=False)
            if finished.returncode:
                return finished.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
