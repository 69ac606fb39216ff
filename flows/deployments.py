"""What a schedule or a form triggers: a run is brought one iteration further, or to the end of the interrupted one; a
comparison with the direct baseline; and runs of the other methods.

In: the answers of a form, those of `python -m flows iterate`. Out: M_{t+1}, where the manifests say that M_t stands.

A trigger says "go on" and not which iteration: the run folder knows that, however the trigger before it ended. So a
trigger too many does no harm, and none has to be repeated. The stages are those of `iterate`, called as a function, so
that they stand on this run's own page and not one page below.
"""

from typing import Annotated, Literal

from prefect import flow, tags
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from flows.compare import compare_with_direct
from flows.iterate import iterate
from flows.prefect_ops import alert, entitle, fetch_keys
from flows.recipes import ablated, checked, compared, made, ready, resolve_config, self_trained, working
from flows.self_train import self_train, self_train_and_plain
from flows.thinkpo import thinkpo
from tasks.lineage import completed
from tpo.config.run import RunConfig
from tpo.report.ladder import ABLATION, LADDER, page_of
from tpo.storage.disk import explained
from tpo.storage.mirror import reading

JudgeChoice = Literal["the profile's", "verifier", "reward_model", "armorm", "pairwise"]


@flow(name="advance", flow_run_name="advance {profile}", on_failure=[alert], on_crashed=[alert])
def advance(
    profile: str = "laptop",
    run_name: str = "",
    judge: JudgeChoice = "the profile's",
    seed: Annotated[int, Field(ge=0)] | None = None,
    overrides: list[str] = [],  # noqa: B006 - Prefect reads the default for its form, and nobody changes it
    iterations: Annotated[int, Field(ge=1)] = 1,
    last: Annotated[int, Field(ge=0)] = 3,
) -> State:
    """Brings a run one iteration further; resumes the iteration that was interrupted.

    Args:
        profile: A name in `deploy/profiles`, or a `.toml` file as the worker sees it.
        run_name: Name of the run folder. Empty: the profile's name, with the judge and seed given here.
        judge: Who scores responses; another judge than the profile's comes with its defaults.
        seed: The run's seed. None: the profile's.
        overrides: Values in place of the profile's, each as `sample.k=4`.
        iterations: How many iterations this trigger adds at most.
        last: T of the last model M_T. Once it stands, triggers do nothing.
    """
    config = _asked_for(profile, run_name, judge, seed, overrides)
    checked(config)
    reached = next_model(config, iterations, last)
    entitle(f"{config.name} to M_{reached}", config.name)
    fetch_keys(config)
    if ready(config, reached) is not None:
        return Completed(name="NothingToDo", message=f"M_{reached} of {config.name} is complete, and `last` is {last}")
    with working(), explained(), tags(config.name):
        iterate.fn(config, reached)
    return Completed(message=f"M_{reached} of {config.name} is complete: {config.place}/report.html")


@flow(name="compare-runs", flow_run_name="compare {profile}", on_failure=[alert], on_crashed=[alert])
def compare_runs(
    profile: str = "laptop",
    run_name: str = "",
    judge: JudgeChoice = "the profile's",
    seed: Annotated[int, Field(ge=0)] | None = None,
    overrides: list[str] = [],  # noqa: B006 - as above
    iterations: Annotated[int, Field(ge=0)] = 3,
) -> State:
    """Brings a run and its direct baseline to M_T and compares them.

    Args:
        profile: A name in `deploy/profiles`, or a `.toml` file as the worker sees it.
        run_name: Name of the run folder. Empty: the profile's name, with the judge and seed given here.
        judge: Who scores responses; another judge than the profile's comes with its defaults.
        seed: The run's seed. None: the profile's.
        overrides: Values in place of the profile's, each as `sample.k=4`.
        iterations: T of the models that are compared.
    """
    config = _asked_for(profile, run_name, judge, seed, overrides)
    entitle(f"{config.name} against direct, to M_{iterations}", config.name)
    fetch_keys(config)
    if compared(config, iterations) is not None:
        return Completed(name="NothingToDo", message=f"{config.name} is compared with its direct baseline already")
    with working(), explained(), tags(config.name):
        compare_with_direct.fn(config, iterations)
    return Completed(message=f"{config.name} is compared with its direct baseline: {config.place}/comparison.html")


