"""What every stage of a run is made from: the one place that says which inputs and config values matter to which.

In: a config, an iteration and the artifacts of earlier stages. Out: `Stage`s. The tasks write to these stages, and
`completed` walks them with nothing but manifests, so that a finished run is recognised without Prefect, Ray or torch.

Iteration t ≥ 1 makes M_t from M_{t-1}; its folder `iter_<t>` holds everything that made M_t, M_t itself and its
evaluation. `iter_0` holds the evaluation of the seed, M_0, and the validation and test prompts. Where something ran
and is watched (`engine`, `trainer`, `cluster`, `tracking`, folder and name) identifies nothing, but for what changes
the numbers themselves: `engine.dtype`, `trainer.workers` and `trainer.strategy`.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prompts.instructions import load_instruction_prompt
from prompts.thought import load_prompt
from prompts.verdict import load_verdict_prompt
from tpo.config.data import FileSource, ModelConfig, PromptConfig, SampleConfig
from tpo.config.judges import JudgeConfig, PairwiseJudge, ValidationConfig, VerifierJudge, compares, least_margin
from tpo.config.load import load_config
from tpo.config.recipes import PairFile, PairModels, SelfTrain, ThinkPo
from tpo.config.renamed import as_noted
from tpo.config.run import RunConfig
from tpo.config.training import TrainConfig, TrainingConfig
from tpo.data.prompt_files import file_of
from tpo.errors import DamagedError, InputError, StoreError
from tpo.records import Artifact, Demonstration, Generation, Judgment, Pair, Prompt, Sample, Score
from tpo.storage.disk import write_atomically
from tpo.storage.store import Stage, combined_sha256, file_sha256, folder_artifact, read_manifest

SHIPPED_SEED_MODEL = ModelConfig().folder
"""The miniature's M_0."""

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
    as often as the side's own `max_attempts` say."""
    prompt, sample = {
        "long": (source.long_prompt, source.long_sample),
        "short": (source.short_prompt, source.short_sample),
    }[side]
    once = sample.model_copy(update={"evaluation_max_attempts": sample.max_attempts})
    return Ask(f"dpo/{side}", "evaluate", prompt, config.judge, once, work=f"{side} sample")


def pairing_ask(config: RunConfig, iteration: int) -> Ask:
    """What SFT_{t-1} is asked for outputs that pairs are made of, in self-training."""
    sample = config.sample.model_copy(update={"k": config.recipe_as(SelfTrain).pair_outputs})
    return Ask(f"iter_{iteration}/dpo", "train", config.prompt, config.judge, sample)


def labelling_ask(config: RunConfig, iteration: int) -> Ask:
    """What DPO_t is asked for outputs that SFT_t imitates; without a DPO step SFT_{t-1}."""
    sample = config.sample.model_copy(update={"k": config.recipe_as(SelfTrain).label_outputs})
    return Ask(f"iter_{iteration}/sft", "train", config.prompt, config.judge, sample)


def against_ask(config: RunConfig, iteration: int) -> Ask:
    """What M_t's test answers are judged for a second time: against those of another run's M_t."""
    return Ask(f"iter_{iteration}/against", "evaluate", config.prompt, config.evaluation.judge, config.sample)


def direct_ask(config: RunConfig) -> Ask:
    """What the seed is asked without any thought prompt, for comparison."""
    return Ask("iter_0/direct", "evaluate", PromptConfig(variant="direct"), config.evaluation.judge, config.sample)


def seed_model(config: RunConfig) -> Artifact:
    """M_0 as an artifact, named by the content of its files."""
    return folder_artifact(config.model.folder)


def is_written(config: RunConfig, folder: str) -> bool:
    """Whether a model writes the prompts of a stage's folder: those of an iteration may be."""
    return config.data.synthetic is not None and not folder.endswith(("/validation", "/test"))


def generator_model(config: RunConfig, seed: Artifact) -> Artifact | None:
    """The model that writes prompts; None where a server has it."""
    settings = config.data.synthetic
    if settings is None or settings.endpoint is not None:
        return None
    return seed if settings.folder is None else folder_artifact(settings.folder)


