"""What every stage of a run is made from: the one place that says which inputs and config values matter to which.

In: a config, an iteration and the artifacts of earlier stages. Out: `Stage`s. The tasks write to these stages, and
`completed` walks them with nothing but manifests, so that a finished run is recognised without Prefect, Ray or torch.

Iteration t ≥ 1 makes M_t from M_{t-1}; its folder `iter_<t>` holds everything that made M_t, M_t itself and its
evaluation. `iter_0` holds the evaluation of the seed, M_0, and the validation and test prompts. Where something ran
and is watched (`engine`, `trainer`, `cluster`, `tracking`, folder and name) identifies nothing, but for what changes
the numbers themselves: `engine.dtype`, `trainer.workers` and `trainer.strategy`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prompts.thought import load_prompt
from tasks.handles import (
    Answers,
    Ask,
    Chosen,
    Submission,
    baseline_of,
    direct_ask,
    measuring_ask,
    seed_model,
    training_ask,
    validation_ask,
)
from tasks.judge import _judge_inputs as judge_inputs, judgments_stage, scores_stage
from tasks.pair import pairs_stage
from tasks.sample import samples_stage
from tasks.source import is_written, prompts_stage, source_file
from tasks.synthesize import generations_stage
from tasks.train import reference_of, train_stage
from tasks.training import epoch_artifacts
from tasks.validate import model_stage
from tpo.config.recipes import PairFile, PairModels
from tpo.config.run import RunConfig
from tpo.errors import DamagedError, StoreError
from tpo.records import Artifact
from tpo.storage.store import content_sha256, folder_artifact


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
        found |= {f"{name}, {key}": value for key, value in judge_inputs(judge).items()}
    for kind in ("prompts", "prompts/validation", "prompts/test"):
        found |= {f"{kind}, {key}": value for key, value in source_file(config, f"iter_0/{kind}").items()}
    if config.thinkpo is not None and isinstance(config.thinkpo.source, PairFile):
        found["pair file"] = content_sha256(config.thinkpo.source.path)
    elif config.thinkpo is not None and isinstance(config.thinkpo.source, PairModels):
        source = config.thinkpo.source
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
