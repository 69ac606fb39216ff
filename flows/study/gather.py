"""The numbers of a study, from the folders of its runs: scores by prompt, paired by seed, and their intervals."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from flows.study.budget import manifests, mean_budget, spent_budget
from flows.study.setup import Side, StudySetup
from tasks.estimates import Estimator, values_of
from tasks.handles import (
    JudgedSamples,
    SamplingSpec,
    against_spec,
    direct_spec,
    evaluation_spec,
    judged,
    measuring_spec,
)
from tpo.config.judges import compares
from tpo.config.recipes import SelfTrain, ThinkPo, Tpo
from tpo.config.run import RunConfig
from tpo.errors import StageError
from tpo.method.seeds import MIN_RUNS, over_runs, shared_share, student_quantile, t_interval
from tpo.method.stats import mean
from tpo.report.benchmarks import BENCHMARKS, LABELS, read_benchmarks
from tpo.report.model_table import MODEL_TABLE, read_model_table
from tpo.report.study import Budget, Level, Pooled, Study, StudyLead, StudyModel, StudySide, unequal_amounts
from tpo.report.summary import SUMMARY, Interval, read_summary
from tpo.report.table import DIRECT
from tpo.storage.mirror import reading
from tpo.storage.store import complete_artifact

Values = Mapping[str, float]
"""Values by prompt."""


@dataclass(frozen=True)
class MeasuredAs:
    """One model of a recipe, and where its test results are."""

    model: str
    """Its name in tables."""
    below: str | None
    """The model before it."""
    spec: SamplingSpec
    """Its test."""


@dataclass(frozen=True)
class Found:
    """What a study takes from one run."""

    scores: Mapping[str, Values]
    """Test scores by model and prompt."""
    leads: Mapping[str, Values]
    """Leads over the direct baseline by model and prompt, if a judge compared both; otherwise empty."""
    levels: Mapping[str, Mapping[str, float]]
    """Lengths and error rates by model and name."""
    benchmarks: Mapping[str, Mapping[str, float]]
    """Numbers of benchmarks by model and name."""
    budget: Budget
    """What it took."""
    hub: Mapping[str, str]
    """The commits of addresses on the hub that it began with."""
    versions: Set[str]
    """The versions of this package that made its stages."""


def gather(
    setup: StudySetup, *, failed: Mapping[int, str], planned: Sequence[Budget], remarks: Sequence[str] = ()
) -> Study:
    """The study of all runs that are complete; `failed` has why others aren't, by seed, and `planned` the budget of a
    run of each side.

    Raises `StageError` if fewer than two seeds are complete.
    """
    seeds = [seed for seed in setup.seeds if seed not in failed]
    if len(seeds) < MIN_RUNS:
        reasons = "; ".join(f"seed {seed}: {reason}" for seed, reason in failed.items())
        raise StageError(
            f"{len(seeds)} of {len(setup.seeds)} seeds are complete, and a study needs at least {MIN_RUNS} ({reasons})"
        )
    together = len(setup.sides) == 2 and compares(setup.folder.evaluation.judge)
    found = [
        {
            seed: read_run(side.configs[seed], setup.iterations, judged_together=together and side is setup.sides[0])
            for seed in seeds
        }
        for side in setup.sides
    ]
    confidence = setup.folder.evaluation.confidence
    pool = Pool(confidence)
    sides = [
        _side(setup, side, runs, failed, plan, pool)
        for side, runs, plan in zip(setup.sides, found, planned, strict=True)
    ]
    first = next(name for name in next(iter(found[0].values())).scores if name != DIRECT)
    return Study(
        name=setup.name,
        recipe=setup.recipe.name,
        goal=setup.goal,
        seeds=setup.seeds,
        confidence=confidence,
        common_prompts=shared_share([run.scores[first] for run in found[0].values()]),
        sides=sides,
        measure="win_rate" if together else "difference",
        leads=_leads(found, pool, judged_together=together) if len(sides) == 2 else [],
        unequal=unequal_amounts(sides[0].spent, sides[1].spent) if len(sides) == 2 else [],
        remarks=[*remarks, *_remarks(setup, found, failed)],
    )


class Pool:
    """Numbers over training runs at one confidence."""

    def __init__(self, confidence: float) -> None:
        self._confidence = confidence
        self._estimate = Estimator(confidence)

    def values(self, by_seed: Mapping[int, Values]) -> Pooled:
        """A mean of values by prompt over runs, with all of its intervals."""
        found = over_runs(list(by_seed.values()), confidence=self._confidence)
        each = {str(seed): self._estimate(mean, list(values.values())) for seed, values in by_seed.items()}
        return Pooled(
            found.value,
            Interval(found.value, *found.runs, found.n),
            Interval(found.value, *found.both, found.n),
            {seed: interval for seed, interval in each.items() if interval is not None},
        )

    def level(self, by_seed: Mapping[int, float]) -> Level:
        """A mean of numbers over runs, with its interval over runs."""
        numbers = list(by_seed.values())
        low, high = t_interval(numbers, confidence=self._confidence)
        return Level(
            Interval(sum(numbers) / len(numbers), low, high, len(numbers)),
            {str(seed): number for seed, number in by_seed.items()},
        )


def measured_as(config: RunConfig, iterations: int) -> list[MeasuredAs]:
    """The models of a run up to T = `iterations`, in the order in which they are made; ThinkPO has a fixed end."""
    recipe = config.recipe

    def below(name: str, over: str | None, folder: str) -> MeasuredAs:
        return MeasuredAs(name, over, evaluation_spec(config, folder))

    if isinstance(recipe, ThinkPo):
        tuned = [below("SFT", "base", "sft")] if config.sft is not None else []
        return [below("base", None, "base"), *tuned, below("ThinkPO", "SFT" if tuned else "base", "dpo")]
    if isinstance(recipe, SelfTrain):
        found = [below("base", None, "base"), below("SFT_0", "base", "iter_0/sft")]
        for t in range(1, iterations + 1):
            found += [below(f"DPO_{t}", f"SFT_{t - 1}", f"iter_{t}/dpo")] if recipe.dpo else []
            found.append(below(f"SFT_{t}", f"SFT_{t - 1}", f"iter_{t}/sft"))
        return found
    return [
        MeasuredAs(DIRECT, None, direct_spec(config)),
        *(MeasuredAs(f"M_{t}", f"M_{t - 1}" if t else None, measuring_spec(config, t)) for t in range(iterations + 1)),
    ]


def read_run(config: RunConfig, iterations: int, *, judged_together: bool = False) -> Found:
    """What a study takes from a run that is complete; `judged_together` if a judge compared it with its baseline.

    Raises `StageError` if a model has no scores.
    """
    with reading(config):
        scores = {each.model: values_of(judged(config, each.spec)) for each in measured_as(config, iterations)}
        if without := [model for model, values in scores.items() if not values]:
            raise StageError(
                f"{config.place}: the evaluation judge scored no test prompt of {', '.join(without)}: see its report"
            )
        leads = {f"M_{t}": _won(config, t) for t in range(iterations + 1)} if judged_together else {}
        return Found(
            scores=scores,
            leads=leads,
            levels=_levels(config),
            benchmarks=_benchmarks(config),
            budget=spent_budget(config, iterations),
            versions={manifest.code for manifest in manifests(config.root)},
            hub={written: pin.address for written, pin in config.hub_pins.items()},
        )


def _won(config: RunConfig, t: int) -> Values:
    """How often M_t wins against its direct baseline, by prompt."""
    scores = complete_artifact(config.root / against_spec(config, t).folder / "scores")
    return values_of(JudgedSamples(judged(config, measuring_spec(config, t)).samples, scores))


def _levels(config: RunConfig) -> dict[str, dict[str, float]]:
    if not isinstance(config.recipe, Tpo):
        return {
            row.model: {"broken or cut, %": row.error_rate, "output, tokens": row.tokens.value}
            for row in read_model_table(config.root / MODEL_TABLE).rows
        }
    return {
        row.model: {
            "format broken, %": row.parse_error_rate,
            "thought, characters": row.thought_chars,
            "response, characters": row.response_chars,
        }
        for row in read_summary(config.root / SUMMARY).models
    }


def _benchmarks(config: RunConfig) -> dict[str, dict[str, float]]:
    if not config.evaluation.benchmarks or not (config.root / BENCHMARKS).exists():
        return {}
    found: dict[str, dict[str, float]] = {}
    for table in read_benchmarks(config.root / BENCHMARKS).tables:
        for row in table.rows:
            for name, number in row.numbers.items():
                found.setdefault(row.model, {})[f"{table.name}: {LABELS[name]}"] = number.value
    return found


def _side(
    setup: StudySetup,
    side: Side,
    runs: Mapping[int, Found],
    failed: Mapping[int, str],
    planned: Budget,
    pool: Pool,
) -> StudySide:
    known = measured_as(next(iter(side.configs.values())), setup.iterations)
    first = next(each.model for each in known if each.model != DIRECT)

    def gain(model: str, over: str | None) -> Pooled | None:
        if over is None or over == model or over not in {each.model for each in known}:
            return None
        return pool.values({seed: _paired(run, model, over) for seed, run in runs.items()})

    def levels(of: Callable[[Found], Mapping[str, Mapping[str, float]]], model: str) -> dict[str, Level]:
        names = set.intersection(*(set(of(run).get(model, {})) for run in runs.values()))
        listed = [name for name in of(next(iter(runs.values()))).get(model, {}) if name in names]
        return {name: pool.level({seed: of(run)[model][name] for seed, run in runs.items()}) for name in listed}

    models = [
        StudyModel(
            model=each.model,
            below=each.below,
            score=pool.values({seed: run.scores[each.model] for seed, run in runs.items()}),
            gain=gain(each.model, each.below),
            gain_over_first=gain(each.model, first) if each.model != DIRECT else None,
            gain_over_direct=gain(each.model, DIRECT),
            levels=levels(lambda run: run.levels, each.model),
            benchmarks=levels(lambda run: run.benchmarks, each.model),
        )
        for each in known
    ]
    return StudySide(
        name=side.name,
        profile=side.profile,
        runs={str(seed): config.place for seed, config in side.configs.items()},
        missing={str(seed): reason for seed, reason in failed.items()},
        planned=planned,
        spent=mean_budget([run.budget for run in runs.values()]),
        models=models,
    )


def _paired(run: Found, model: str, over: str) -> dict[str, float]:
    """Differences of two models of one run, over the prompts that were scored for both."""
    return _difference(run.scores[model], run.scores[over], f"{model} and {over}")


def _difference(ours: Values, theirs: Values, which: str) -> dict[str, float]:
    found = {prompt_id: value - theirs[prompt_id] for prompt_id, value in ours.items() if prompt_id in theirs}
    if not found:
        raise StageError(f"{which} have no scored test prompt in common, so they can't be compared prompt by prompt")
    return found


def _leads(found: Sequence[Mapping[int, Found]], pool: Pool, *, judged_together: bool) -> list[StudyLead]:
    """The leads of the first side over the second, of all models that both have."""
    ours, theirs = found
    some, other = next(iter(ours.values())), next(iter(theirs.values()))
    models = [model for model in some.scores if model in other.scores and model != DIRECT]

    def lead(seed: int, model: str) -> Values:
        if judged_together:
            return ours[seed].leads[model]
        return _difference(ours[seed].scores[model], theirs[seed].scores[model], f"both sides' {model} of seed {seed}")

    return [StudyLead(model, pool.values({seed: lead(seed, model) for seed in ours})) for model in models]


def _remarks(setup: StudySetup, found: Sequence[Mapping[int, Found]], failed: Mapping[int, str]) -> list[str]:
    """What else a reader must know."""
    remarks = [f"Seed {seed} is missing: {reason}" for seed, reason in failed.items()]
    for side, runs in zip(setup.sides, found, strict=True):
        of = f" of {side.name}" if len(setup.sides) > 1 else ""
        for address in sorted({address for run in runs.values() for address in run.hub}):
            commits = {seed: run.hub.get(address, "none") for seed, run in runs.items()}
            if len(set(commits.values())) > 1:
                shown = ", ".join(f"seed {seed} with {commit}" for seed, commit in commits.items())
                remarks.append(f"The runs{of} began with different commits of {address}: {shown}.")
        versions = {seed: ", ".join(sorted(run.versions)) for seed, run in runs.items()}
        if len(set(versions.values())) > 1:
            shown = "; ".join(f"seed {seed} by {made_by}" for seed, made_by in versions.items())
            remarks.append(f"The runs{of} were made by different versions of this package: {shown}.")
        shared = shared_share([next(iter(run.scores.values())) for run in runs.values()])
        if side is setup.sides[0]:
            remarks.append(
                f"Two runs have {100 * shared:.0f} % of their test prompts in common, on average."
                if shared
                else "No two runs have a test prompt in common, so intervals over runs cover prompts too."
            )
    if len(found[0]) == MIN_RUNS:
        two, three = (student_quantile(setup.folder.evaluation.confidence, degrees) for degrees in (1, 2))
        remarks.append(
            f"With two training runs an interval over runs reaches {two:.1f} standard errors to each side; with three "
            f"it would be {three:.1f}."
        )
    return remarks