def generations_stage(config: RunConfig, folder: str, seed: Artifact, earlier: Sequence[Artifact]) -> Stage:
    """What a model writes when it is asked for prompts for `folder`; `earlier` are the sets that are there by then.

    Examples come from what validation and test have left of the source. What is taken of it, and so how much is
    written, identifies nothing here: with another measure the same generations are looked through again, and more are
    made where they do not suffice.
    """
    settings = config.data.synthetic
    assert settings is not None
    model = generator_model(config, seed)
    how = {"shots", "pool", "per_generation", "temperature", "top_p", "max_prompt_tokens", "max_new_tokens"}
    writer = {"model": settings.model} if model is None else {"dtype": config.engine.dtype}
    return Stage(
        config.root,
        f"{folder.removesuffix('prompts')}generations",
        Generation,
        inputs={
            **{f"prompts {i}": artifact.fingerprint for i, artifact in enumerate(earlier[:2])},
            **({} if model is None else {"generator": model.fingerprint}),
            **_source_hash(config, folder),
            "few-shot template": load_instruction_prompt(settings.template).fingerprint,
        },
        config={
            "seed": config.seed,
            "source": config.data.source.model_dump(mode="json"),
            "synthetic": settings.model_dump(mode="json", include=how) | writer,
        },
    )


def prompts_stage(
    config: RunConfig, folder: str, model: Artifact, earlier: Sequence[Artifact], generations: Artifact | None = None
) -> Stage:
    """Prompts of one iteration, of validation or of test; `earlier` are the sets that they must be disjoint from, and
    `generations` what they are chosen from where a model writes them.

    The seed model matters because its tokenizer says which prompts are too long.
    """
    inputs = {f"prompts {i}": artifact.fingerprint for i, artifact in enumerate(earlier)}
    inputs |= {"model": model.fingerprint, **_source_hash(config, folder)}
    if config.data.also_fits is not None:
        inputs["other prompt templates"] = load_prompt(config.data.also_fits).fingerprint
    without = {"source", "synthetic", "per_iteration", "validation", "test", "also_fits"}
    data = config.data.model_dump(mode="json", exclude=without)
    if generations is not None and config.data.synthetic is not None:
        inputs["generations"] = generations.fingerprint
        avoided = enumerate(config.data.synthetic.avoid)
        inputs |= {f"avoided {i}": _content_of(file.path) for i, file in avoided}
        chosen_by = {"max_similarity", "min_words", "without_words"}
        data["synthetic"] = config.data.synthetic.model_dump(mode="json", include=chosen_by)
        data["synthetic"]["avoid"] = [file.instruction_column for file in config.data.synthetic.avoid]
    count = {"validation": config.data.validation, "test": config.data.test}.get(
        folder.split("/")[-1], config.data.per_iteration
    )
    return Stage(
        config.root,
        folder,
        Prompt,
        inputs=inputs | {"prompt templates": load_prompt(config.prompt).fingerprint},
        config={
            "seed": config.seed,
            "data": {**data, "source": config.data.source.model_dump(mode="json"), "count": count},
        },
    )


def prompt_file(source: FileSource, folder: str) -> Path:
    """The file that the prompts of a stage's folder are drawn from."""
    place, _, kind = folder.partition("/prompts")
    iteration = int(place.removeprefix("iter_")) if place.startswith("iter_") else 0
    return file_of(source, kind.removeprefix("/"), iteration)


def samples_stage(config: RunConfig, ask: Ask, model: Artifact, prompts: Artifact) -> Stage:
    """Outputs of one model for one set of prompts."""
    only_for = {"k", "temperature", "max_attempts", "evaluation_temperature", "evaluation_max_attempts"}
    sample = ask.sample.model_dump(mode="json", exclude=only_for)
    if ask.purpose == "train":
        sample |= {"k": ask.sample.k, "tries": ask.sample.max_attempts, "temperature": ask.sample.temperature}
    else:
        warmth = ask.sample.evaluation_temperature
        temperature = ask.sample.temperature if warmth is None else warmth
        sample |= {"k": 1, "tries": ask.sample.evaluation_max_attempts, "temperature": temperature}
    return Stage(
        config.root,
        f"{ask.folder}/samples",
        Sample,
        inputs={
            "model": model.fingerprint,
            "prompts": prompts.fingerprint,
            "prompt templates": load_prompt(ask.prompt).fingerprint,
        },
        config={"seed": config.seed, "sample": sample, "dtype": config.engine.dtype},
        without_effect=_sampling_without_effect(sample, ask),
    )


def _sampling_without_effect(sample: Mapping[str, Any], ask: Ask) -> set[str]:
    """Values of `sample` that these outputs do not depend on: a thought's maximum if no thought is asked for, and the
    nucleus of greedy decoding."""
    found = set()
    if load_prompt(ask.prompt).response_marker is None:
        found.add("sample.max_thought_tokens")
    if sample["temperature"] == 0:
        found.add("sample.top_p")
    return found


