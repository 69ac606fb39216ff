"""What a study consists of: its seeds, its one or two sides, their runs, and what it can't be made of.

Each run is an ordinary run in its own folder, as its recipe's command would start it with that seed: it can be resumed,
viewed and published by itself, and a study takes runs that are there already.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flows.recipes import RECIPES, Recipe, fetch_hub_files, profile_path, resolve_config
from tasks.source import prompt_file
from tpo.config.data import FileSource
from tpo.config.judges import compares
from tpo.config.load import ignore, load_config
from tpo.config.run import RunConfig
from tpo.errors import InputError, shortened
from tpo.method.seeds import MIN_RUNS
from tpo.storage.mirror import reading

_COMMANDS = {"tpo": "iterate", "thinkpo": "thinkpo", "self_train": "self-train"}
"""The recipe's command by `recipe.kind`."""
_BASELINES = {"iterate": ("direct", RECIPES["compare"]), "self-train": ("plain", RECIPES["self-train"].ablation)}
"""The name of a recipe's own baseline as the other side, and the recipe that makes and compares both."""
_WHERE_IT_RUNS = {
    "name", "folder", "engine", "judge_engine", "trainer", "cluster", "throughput", "prices", "budget", "tracking",
    "metrics", "report", "storage",
}  # fmt: skip
"""Sections in which a run may differ from the profile: they say where it runs and what it costs."""
_MAX_SHOWN = 3


@dataclass(frozen=True)
class Side:
    """One profile on every seed."""

    name: str
    """Its name in tables."""
    profile: str
    """The profile, or how it follows from the other side's."""
    recipe: Recipe
    """Its recipe."""
    configs: Mapping[int, RunConfig]
    """The run of each seed."""


@dataclass(frozen=True)
class Job:
    """A call of a recipe's flow, which makes one run, or a run and its baseline."""

    recipe: Recipe
    """The recipe."""
    config: RunConfig
    """The run."""
    seed: int
    """Its seed."""


@dataclass(frozen=True)
class StudySetup:
    """A study before any of its runs."""

    seeds: Sequence[int]
    """The seeds."""
    iterations: int
    """T."""
    sides: Sequence[Side]
    """One side, or two to compare."""
    jobs: Sequence[Job]
    """What has to be complete."""
    folder: RunConfig
    """The first run's config under the study's name, which says where the study's own folder is."""
    recipe: Recipe
    """The recipe of the sides."""

    @property
    def name(self) -> str:
        """The study's name."""
        return self.folder.name

    @property
    def goal(self) -> str:
        """How far each run goes; empty for a recipe without iterations."""
        return "" if self.recipe.model is None else f"to {self.recipe.model}_{self.iterations}"


def set_up(
    profile: str,
    *,
    seeds: Sequence[int],
    iterations: int,
    against: str | None,
    run_name: str | None,
    judge: str | None,
    overrides: Sequence[str],
) -> StudySetup:
    """The study of a profile, and of another one `against` it; `run_name` replaces the profile's name in all folders.

    Raises `InputError` if the seeds, the profiles or the folders can't make a study.
    """
    check_seeds(seeds, overrides)

    def named(path: str, name: str | None, seed: int | None = None) -> RunConfig:
        return resolve_config(path, run_name=name, judge=judge, seed=seed, overrides=overrides)

    def side_of(path: str, name: str) -> Side:
        configs = {seed: named(path, f"{name}-seed{seed}", seed) for seed in seeds}
        recipe = RECIPES[_COMMANDS[next(iter(configs.values())).recipe.kind]]
        return Side(name, str(profile_path(path)), recipe, configs)

    base = run_name or named(profile, None).name
    ours = side_of(profile, base)
    label, both = _BASELINES.get(ours.recipe.name, (None, None))
    if against is None:
        sides = [_fetched(ours)]
        jobs = _jobs(sides[0])
    elif against == label and both is not None and both.baseline is not None:
        ours = _fetched(ours)
        configs = {seed: both.baseline.config(config) for seed, config in ours.configs.items()}
        sides = [ours, Side(f"{base}-{label}", f"{ours.profile}, its baseline", ours.recipe, configs)]
        jobs = [Job(both, config, seed) for seed, config in ours.configs.items()]
    else:
        other = named(against, None).name
        theirs = side_of(against, other if run_name is None else f"{run_name}-{other}")
        _check_comparable(ours, theirs)
        sides = [_fetched(ours), _fetched(theirs)]
        jobs = [job for each in zip(*map(_jobs, sides), strict=True) for job in each]
    title = f"{base}-study" if len(sides) == 1 else f"{base}-against-{sides[1].name.removeprefix(f'{base}-')}"
    folder = sides[0].configs[seeds[0]].model_copy(update={"name": title})
    setup = StudySetup(seeds, iterations, sides, jobs, folder, ours.recipe)
    _check_folders(setup)
    return setup


