"""What is checked before anything starts: in two seconds, without torch, Ray, vLLM or Prefect.

In: a config. Out: nothing, or an `InputError` that says what was found, what was expected and what to do.
"""

import os
import shutil
from pathlib import Path

from judges.armorm import check_armorm_folder
from judges.judge_folder import check_judge_folder
from judges.reward_model import check_reward_folder
from prompts.thought import load_prompt
from prompts.verdict import load_verdict_prompt
from tasks.lineage import SHIPPED_SEED_MODEL
from tpo.config import (
    MINIATURE,
    ArmoRMJudge,
    FileSource,
    JudgeConfig,
    PairwiseJudge,
    RewardModelJudge,
    RunConfig,
)
from tpo.engines.api import ChatClient
from tpo.engines.model_folder import check_model_folder
from tpo.errors import InputError
from tpo.prompt_files import check_prompt_file, file_of


def preflight(config: RunConfig) -> None:
    """Refuses a run that cannot work on this machine with these files."""
    load_prompt(config.prompt)
    _check_model(config)
    for judge in (config.judge, config.evaluation.judge):
        _check_judge(judge)
    _check_gpus(config)
    if isinstance(config.data.source, FileSource):
        _check_files(config.data.source)
    _check_folder(config.root)


def _check_model(config: RunConfig) -> None:
    folder = SHIPPED_SEED_MODEL if config.model.path == MINIATURE else Path(config.model.path)
    context = check_model_folder(folder)
    needed = config.data.max_prompt_tokens + config.sample.max_new_tokens
    if needed > context:
        raise InputError(
            f"data.max_prompt_tokens + sample.max_new_tokens is {needed}, more than the {context} tokens of context "
            f"of {folder}: lower one of them"
        )


def _check_judge(judge: JudgeConfig) -> None:
    match judge:
        case RewardModelJudge():
            check_reward_folder(judge.folder)
        case ArmoRMJudge():
            check_armorm_folder(judge.folder)
        case PairwiseJudge():
            load_verdict_prompt(judge)
            if judge.folder is not None:
                check_judge_folder(judge.folder)


def check_endpoints(config: RunConfig) -> None:
    """Refuses a run whose judge is behind a server that is down, or does not know the key or the model.

    Apart from `preflight`, since it asks the server: only a run that has something to do may.
    """
    for judge in (config.judge, config.evaluation.judge):
        if isinstance(judge, PairwiseJudge) and judge.endpoint is not None:
            ChatClient(judge.endpoint, judge.model).check()


def _check_gpus(config: RunConfig) -> None:
    wanted = [
        name
        for name, device in (
            ("engine", config.engine.device),
            ("trainer", config.trainer.device),
            ("judge_engine", config.judge_engine.device),
        )
        if device == "gpu"
    ]
    if wanted and config.cluster.address is None and not _has_gpu():
        raise InputError(
            f"{' and '.join(f'{name}.device' for name in wanted)} is gpu, and this machine has none (no nvidia-smi, no "
            '/dev/nvidia0): set cluster.address to a Ray cluster that has GPUs, or use device = "cpu"'
        )


def _has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()


def _check_files(source: FileSource) -> None:
    first_read = [("", 1), ("validation", 0), ("test", 0)]
    for path in dict.fromkeys(file_of(source, kind, iteration) for kind, iteration in first_read):
        check_prompt_file(source, path)


def _check_folder(root: Path) -> None:
    parent = next(path for path in (root.resolve(), *root.resolve().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{parent} is not a folder that can be written to: set folder in the profile to one that is")