def baseline_of(ask: Ask, samples: Artifact, against: Answers | None) -> Artifact | None:
    """What evaluated samples are compared with: those of `against`, or themselves; None for training samples."""
    if ask.purpose == "train":
        return None
    return against.samples if against else samples


def judgments_stage(config: RunConfig, ask: Ask, submitted: Submission) -> Stage:
    """What a judge said of some samples."""
    inputs = {"samples": submitted.samples.fingerprint, "prompts": submitted.prompts.fingerprint}
    if submitted.baseline is not None and compares(ask.judge):
        inputs["baseline"] = submitted.baseline.fingerprint
    return Stage(
        config.root,
        f"{ask.folder}/judgments",
        Judgment,
        inputs=inputs | _judge_inputs(ask.judge),
        config={
            "judge": _judge_values(config, ask.judge, without={"ridge", "length_bias"}),
            "with_errors": ask.purpose == "evaluate",
        },
    )


def scores_stage(config: RunConfig, ask: Ask, submitted: Submission, judgments: Artifact) -> Stage:
    """Scores of some samples, from what a judge said of them."""
    stage = judgments_stage(config, ask, submitted)
    return Stage(
        config.root,
        f"{ask.folder}/scores",
        Score,
        inputs=stage.inputs | {"judgments": judgments.fingerprint},
        config=stage.config | {"judge": _judge_values(config, ask.judge)},
    )


def _judge_inputs(judge: JudgeConfig) -> dict[str, str]:
    """The files that a judge is made of, by content."""
    inputs = {}
    if not isinstance(judge, VerifierJudge) and judge.folder is not None:
        inputs["judge model"] = folder_artifact(judge.folder).fingerprint
    if isinstance(judge, PairwiseJudge):
        inputs["judge templates"] = load_verdict_prompt(judge).fingerprint
    return inputs


def _judge_values(config: RunConfig, judge: JudgeConfig, *, without: Set[str] = frozenset()) -> dict[str, Any]:
    """The config values that decide what a judge says: neither where its model lies nor where and how a server is
    reached, which is known by the name of its model alone."""
    if isinstance(judge, VerifierJudge):
        return judge.model_dump(mode="json", exclude={*without})
    if judge.folder is not None:
        values = judge.model_dump(mode="json", exclude={*without, "model", "system_template", "user_template"})
        return values | {"dtype": config.judge_engine.dtype}
    values = judge.model_dump(mode="json", exclude={*without, "endpoint", "system_template", "user_template"})
    return values | {"structured_outputs": judge.endpoint is not None and judge.endpoint.structured_outputs}


def pairs_stage(config: RunConfig, iteration: int, answers: Answers) -> Stage:
    """Preference pairs of one iteration."""
    return Stage(
        config.root,
        f"iter_{iteration}/pairs",
        Pair,
        inputs={"samples": answers.samples.fingerprint, "scores": answers.scores.fingerprint},
        config={
            "seed": config.seed,
            "pair": as_noted(config.pair) | {"min_margin": least_margin(config.pair, config.judge)},
            "max_tokens": config.train.max_tokens,
        },
    )


def reference_of(config: RunConfig, seed: Artifact, model: Artifact) -> Artifact:
    """The model that DPO on `model` holds it to."""
    return seed if config.train.reference == "seed" else model


def train_stage(config: RunConfig, folder: str, model: Artifact, reference: Artifact, pairs: Artifact) -> Stage:
    """The checkpoints of one DPO step below `folder`, a model folder an epoch."""
    inputs = {"model": model.fingerprint, "pairs": pairs.fingerprint}
    if reference.fingerprint != model.fingerprint:
        inputs["reference"] = reference.fingerprint
    return Stage(
        config.root,
        f"{folder}/train",
        "Model",
        inputs=inputs,
        config=_training_values(config, {"train": as_noted(config.train, exclude={"reference"})}),
        without_effect=_training_without_effect("train", config.train),
    )


def fine_tune_stage(config: RunConfig, folder: str, model: Artifact, demonstrations: Artifact) -> Stage:
    """The checkpoints of supervised fine-tuning below `folder`, a model folder an epoch."""
    sft = config.fine_tuning
    return Stage(
        config.root,
        f"{folder}/train",
        "Model",
        inputs={"model": model.fingerprint, "demonstrations": demonstrations.fingerprint},
        config=_training_values(config, {"sft": as_noted(sft, exclude={"overlong"})}),
        without_effect=_training_without_effect("sft", sft),
    )


