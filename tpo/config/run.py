"""A whole run in one frozen object, `RunConfig`, with the constraints between its sections.

Validators reject and never rewrite: what a user wrote is what runs. Nothing here imports torch, Ray or Prefect.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Discriminator, Field, PrivateAttr, Tag, model_validator

from tpo.config.base import Section
from tpo.config.benchmarks import EvaluationConfig
from tpo.config.data import DataConfig, MiniatureSource, ModelConfig, PromptConfig, SampleConfig
from tpo.config.gate import OF_VALIDATION, SECOND_JUDGE, VERIFIER, GateConfig, unknown_score
from tpo.config.hub import Pin
from tpo.config.judges import (
    HealthConfig,
    JudgeConfig,
    PairConfig,
    ServedJudge,
    SingleJudge,
    ValidationConfig,
    VerifierJudge,
    members_of,
)
from tpo.config.recipes import Recipe, SelfTrain, ThinkPo, Tpo
from tpo.config.resources import (
    BucketUrl,
    BudgetConfig,
    ClusterConfig,
    EngineConfig,
    JudgeEngineConfig,
    MetricsConfig,
    PricesConfig,
    ReportConfig,
    StorageConfig,
    ThroughputConfig,
    TrackingConfig,
    TrainerConfig,
    _kind_of_folder,
)
from tpo.config.training import WHOLE_BATCH_LOSSES, SftConfig, TrainConfig, TrainingConfig
from tpo.errors import InputError

R = TypeVar("R", Tpo, ThinkPo, SelfTrain)


class RunConfig(Section):
    """A whole run. The resolved copy is saved as `runs/<name>/config.json`."""

    name: str = Field("laptop", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its folder in `folder`."""
    folder: Annotated[
        Annotated[Path, Tag("path")] | Annotated[BucketUrl, Tag("url")], Discriminator(_kind_of_folder)
    ] = Path("runs")
    """Where run folders live: a folder on a local or shared file system, or `s3://bucket/prefix`."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Random seed of prompts, sampling, pair quota and training order."""
    model: ModelConfig = ModelConfig()
    """The seed model."""
    data: DataConfig = DataConfig()
    """The prompts."""
    prompt: PromptConfig = PromptConfig()
    """How the model is prompted to think."""
    sample: SampleConfig = SampleConfig()
    """How outputs are sampled."""
    judge: JudgeConfig = VerifierJudge()
    """What scores responses."""
    pair: PairConfig = PairConfig()
    """How scores become pairs."""
    train: TrainConfig = TrainConfig()
    """The DPO step."""
    recipe: Annotated[Recipe, Field(discriminator="kind")] = Tpo()
    """Which training method the run follows."""
    validation: ValidationConfig = ValidationConfig()
    """How a checkpoint is chosen."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How the test set is judged, and what else the models are measured on."""
    gate: GateConfig = GateConfig()
    """When the loop may continue from M_t."""
    health: HealthConfig = HealthConfig()
    """Limits on how the judge behaves."""
    engine: EngineConfig = EngineConfig()
    """Where sampling runs."""
    judge_engine: JudgeEngineConfig = JudgeEngineConfig()
    """Where judges that are models run."""
    trainer: TrainerConfig = TrainerConfig()
    """Where training runs."""
    cluster: ClusterConfig = ClusterConfig()
    """Where Ray is."""
    throughput: ThroughputConfig = ThroughputConfig()
    """Speeds and lengths for the plan's forecast."""
    prices: PricesConfig = PricesConfig()
    """What things cost."""
    budget: BudgetConfig = BudgetConfig()
    """What the run may spend."""
    tracking: TrackingConfig = TrackingConfig()
    """Where training metrics go."""
    metrics: MetricsConfig = MetricsConfig()
    """Where the run's own speed and health are exported."""
    report: ReportConfig = ReportConfig()
    """What is written to be looked at."""
    storage: StorageConfig = StorageConfig()
    """How to reach the bucket, if `folder` is in one."""

    _hub_pins: Mapping[str, Pin] = PrivateAttr(default_factory=dict)

    @property
    def hub_pins(self) -> Mapping[str, Pin]:
        """What addresses on the hub were resolved to, by those that the profile has (`tpo.hub`); in no file of the
        config, whose own addresses have the commits."""
        return self._hub_pins

    def with_hub_pins(self, pins: Mapping[str, Pin]) -> "RunConfig":
        """The same config with other ones."""
        found = self.model_copy()
        found._hub_pins = dict(pins)
        return found

    @property
    def root(self) -> Path:
        """The run's folder; for a run in a bucket, its working copy on this machine."""
        if isinstance(self.folder, Path):
            return self.folder / self.name
        address = f"{self.storage.endpoint_url or ''} {self.folder}"  # two servers may have buckets of the same name
        digest = hashlib.sha256(address.encode()).hexdigest()[:8]
        return self.storage.cache / f"{self.folder.removeprefix('s3://').split('/')[0]}-{digest}" / self.name

    @property
    def place(self) -> str:
        """Where the run is, human-readable: its folder, or its address in a bucket."""
        return str(self.root) if isinstance(self.folder, Path) else f"{self.folder}/{self.name}"

    @property
    def sft(self) -> SftConfig | None:
        """The recipe's supervised fine-tuning; None if it has none."""
        return None if isinstance(self.recipe, Tpo) else self.recipe.sft

    @property
    def fine_tuning(self) -> SftConfig:
        """The same for stages that only recipes with fine-tuning have; raises `InputError` in others."""
        if self.sft is None:
            raise InputError(f'recipe.kind is "{self.recipe.kind}", without fine-tuning: add a section [recipe.sft]')
        return self.sft

    @property
    def single_judges(self) -> list[SingleJudge]:
        """Every judge of training, validation and test samples, members of judges included."""
        return [member for judge in (self.judge, self.evaluation.judge) for member in members_of(judge)]

    @property
    def second_judges(self) -> dict[str, JudgeConfig]:
        """Who scores the validation answers of every M_t besides the run's judge, as the gate names their scores."""
        found, judge, opinion = dict[str, JudgeConfig](), self.evaluation.judge, self.evaluation.second_opinion
        free = isinstance(judge, VerifierJudge) or SECOND_JUDGE in self.gate.scores
        if judge != self.judge and (opinion == "always" or (opinion == "auto" and free)):
            found[SECOND_JUDGE] = judge
        if self.evaluation.verifier is not None:
            found[VERIFIER] = self.evaluation.verifier
        return found

    @property
    def prompts_per_round(self) -> int:
        """Fresh prompts in each round of an iteration; with one round, `data.per_iteration`."""
        return self.data.count // self.train.rounds

    def recipe_as(self, kind: type[R]) -> R:
        """The recipe, which must be of that kind; raises `InputError` if it is another."""
        if not isinstance(self.recipe, kind):
            raise InputError(
                f'recipe.kind is "{self.recipe.kind}", expected "{kind().kind}": use another profile, or the command '
                "for this recipe (tpo iterate or compare, tpo thinkpo, tpo self-train)"
            )
        return self.recipe

    @model_validator(mode="after")
    def _lengths_fit(self) -> "RunConfig":
        if isinstance(self.recipe, ThinkPo):
            return self  # its pairs aren't sampled as `sample` says; pairs that are too long are dropped and counted
        longest = self.data.max_prompt_tokens + self.sample.max_new_tokens
        if longest > self.train.max_tokens:
            raise ValueError(
                f"data.max_prompt_tokens + sample.max_new_tokens is {longest}, more than train.max_tokens "
                f"({self.train.max_tokens}): pairs would be dropped just for their length"
            )
        return self

    @model_validator(mode="after")
    def _all_prompts_are_one_set(self) -> "RunConfig":
        if self.data.per_iteration != "all":
            return self
        if isinstance(self.recipe, Tpo):
            raise ValueError(
                'data.per_iteration is "all", but each iteration takes fresh prompts: set it to a number ("all" goes '
                'with recipe.kind = "thinkpo" or "self_train", which have a single set of prompts)'
            )
        if isinstance(self.data.source, MiniatureSource):
            raise ValueError('data.per_iteration is "all", but the miniature is unlimited: set it to a number')
        return self

    @model_validator(mode="after")
    def _iterations_have_rounds_and_pairs_to_replay(self) -> "RunConfig":
        given = {"train.rounds": self.train.rounds, "pair.replay_share": self.pair.replay_share}
        off = {"train.rounds": 1, "pair.replay_share": 0}
        for name, value in given.items():
            if value != off[name] and not isinstance(self.recipe, Tpo):
                raise ValueError(
                    f'{name} is {value} and recipe.kind is "{self.recipe.kind}": it goes with recipe.kind = "tpo"; '
                    f"set it to {off[name]}"
                )
        return self

    @model_validator(mode="after")
    def _the_gate_has_its_scores(self) -> "RunConfig":
        gate, benchmarks = self.gate, [each.title for each in self.evaluation.benchmarks]
        if not gate.is_on:
            return self
        if not isinstance(self.recipe, Tpo):
            raise ValueError(
                f'gate.scores is set and recipe.kind is "{self.recipe.kind}", whose models are made in a fixed order '
                'without a gate: leave [gate] out, or use recipe.kind = "tpo"'
            )
        if taken := [name for name in benchmarks if name in OF_VALIDATION]:
            raise ValueError(f"evaluation.benchmarks has {taken[0]}, a name of the gate's own scores: give it another")
        for fault in filter(None, (unknown_score(name, benchmarks) for name in gate.scores)):
            raise ValueError(fault)
        if SECOND_JUDGE in gate.scores and SECOND_JUDGE not in self.second_judges:
            never = self.evaluation.second_opinion == "never"
            found = 'evaluation.second_opinion is "never"' if never else "evaluation.judge is the run's judge itself"
            remedy = 'set it to "auto"' if never else "set evaluation.judge to another one, or name validation instead"
            raise ValueError(f"gate.scores has {SECOND_JUDGE}, but {found}: {remedy}")
        if VERIFIER in gate.scores and self.evaluation.verifier is None:
            held_out = isinstance(self.evaluation.judge, VerifierJudge)
            remedy = f"name {SECOND_JUDGE}, which is one" if held_out else "add a section [evaluation.verifier]"
            raise ValueError(f"gate.scores has {VERIFIER}, but evaluation.verifier isn't set: {remedy}")
        return self

    @model_validator(mode="after")
    def _rounds_share_the_prompts(self) -> "RunConfig":
        rounds, prompts = self.train.rounds, self.data.per_iteration
        if prompts == "all" or prompts % rounds == 0:
            return self
        nearest = max(number for number in range(1, min(rounds, prompts) + 1) if prompts % number == 0)
        raise ValueError(
            f"train.rounds is {rounds}, and data.per_iteration ({prompts}) is not a multiple of it, so rounds can't "
            f"have equal numbers of prompts: set data.per_iteration to {-(-prompts // rounds) * rounds}, or "
            f"train.rounds to {nearest}"
        )

    @model_validator(mode="after")
    def _no_references_for_the_verifier(self) -> "RunConfig":
        if self.data.synthetic is not None and any(isinstance(each, VerifierJudge) for each in members_of(self.judge)):
            raise ValueError(
                "data.synthetic is set, but judge.kind is verifier, which needs references or verifiable instructions, "
                "or a member's is: generated prompts have neither; set judge.kind to another judge"
            )
        return self

    @model_validator(mode="after")
    def _thoughts_have_room(self) -> "RunConfig":
        longest = self.sample.max_thought_tokens
        if longest is not None and self.prompt.variant == "direct":
            raise ValueError('sample.max_thought_tokens is set, but prompt.variant "direct" has no thoughts to limit')
        if longest is not None and longest >= self.sample.max_new_tokens:
            raise ValueError(
                f"sample.max_thought_tokens is {longest}, which leaves no room for a response in sample.max_new_tokens "
                f"({self.sample.max_new_tokens})"
            )
        return self

    @model_validator(mode="after")
    def _benchmarks_leave_room(self) -> "RunConfig":
        longest = self.sample.max_thought_tokens
        for each in self.evaluation.benchmarks:
            if longest is not None and each.max_new_tokens is not None and longest >= each.max_new_tokens:
                raise ValueError(
                    f"evaluation.benchmarks: {each.title} has max_new_tokens {each.max_new_tokens}, which "
                    f"sample.max_thought_tokens ({longest}) fills: raise it, or leave it out for sample.max_new_tokens"
                )
        return self

    @model_validator(mode="after")
    def _self_training_knows_what_is_right(self) -> "RunConfig":
        if isinstance(self.recipe, SelfTrain) and self.judge.kind != "verifier":
            raise ValueError(
                f"recipe.kind is self_train, but judge.kind is {self.judge.kind}, which doesn't know the right answer: "
                'set it to "verifier"'
            )
        return self

    @model_validator(mode="after")
    def _cost_has_prices(self) -> "RunConfig":
        endpoints = [judge.endpoint for judge in self.single_judges if isinstance(judge, ServedJudge)]
        if self.data.synthetic is not None:
            endpoints.append(self.data.synthetic.endpoint)
        if self.evaluation.fine_grained is not None:
            endpoints.append(self.evaluation.fine_grained.endpoint)
        priced = [endpoint for endpoint in endpoints if endpoint and (endpoint.input_price or endpoint.output_price)]
        if self.budget.cost is not None and not (self.prices.gpu_hour or priced):
            raise ValueError(
                "budget.cost is set but nothing has a price: set prices.gpu_hour, or the endpoint's prices"
            )
        return self

    @model_validator(mode="after")
    def _workers_share_a_batch(self) -> "RunConfig":
        trainings: dict[str, TrainingConfig] = {"train": self.train}
        if self.sft is not None:
            trainings["recipe.sft"] = self.sft
        if self.train.loss in WHOLE_BATCH_LOSSES and self.trainer.workers > 1:
            raise ValueError(
                f"train.loss is {self.train.loss}, which sorts the pairs of a step, but trainer.workers = "
                f"{self.trainer.workers} split them: set trainer.workers to 1 and train.micro_batch_size to "
                f"train.batch_size, or train.loss to one that is a mean over pairs, such as dpo or apo_zero"
            )
        for name, training in trainings.items():
            at_once = training.micro_batch_size * self.trainer.workers
            if training.batch_size % at_once:
                raise ValueError(
                    f"{name}.batch_size {training.batch_size} is not a multiple of {name}.micro_batch_size × "
                    f"trainer.workers = {at_once}: a step would have a different number of rows"
                )
        return self
