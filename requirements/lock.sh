#!/bin/sh
# Resolves pyproject.toml into cpu.txt and gpu.txt: names, versions and hashes, and not one address. Versions that are
# locked already stay unless pyproject.toml says otherwise; --upgrade takes newer ones. Needs uv and the network.
#
# vLLM's CPU build asks for torchvision, torchaudio and torchcodec, which exist as CUDA builds only and whose import
# crashes next to a CPU build of torch: they are left out. The CPU build of torch comes from the folder in PIP_FIND_LINKS
# or, if that isn't set, from PyTorch's index.
set -eu
cd "$(dirname "$0")/.."
torch="--torch-backend cpu"
[ -z "${PIP_FIND_LINKS:-}" ] || torch="--find-links $PIP_FIND_LINKS"
resolve() {
    uv pip compile pyproject.toml --group dev --quiet --no-config --no-header --no-annotate --generate-hashes "$@"
}
# shellcheck disable=SC2086 # torch's options are words
resolve --extra cpu --output-file requirements/cpu.txt --python-version 3.11 $torch \
    --no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec "$@"
resolve --extra gpu --output-file requirements/gpu.txt --python-version 3.12 \
    --python-platform x86_64-manylinux_2_28 "$@"