def _training_values(config: RunConfig, training: Mapping[str, Any]) -> dict[str, Any]:
    """The config values that decide what a training comes to."""
    trainer = config.trainer
    return {"seed": config.seed, **training, "workers": trainer.workers, "strategy": trainer.strategy}


def _training_without_effect(section: str, training: TrainingConfig) -> set[str]:
    """The values of a training that say how it is computed and not what, and those that its other values leave unused.

    What is computed in other pieces differs by rounding alone: after an out-of-memory error they may change, and the
    training resumes.
    """
    names = {"micro_batch_size", "packing", "gradient_checkpointing"}
    if training.lr_scheduler == "constant":
        names.add("warmup_share")
    if isinstance(training, TrainConfig):
        if training.loss != "irpo":
            names.add("alpha")
        if training.divergence != "alpha_divergence":
            names.add("divergence_alpha")
    return {f"{section}.{name}" for name in names}


def epoch_artifacts(train: Artifact) -> list[Artifact]:
    """The checkpoints of a training stage, in the order of its epochs."""
    manifest = read_manifest(train.path)
    assert manifest is not None
    return [epoch_artifact(train, epoch) for epoch in range(1, manifest.facts["epochs"] + 1)]


def epoch_artifact(train: Artifact, epoch: int) -> Artifact:
    """One checkpoint of a training stage, as a model of its own; its hashes are the manifest's."""
    manifest = read_manifest(train.path)
    prefix = f"epoch_{epoch}/"
    files = [
        {**file, "name": file["name"].removeprefix(prefix)}
        for file in (manifest.files if manifest else ())
        if file["name"].startswith(prefix)
    ]
    return Artifact(train.path / f"epoch_{epoch}", len(files), combined_sha256(files))


def model_stage(config: RunConfig, iteration: int, incumbent: Chosen, candidates: Sequence[Chosen]) -> Stage:
    """M_t: the best of M_{t-1} and the checkpoints, by their answers to the validation prompts."""
    inputs = {
        f"{kind} {i}": artifact.fingerprint
        for i, candidate in enumerate((incumbent, *candidates))
        for kind, artifact in (("model", candidate.model), ("scores", candidate.validation.scores))
    }
    return Stage(
        config.root,
        f"iter_{iteration}/model",
        "Model",
        inputs=inputs,
        config={"validation": _without_new_defaults(config.validation)},
    )


def _without_new_defaults(validation: ValidationConfig) -> dict[str, Any]:
    """The values of a section without those defaults that earlier versions did not note."""
    new = {"min_scored_share"}
    return validation.model_dump(mode="json", exclude=new) | validation.model_dump(
        mode="json", include=new, exclude_defaults=True
    )


def demonstrations_stage(
    config: RunConfig,
    folder: str,
    model: Artifact,
    prompts: Artifact,
    written: Artifact | None,
    most: int | None = None,
) -> Stage:
    """Outputs to imitate for a set of prompts: those given with them, or those that a model has `written`.

    `model`, which is to imitate them, matters because its tokenizer makes the tokens; `most` is how many are taken.
    """
    inputs = {"model": model.fingerprint, "prompts": prompts.fingerprint}
    if written is not None:
        inputs["written"] = written.fingerprint
    return Stage(
        config.root,
        f"{folder}/demonstrations",
        Demonstration,
        inputs=inputs | {"prompt templates": load_prompt(config.prompt).fingerprint},
        config={
            **as_noted(config.fine_tuning, include={"max_tokens", "overlong"}),
            **({} if most is None else {"most": most}),
        },
    )


def pairs_by_length_stage(config: RunConfig, folder: str, long: Artifact, short: Artifact) -> Stage:
    """Pairs of long and short outputs to the same prompts."""
    return Stage(
        config.root,
        f"{folder}/pairs",
        Pair,
        inputs={"long": long.fingerprint, "short": short.fingerprint},
        config={"seed": config.seed, "thinkpo": _filter_values(config), "max_tokens": config.train.max_tokens},
    )