@flow(name="run-thinkpo", flow_run_name="thinkpo {profile}", on_failure=[alert], on_crashed=[alert])
def run_thinkpo(
    profile: str = "thinkpo",
    run_name: str = "",
    judge: JudgeChoice = "the profile's",
    seed: Annotated[int, Field(ge=0)] | None = None,
    overrides: list[str] = [],  # noqa: B006 - as above
) -> State:
    """Brings a run of ThinkPO to its end, from where its manifests say that it stands.

    Args:
        profile: A name in `deploy/profiles`, or a `.toml` file as the worker sees it.
        run_name: Name of the run folder. Empty: the profile's name, with the judge and seed given here.
        judge: Who scores responses; another judge than the profile's comes with its defaults.
        seed: The run's seed. None: the profile's.
        overrides: Values in place of the profile's, each as `recipe.swap=true`.
    """
    config = _asked_for(profile, run_name, judge, seed, overrides)
    entitle(f"{config.name}, ThinkPO", config.name)
    fetch_keys(config)
    if made(config) is not None:
        return Completed(name="NothingToDo", message=f"{config.name} is complete")
    with working(), explained(), tags(config.name):
        thinkpo.fn(config)
    return Completed(message=f"{config.name} is complete: {config.place}/ladder.html")


@flow(name="run-self-train", flow_run_name="self-train {profile}", on_failure=[alert], on_crashed=[alert])
def run_self_train(
    profile: str = "self-train",
    run_name: str = "",
    judge: JudgeChoice = "the profile's",
    seed: Annotated[int, Field(ge=0)] | None = None,
    overrides: list[str] = [],  # noqa: B006 - as above
    iterations: Annotated[int, Field(ge=0)] = 3,
    ablation: bool = False,
) -> State:
    """Brings a run of DPO-ST to SFT_T, from where its manifests say that it stands.

    Args:
        profile: A name in `deploy/profiles`, or a `.toml` file as the worker sees it.
        run_name: Name of the run folder. Empty: the profile's name, with the judge and seed given here.
        judge: Who scores responses; another judge than the profile's comes with its defaults.
        seed: The run's seed. None: the profile's.
        overrides: Values in place of the profile's, each as `recipe.dpo=false`.
        iterations: T of the last model SFT_T.
        ablation: Whether to run it without the DPO step too, and hold each SFT_t against the other's.
    """
    config = _asked_for(profile, run_name, judge, seed, overrides)
    entitle(f"{config.name}, DPO-ST {'with and without DPO ' if ablation else ''}to SFT_{iterations}", config.name)
    fetch_keys(config)
    if (ablated if ablation else self_trained)(config, iterations) is not None:
        return Completed(name="NothingToDo", message=f"SFT_{iterations} of {config.name} is complete")
    with working(), explained(), tags(config.name):
        (self_train_and_plain if ablation else self_train).fn(config, iterations)
    page = page_of(ABLATION if ablation else LADDER)
    return Completed(message=f"SFT_{iterations} of {config.name} is complete: {config.place}/{page}")


def _asked_for(profile: str, run_name: str, judge: JudgeChoice, seed: int | None, overrides: list[str]) -> RunConfig:
    return resolve_config(
        profile,
        run_name=run_name or None,
        judge=None if judge == "the profile's" else judge,
        seed=seed,
        overrides=overrides,
    )


def next_model(config: RunConfig, iterations: int, last: int) -> int:
    """T of the model to bring a run to: so many iterations past the last complete one, and no further than `last`."""
    with reading(config):
        return min(max(completed(config, last), 0) + iterations, last)
