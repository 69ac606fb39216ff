"""The handles that stages pass on: what a model is asked, what it answered, how that was judged."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prompts.thought import load_prompt
from tpo.config.base import MINIATURE, SHIPPED_SEED_MODEL
from tpo.config.data import PromptConfig, SampleConfig
from tpo.config.judges import JudgeConfig
from tpo.config.recipes import PairModels
from tpo.config.run import RunConfig
from tpo.records import Artifact, External
from tpo.storage.store import complete_artifact, content_sha256, folder_artifact

Purpose = Literal["train", "evaluate"]


@dataclass(frozen=True)
class Ask:
    """One round of asking a model and judging its answers: which prompts, how, by whom, and where the rows go."""

    folder: str
    """Folder below the run folder that gets `samples`, `judgments` and `scores`."""
    purpose: Purpose
    """`train` samples K outputs and judges those that parse; `evaluate` samples one, again where it does not parse."""
    prompt: PromptConfig
    """How the model is asked."""
    judge: JudgeConfig
    """Who scores the responses."""
    sample: SampleConfig
    """How outputs are sampled."""
    work: str = "sample"
    """Whose context its engine has (`tpo.config.contexts`): M_0's and its successors', or another model's."""


@dataclass(frozen=True)
class Submission:
    """What is put before a judge."""

    samples: Artifact
    """The outputs."""
    prompts: Artifact
    """Their prompts."""
    baseline: Artifact | None = None
    """Outputs of another model for the same prompts, which a judge that can only compare holds `samples` against; None
    where the samples of a prompt are compared with each other."""


@dataclass(frozen=True)
class Answers:
    """What a model answered to one set of prompts, and how good that was."""

    samples: Artifact
    """The outputs."""
    scores: Artifact
    """Their scores."""


@dataclass(frozen=True)
class Chosen:
    """M_t, with the validation answers that chose it."""

    model: Artifact
    """M_t."""
    validation: Answers
    """Its answers to the validation prompts."""


def training_ask(config: RunConfig, iteration: int) -> Ask:
    """What M_{t-1} is asked to make pairs for M_t."""
    return Ask(f"iter_{iteration}", "train", config.prompt, config.judge, config.sample)


def validation_ask(config: RunConfig, iteration: int, epoch: int) -> Ask:
    """What a checkpoint is asked to be chosen; epoch 0 of iteration 0 is the seed itself."""
    return Ask(f"iter_{iteration}/validation/epoch_{epoch}", "evaluate", config.prompt, config.judge, config.sample)


def measuring_ask(config: RunConfig, iteration: int) -> Ask:
    """What M_t is asked to be measured."""
    return test_ask(config, f"iter_{iteration}")


def test_ask(config: RunConfig, folder: str) -> Ask:
    """What the model of a folder is asked to be measured."""
    return Ask(f"{folder}/test", "evaluate", config.prompt, config.evaluation.judge, config.sample)


def write_ask(config: RunConfig, source: PairModels, side: Literal["long", "short"]) -> Ask:
    """What a model is asked for outputs of one side of ThinkPO's pairs: one a prompt, sampled once as in the paper, or
    as often as the side's own `tries` say."""
    prompt, sample = {
        "long": (source.long_prompt, source.long_sample),
        "short": (source.short_prompt, source.short_sample),
    }[side]
    once = sample.model_copy(update={"evaluation_tries": sample.tries})
    return Ask(f"dpo/{side}", "evaluate", prompt, config.judge, once, work=f"{side} sample")


def pairing_ask(config: RunConfig, iteration: int) -> Ask:
    """What SFT_{t-1} is asked for outputs that pairs are made of, in self-training."""
    assert config.self_train is not None
    sample = config.sample.model_copy(update={"k": config.self_train.pair_outputs})
    return Ask(f"iter_{iteration}/dpo", "train", config.prompt, config.judge, sample)


def labelling_ask(config: RunConfig, iteration: int) -> Ask:
    """What DPO_t is asked for outputs that SFT_t imitates; without a DPO step SFT_{t-1}."""
    assert config.self_train is not None
    sample = config.sample.model_copy(update={"k": config.self_train.label_outputs})
    return Ask(f"iter_{iteration}/sft", "train", config.prompt, config.judge, sample)


def against_ask(config: RunConfig, iteration: int) -> Ask:
    """What M_t's test answers are judged for a second time: against those of another run's M_t."""
    return Ask(f"iter_{iteration}/against", "evaluate", config.prompt, config.evaluation.judge, config.sample)


def direct_ask(config: RunConfig) -> Ask:
    """What the seed is asked without any thought prompt, for comparison."""
    return Ask("iter_0/direct", "evaluate", PromptConfig(variant="direct"), config.evaluation.judge, config.sample)


def prompt_templates(prompt: PromptConfig) -> External:
    """The templates that a model is asked with, and the markers that its outputs are split at."""
    return with_files(load_prompt(prompt).fingerprint, prompt.user_template, prompt.system_template)


def with_files(fingerprint: str, *paths: Path | None) -> External:
    """What identifies an input, and the user's files that it's read from, if it's not our own."""
    return External(fingerprint, {path: content_sha256(path) for path in paths if path is not None})


def judged(config: RunConfig, ask: Ask) -> Answers:
    """What a round of a run that is current came to; raises `StoreError` if the run hasn't got that far."""
    folder = config.root / ask.folder
    return Answers(complete_artifact(folder / "samples"), complete_artifact(folder / "scores"))


def seed_model(config: RunConfig) -> Artifact:
    """M_0 as an artifact, named by the content of its files."""
    return folder_artifact(SHIPPED_SEED_MODEL if config.model.path == MINIATURE else Path(config.model.path))


def baseline_of(ask: Ask, samples: Artifact, against: Answers | None) -> Artifact | None:
    """What evaluated samples are compared with: those of `against`, or themselves; None for training samples."""
    if ask.purpose == "train":
        return None
    return against.samples if against else samples