def pairs_from_file_stage(config: RunConfig, folder: str, model: Artifact) -> Stage:
    """Pairs of long and short outputs from a file, in the tokens of `model`."""
    source = config.recipe_as(ThinkPo).source
    assert isinstance(source, PairFile)
    return Stage(
        config.root,
        f"{folder}/pairs",
        Pair,
        inputs={
            "model": model.fingerprint,
            "pair file": _content_of(source.path),
            "prompt templates": load_prompt(config.prompt).fingerprint,
        },
        config={
            "seed": config.seed,
            "thinkpo": _filter_values(config),
            "columns": source.model_dump(mode="json", exclude={"path"}),
            "max_tokens": config.train.max_tokens,
        },
    )


def _filter_values(config: RunConfig) -> dict[str, Any]:
    """The config values that decide which long and short outputs become pairs."""
    return as_noted(config.recipe_as(ThinkPo), exclude={"kind", "source", "sft"})


def pairs_by_answer_stage(config: RunConfig, folder: str, given: Artifact, answers: Sequence[Answers]) -> Stage:
    """Pairs of right and wrong outputs to the same questions."""
    return Stage(
        config.root,
        f"{folder}/pairs",
        Pair,
        inputs=_answered(given, answers),
        config={
            "pairs_per_question": config.recipe_as(SelfTrain).pairs_per_question,
            "max_tokens": config.train.max_tokens,
        },
    )


def pseudo_labels_stage(config: RunConfig, folder: str, given: Artifact, answers: Sequence[Answers]) -> Stage:
    """Outputs to imitate: those that are given, and those that were answered right."""
    recipe = config.recipe_as(SelfTrain)
    return Stage(
        config.root,
        f"{folder}/demonstrations",
        Demonstration,
        inputs=_answered(given, answers),
        config={
            **as_noted(recipe, include={"dedup_threshold", "cap_quantile"}),
            "max_tokens": recipe.sft.max_tokens,
        },
    )


def _answered(given: Artifact, answers: Sequence[Answers]) -> dict[str, str]:
    """What is given, and what models answered, in the order in which they were asked."""
    inputs = {"given": given.fingerprint}
    for i, each in enumerate(answers, 1):
        inputs |= {f"samples {i}": each.samples.fingerprint, f"scores {i}": each.scores.fingerprint}
    return inputs


def _content_of(path: Path) -> str:
    """A file's or a dataset folder's content, by its hash."""
    return folder_artifact(path).fingerprint if path.is_dir() else file_sha256(path)


def keep_config(config: RunConfig) -> None:
    """Writes the config to the run folder as `config.json`, every default spelled out."""
    write_atomically(config.root / "config.json", _resolved_copy(config))


def is_kept(config: RunConfig) -> bool:
    """Whether the run folder's last run had this config, so that its summary and report are this config's too."""
    path = config.root / "config.json"
    try:
        return path.is_file() and _resolved_copy(load_config(path)) == _resolved_copy(config)
    except InputError:
        return False


def _resolved_copy(config: RunConfig) -> bytes:
    # Without what each machine has its own of, so that a run in a bucket is the same from all of them.
    return (config.model_dump_json(indent=1, exclude={"storage": {"cache"}}) + "\n").encode()


def completed(config: RunConfig, iterations: int) -> int:
    """How many iterations are complete and undamaged, up to `iterations`; -1 where not even the seed has been
    evaluated."""
    walk = _Walk(config)
    done = -1
    for iteration in range(iterations + 1):
        try:
            if not walk.advance(iteration):
                break
        except DamagedError:
            break
        done = iteration
    return done


def leaves(config: RunConfig) -> dict[str, str]:
    """What a run is made from that none of its stages has made: models, files and templates, by content."""
    found = {"model": seed_model(config).fingerprint, "prompt templates": load_prompt(config.prompt).fingerprint}
    for name, judge in (("judge", config.judge), ("test judge", config.evaluation.judge)):
        found |= {f"{name}, {key}": value for key, value in _judge_inputs(judge).items()}
    for kind in ("prompts", "prompts/validation", "prompts/test"):
        found |= {f"{kind}, {key}": value for key, value in _source_hash(config, f"iter_0/{kind}").items()}
    source = config.recipe.source if isinstance(config.recipe, ThinkPo) else None
    if isinstance(source, PairFile):
        found["pair file"] = _content_of(source.path)
    elif isinstance(source, PairModels):
        for side, model, own in (("long", source.long, "demonstrations"), ("short", source.short, "seed")):
            prompt = source.long_prompt if side == "long" else source.short_prompt
            found[f"{side}, templates"] = load_prompt(prompt).fingerprint
            found[f"{side}, model"] = own if model == own else folder_artifact(Path(model)).fingerprint
    return found


