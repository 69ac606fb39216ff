"""Loads model folders as our code does, but without its checks: a separate process for `tests.data.test_hostile_files`.

The command line lists folders. It prints a line of JSON per folder: the result of every loader, and which of the
folder's files Python opened. Finally it unpickles the file named by `--control`, which must touch its canary.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPENED: list[str] = []
SECONDS = 60
"""Time limit for a loader."""


def main(folders: list[str], control: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from judges.reward_model import load_reward_model
    from tpo.models.armorm import load_armorm
    from tpo.models.chat import ChatEncoder

    def encode(folder: Path) -> object:
        return ChatEncoder(folder).encode([{"role": "user", "content": "a" * 200 + "!"}])

    # The trainer and the sampler load like this, inside code that only Ray can call.
    def load_as_trainer(folder: Path) -> object:
        AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        return AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, local_files_only=True, use_safetensors=True
        )

    def load_as_sampler(folder: Path) -> object:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)

    loaders: dict[str, Callable[[Path], object]] = {
        "chat": encode,
        "trainer": load_as_trainer,
        "sampler": load_as_sampler,
        "reward": lambda folder: load_reward_model(folder, "float32"),
        "armorm": lambda folder: load_armorm(folder, "float32"),
    }
    for folder in folders:
        OPENED.clear()
        outcomes = {name: tried(load, Path(folder)) for name, load in loaders.items()}
        opened = sorted({path for path in OPENED if path.startswith(folder)})
        print(json.dumps({"folder": folder, "came": outcomes, "opened": opened}), flush=True)
    tried(lambda path: torch.load(path, weights_only=False), Path(control))


def tried(load: Callable[[Path], Any], folder: Path) -> str:
    signal.alarm(SECONDS)
    try:
        load(folder)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - panics of Rust parsers aren't Exceptions
        return type(error).__name__
    finally:
        signal.alarm(0)
    return "loaded"


def heard(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        OPENED.append(os.fsdecode(arguments[0]))


def stop(*_: object) -> None:
    raise TimeoutError


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    sys.addaudithook(heard)
    main(sys.argv[2:], sys.argv[1])
