#!/bin/sh
# Resolves pyproject.toml into cpu.txt and gpu.txt: names, versions and hashes, and not one address. Versions that are
# locked already stay unless pyproject.toml says otherwise; --upgrade takes newer ones. Needs the network.
#
# vLLM's CPU build asks for torchvision, torchaudio and torchcodec, which exist as CUDA builds only and whose import
# crashes next to a CPU build of torch: they are left out.
set -eu
cd "$(dirname "$0")/.."
resolve() {
    requirements/uv.sh pip compile pyproject.toml --group dev --quiet --no-config --no-header --no-annotate --generate-hashes "$@"
}
CPU_TORCH=1 resolve --extra cpu --output-file requirements/cpu.txt --python-version 3.11 \
    --no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec "$@"
resolve --extra gpu --output-file requirements/gpu.txt --python-version 3.12 \
    --python-platform x86_64-manylinux_2_28 "$@"
echo "uv==0.13.8  # what uv.sh installs where there is none" | requirements/uv.sh pip compile - --quiet --no-config \
    --no-header --no-annotate --generate-hashes --output-file requirements/uv.txt --python-version 3.8