@dataclass(frozen=True)
class Tests:
    """How a run measured its models."""

    prompts: Artifact
    """The test prompts."""
    answers: Sequence[Answers]
    """Answers of M_0, M_1, … to them."""


def tests_of(config: RunConfig, iterations: int) -> Tests:
    """How a run that has reached M_T, T = `iterations`, measured M_0 … M_T; raises `StoreError` where it has not."""
    walk = _Walk(config)
    answers = []
    for iteration in range(iterations + 1):
        if not walk.advance(iteration) or walk.tested is None:
            raise StoreError(f"{config.root} has no complete M_{iteration}: run again to make it")
        answers.append(walk.tested)
    assert walk.test is not None
    return Tests(walk.test, answers)


class _Walk:
    """Follows the manifests of a run from the seed on, as the flow would make them."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.seed = seed_model(config)
        self.earlier: list[Artifact] = []
        self.validation: Artifact | None = None
        self.test: Artifact | None = None
        self.incumbent: Chosen | None = None
        self.measured: Answers | None = None
        self.tested: Answers | None = None

    def advance(self, iteration: int) -> bool:
        """Whether everything of this iteration is complete."""
        return self._seed_evaluated() if iteration == 0 else self._iterated(iteration)

    def _seed_evaluated(self) -> bool:
        self.validation = self._prompts("iter_0/prompts/validation")
        self.test = self.validation and self._prompts("iter_0/prompts/test")
        if self.validation is None or self.test is None:
            return False
        validated = self._asked(validation_ask(self.config, 0, 0), self.seed, self.validation)
        self.measured = self._asked(measuring_ask(self.config, 0), self.seed, self.test)
        if validated is None or self.measured is None:
            return False
        self.incumbent = Chosen(self.seed, validated)
        self.tested = self.measured
        return self._asked(direct_ask(self.config), self.seed, self.test, self.measured) is not None

    def _iterated(self, iteration: int) -> bool:
        assert self.incumbent is not None and self.validation is not None and self.test is not None
        incumbent = self.incumbent
        prompts = self._prompts(f"iter_{iteration}/prompts")
        answers = prompts and self._asked(training_ask(self.config, iteration), incumbent.model, prompts)
        pairs = answers and pairs_stage(self.config, iteration, answers).complete()
        reference = reference_of(self.config, self.seed, incumbent.model)
        train = pairs and train_stage(self.config, f"iter_{iteration}", incumbent.model, reference, pairs).complete()
        if not train:
            return False
        candidates = []
        for epoch, model in enumerate(epoch_artifacts(train), 1):
            ask = validation_ask(self.config, iteration, epoch)
            if (validated := self._asked(ask, model, self.validation, incumbent.validation)) is None:
                return False
            candidates.append(Chosen(model, validated))
        stage = model_stage(self.config, iteration, incumbent, candidates)
        if (chosen := stage.complete()) is None or (manifest := stage.manifest()) is None:
            return False
        self.incumbent = Chosen(chosen, (incumbent, *candidates)[manifest.facts["epoch"]].validation)
        self.tested = self._asked(measuring_ask(self.config, iteration), chosen, self.test, self.measured)
        return self.tested is not None

    def _prompts(self, folder: str) -> Artifact | None:
        generations = None
        if is_written(self.config, folder):
            generations = generations_stage(self.config, folder, self.seed, self.earlier).complete()
            if generations is None:
                return None
        found = prompts_stage(self.config, folder, self.seed, self.earlier, generations).complete()
        if found is not None:
            self.earlier.append(found)
        return found

    def _asked(self, ask: Ask, model: Artifact, prompts: Artifact, against: Answers | None = None) -> Answers | None:
        samples = samples_stage(self.config, ask, model, prompts).complete()
        if samples is None:
            return None
        submitted = Submission(samples, prompts, baseline_of(ask, samples, against))
        judgments = judgments_stage(self.config, ask, submitted).complete()
        scores = judgments and scores_stage(self.config, ask, submitted, judgments).complete()
        return Answers(samples, scores) if scores else None


def _source_hash(config: RunConfig, folder: str) -> dict[str, str]:
    """The content of the file that a set of prompts is drawn from, by its role; nothing for the miniature world."""
    if not isinstance(config.data.source, FileSource):
        return {}
    path = prompt_file(config.data.source, folder)
    return {"source": _content_of(path)} if path.exists() else {}
