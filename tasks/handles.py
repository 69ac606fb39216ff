"""The handles that stages pass on: how a model is sampled and judged, and what came of it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prompts.thought import load_prompt
from tpo.config.benchmarks import BenchmarkConfig
from tpo.config.data import ModelConfig, PromptConfig, SampleConfig
from tpo.config.judges import JudgeConfig
from tpo.config.recipes import PairModels, SelfTrain
from tpo.config.run import RunConfig
from tpo.records import Artifact, External
from tpo.storage.store import complete_artifact, content_sha256, folder_artifact

Purpose = Literal["train", "evaluate"]


@dataclass(frozen=True)
class SamplingSpec:
    """One round of asking a model and judging its answers: which prompts, how, by whom, and where the rows go."""

    folder: str
    """Folder below the run folder that gets `samples`, `judgments` and `scores`."""
    purpose: Purpose
    """`train` samples K outputs and judges those that parse; `evaluate` samples one, and again if it doesn't parse."""
    prompt: PromptConfig
    """The prompt that the model gets."""
    judge: JudgeConfig
    """Who scores the responses."""
    sample: SampleConfig
    """How outputs are sampled."""
    work: str = "sample"
    """Whose context length its engine has (`tpo.config.contexts`): that of M_t, or of another model."""


@dataclass(frozen=True)
class JudgeInput:
    """What a judge scores."""

    samples: Artifact
    """The outputs."""
    prompts: Artifact
    """Their prompts."""
    baseline: Artifact | None = None
    """Outputs of another model for the same prompts, which a comparing judge compares `samples` with; None if the
    samples of a prompt are compared with each other."""


@dataclass(frozen=True)
class JudgedSamples:
    """A model's outputs for one set of prompts, with their scores."""

    samples: Artifact
    """The outputs."""
    scores: Artifact
    """Their scores."""


@dataclass(frozen=True)
class Candidate:
    """M_t, with the validation answers that chose it."""

    model: Artifact
    """M_t."""
    validation: JudgedSamples
    """Its answers to the validation prompts."""


@dataclass(frozen=True)
class BenchmarkSet:
    """A benchmark whose files have been read."""

    benchmark: BenchmarkConfig
    """Which one."""
    prompts: Artifact
    """Its prompts, in the file's order."""
    baseline: JudgedSamples | None
    """The outputs that others are compared with, from a file; None without one."""
    ratings: Artifact | None = None
    """The kinds of its prompts, if they are rated; None if they aren't."""


@dataclass(frozen=True)
class BenchmarkAnswers:
    """A model's outputs for a benchmark, judged."""

    of: BenchmarkSet
    """The benchmark."""
    model: str
    """The model's name in tables."""
    answers: JudgedSamples
    """Its outputs with their scores."""
    baseline: JudgedSamples | None
    """What they were compared with; None if they weren't."""


@dataclass(frozen=True)
class ComparedScores:
    """One score of two models, for the gate."""

    name: str
    """Its name in `gate.scores`."""
    judge: JudgeConfig
    """Who scored."""
    before: JudgedSamples
    """Answers of M_{t-1}."""
    after: JudgedSamples
    """Answers of M_t to the same prompts."""
    wins: bool = False
    """Whether prompts won are compared (`tpo.config.gate.counts_wins`), not means."""
    together: bool = False
    """Whether `after` was judged in comparison with `before`."""
    baseline: JudgedSamples | None = None
    """Answers of a third model that both are compared with, if their own scores say nothing by themselves."""


def round_folder(config: RunConfig, iteration: int, number: int) -> str:
    """The folder of a round, which is the iteration's own if there is only one."""
    return f"iter_{iteration}" if config.train.rounds == 1 else f"iter_{iteration}/round_{number}"


def training_spec(config: RunConfig, iteration: int, number: int = 1) -> SamplingSpec:
    """Samples from M_{t-1}, or from the model of the round before, to make pairs for M_t."""
    folder = round_folder(config, iteration, number)
    return SamplingSpec(folder, "train", config.prompt, config.judge, config.sample)


def validation_spec(config: RunConfig, iteration: int, epoch: int) -> SamplingSpec:
    """Validation of a checkpoint; epoch 0 of iteration 0 is the seed itself."""
    return SamplingSpec(
        f"iter_{iteration}/validation/epoch_{epoch}", "evaluate", config.prompt, config.judge, config.sample
    )


def validation_specs(config: RunConfig, iteration: int) -> list[SamplingSpec]:
    """Validation of an iteration's checkpoints, of which a limit on steps may leave fewer."""
    return [validation_spec(config, iteration, epoch) for epoch in range(1, config.train.epochs + 1)]


def measuring_spec(config: RunConfig, iteration: int) -> SamplingSpec:
    """The test of M_t."""
    return evaluation_spec(config, f"iter_{iteration}")


def second_spec(config: RunConfig, iteration: int, name: str, judge: JudgeConfig) -> SamplingSpec:
    """Another judgment of the validation answers that M_t was chosen by, by one of `RunConfig.second_judges`."""
    return SamplingSpec(f"iter_{iteration}/validation/{name}", "evaluate", config.prompt, judge, config.sample)