def _fetched(side: Side) -> Side:
    """The side with everything that its runs take from elsewhere on this machine."""
    return replace(side, configs={seed: fetch_hub_files(config) for seed, config in side.configs.items()})


def _jobs(side: Side) -> list[Job]:
    return [Job(side.recipe, config, seed) for seed, config in side.configs.items()]


def check_seeds(seeds: Sequence[int], overrides: Sequence[str]) -> None:
    """Refuses seeds that don't make a study."""
    for override in overrides:
        if override.partition("=")[0].strip() == "seed":
            raise InputError(f"SET has {shortened(override)}, but a study takes its seeds from SEEDS: leave it out")
    if twice := [seed for seed in dict.fromkeys(seeds) if seeds.count(seed) > 1]:
        raise InputError(
            f"SEEDS has {', '.join(map(str, twice))} more than once: a seed is one training run, and counting it twice "
            "would make intervals too narrow; name each once"
        )
    if len(seeds) < MIN_RUNS:
        given = f"only seed {seeds[0]}" if seeds else "no seed"
        raise InputError(
            f"SEEDS has {given}, and one training run says nothing about others: name at least two, such as "
            f"SEEDS=0,1,2, or make one run with make iterate SEED={seeds[0] if seeds else 0}"
        )


def _check_comparable(ours: Side, theirs: Side) -> None:
    """Refuses two profiles whose models can't be compared prompt by prompt."""
    one, other = (next(iter(side.configs.values())) for side in (ours, theirs))
    if ours.name == theirs.name:
        raise InputError(
            f'both profiles have the name "{ours.name}", so their runs would share folders: give {theirs.profile} '
            "another name"
        )
    if one.recipe.kind != other.recipe.kind:
        raise InputError(
            f'recipe.kind is "{one.recipe.kind}" in {ours.profile} and "{other.recipe.kind}" in {theirs.profile}, '
            "whose models don't correspond: compare two profiles of one recipe"
        )
    if compares(one.evaluation.judge):
        raise InputError(
            "evaluation.judge compares responses, so its scores are win rates against each profile's own M_0, which "
            "can't be subtracted: set evaluation.judge to one that scores a response by itself"
            + (", or use AGAINST=direct, where it compares both runs" if one.recipe.kind == "tpo" else "")
        )
    for key, a, b in (
        ("evaluation.judge", *(each.evaluation.judge.model_dump(mode="json") for each in (one, other))),
        ("evaluation.confidence", one.evaluation.confidence, other.evaluation.confidence),
        ("data.test", one.data.test, other.data.test),
        ("data.source, as far as test prompts go,", *map(_test_source, (one, other))),
    ):
        if a != b:
            raise InputError(
                f"{key} differs: {_shown(a)} in {ours.profile}, {_shown(b)} in {theirs.profile}: both must be "
                "measured alike; set it in both, or by SET"
            )


def _test_source(config: RunConfig) -> object:
    """Where test prompts come from."""
    source = config.data.source
    if not isinstance(source, FileSource):
        return source.model_dump(mode="json")
    return [str(prompt_file(source, "iter_0/prompts/test")), source.instruction_column]


def _check_folders(setup: StudySetup) -> None:
    """Refuses a study whose folder is a run's, and runs that were made with other settings."""
    roots = [config.root for side in setup.sides for config in side.configs.values()]
    if setup.folder.root in roots or (setup.folder.root / "config.json").exists():
        raise InputError(
            f"{setup.folder.place} is the folder of a run, and the study would be written there: name the study "
            "otherwise by RUN="
        )
    for side in setup.sides:
        for config in side.configs.values():
            with reading(config):
                check_existing(config)


def check_existing(config: RunConfig) -> None:
    """Refuses a run folder whose run had other settings, as far as they matter for what its models are."""
    path = config.root / "config.json"
    if not path.is_file():
        return
    there = load_config(path, note=ignore)
    changed = list(_differences(_values(there), _values(config)))
    if changed:
        shown = "; ".join(f"{key} is {_shown(a)} there and {_shown(b)} here" for key, a, b in changed[:_MAX_SHOWN])
        more = f"; and {len(changed) - _MAX_SHOWN} more" if len(changed) > _MAX_SHOWN else ""
        raise InputError(
            f"{config.place} is a run with other settings ({shown}{more}), which this study would overwrite: name the "
            "study otherwise by RUN=, or remove that folder"
        )


def _values(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=_WHERE_IT_RUNS)


def _differences(a: Any, b: Any, key: str = "") -> Iterator[tuple[str, object, object]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for name in dict.fromkeys([*a, *b]):
            yield from _differences(a.get(name), b.get(name), f"{key}.{name}".removeprefix("."))
    elif a != b:
        yield key, a, b


def _shown(value: object) -> str:
    return shortened(json.dumps(value, ensure_ascii=False, default=str))