def evaluation_spec(config: RunConfig, folder: str) -> SamplingSpec:
    """The test of a folder's model."""
    return SamplingSpec(f"{folder}/test", "evaluate", config.prompt, config.evaluation.judge, config.sample)


def write_spec(config: RunConfig, source: PairModels, side: Literal["long", "short"]) -> SamplingSpec:
    """Outputs for one side of ThinkPO's pairs: one per prompt, sampled once as in the paper, or up to the side's own
    `max_attempts`."""
    prompt, sample = {
        "long": (source.long_prompt, source.long_sample),
        "short": (source.short_prompt, source.short_sample),
    }[side]
    once = sample.model_copy(update={"evaluation_max_attempts": sample.max_attempts})
    return SamplingSpec(f"dpo/{side}", "evaluate", prompt, config.judge, once, work=f"{side} sample")


def pairing_spec(config: RunConfig, iteration: int) -> SamplingSpec:
    """Samples from SFT_{t-1} for the pairs of self-training."""
    sample = config.sample.model_copy(update={"k": config.recipe_as(SelfTrain).pair_outputs})
    return SamplingSpec(f"iter_{iteration}/dpo", "train", config.prompt, config.judge, sample)


def labelling_spec(config: RunConfig, iteration: int) -> SamplingSpec:
    """Samples from DPO_t that SFT_t imitates; without a DPO step, from SFT_{t-1}."""
    sample = config.sample.model_copy(update={"k": config.recipe_as(SelfTrain).label_outputs})
    return SamplingSpec(f"iter_{iteration}/sft", "train", config.prompt, config.judge, sample)


def against_spec(config: RunConfig, iteration: int) -> SamplingSpec:
    """A second judgment of M_t's test outputs: compared with those of another run's M_t."""
    return SamplingSpec(f"iter_{iteration}/against", "evaluate", config.prompt, config.evaluation.judge, config.sample)


def against_direct_spec(config: RunConfig, iteration: int) -> SamplingSpec:
    """A second judgment of M_t's test outputs: compared with those of M_0 answering directly."""
    return SamplingSpec(
        f"iter_{iteration}/against_direct", "evaluate", config.prompt, config.evaluation.judge, config.sample
    )


def direct_spec(config: RunConfig) -> SamplingSpec:
    """The seed's test outputs without a thought prompt, for comparison."""
    return SamplingSpec(
        "iter_0/direct", "evaluate", PromptConfig(variant="direct"), config.evaluation.judge, config.sample
    )


def benchmark_spec(config: RunConfig, benchmark: BenchmarkConfig, folder: str, prompt: PromptConfig) -> SamplingSpec:
    """One model's outputs for a benchmark; greedy ones are sampled once, since a second try would be the same."""
    sample, changes = config.sample, dict[str, float | int]()
    if benchmark.max_new_tokens is not None:
        changes["max_new_tokens"] = benchmark.max_new_tokens
    if benchmark.temperature is not None:
        changes["evaluation_temperature"] = benchmark.temperature
    if changes.get("evaluation_temperature", sample.evaluation_temperature) == 0:
        changes["evaluation_max_attempts"] = 1
    judge = benchmark.verifier or config.evaluation.judge
    return SamplingSpec(folder, "evaluate", prompt, judge, sample.model_copy(update=changes), work="benchmark sample")


def benchmark_folder(benchmark: BenchmarkConfig, iteration: int) -> str:
    """Folder below the run folder for what M_t does in a benchmark."""
    return f"iter_{iteration}/benchmarks/{benchmark.title}"


def prompt_templates(prompt: PromptConfig, model: ModelConfig) -> External:
    """The templates that a model is asked with, their options, and the markers that its outputs are split at."""
    fingerprint = load_prompt(prompt).fingerprint
    # Not without options: prompts and outputs of runs that were made before there were any stay current.
    if options := {**model.chat_template_options, **({} if model.thinking == "auto" else {"thinking": model.thinking})}:
        fingerprint = hashlib.sha256(json.dumps([fingerprint, options], sort_keys=True).encode()).hexdigest()
    return with_files(fingerprint, prompt.user_template, prompt.system_template)


def with_files(fingerprint: str, *paths: Path | None) -> External:
    """An input by its fingerprint, with the user's files that it was read from, if any."""
    return External(fingerprint, {path: content_sha256(path) for path in paths if path is not None})


def judged(config: RunConfig, spec: SamplingSpec) -> JudgedSamples:
    """The result of a round in a run that is current. Raises `StoreError` if the run hasn't reached it."""
    folder = config.root / spec.folder
    return JudgedSamples(complete_artifact(folder / "samples"), complete_artifact(folder / "scores"))


def seed_model(config: RunConfig) -> Artifact:
    """M_0 as an artifact, named by the content of its files."""
    return folder_artifact(config.model.folder)


def baseline_of(spec: SamplingSpec, samples: Artifact, against: JudgedSamples | None) -> Artifact | None:
    """What evaluated samples are compared with: those of `against`, or themselves; None for training samples."""
    if spec.purpose == "train":
        return None
    return against.samples if against else samples
