"""Prefect's deployments: a schedule or a form takes a recipe's run one iteration further, or to its end.

A trigger says "continue" and not which iteration: the run folder knows that, however the trigger before it ended. So an
extra trigger does no harm, and none has to be repeated. The stages are those of the recipe's flow, called as a
function, so that they appear on this run's own page and not one page below.

There is a flow for each recipe, named by `Recipe.trigger`. Prefect finds it by `flows/deployments.py:<name>` and reads
its form from its signature and docstring, which are therefore made from the fields of a `Form`.
"""

import inspect
from typing import Annotated, Any, Literal

from prefect import Flow, flow, tags
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict, Field

from flows.prefect_ops import alert, entitle, fetch_keys
from flows.preflight import preflight
from flows.recipes import RECIPES, Recipe, fetch_hub_files, load, resolve_config, working
from tpo.config.run import RunConfig
from tpo.errors import GateError
from tpo.storage.current import iterations_made
from tpo.storage.disk import explained
from tpo.storage.mirror import reading

JudgeChoice = Literal["the profile's", "verifier", "reward_model", "armorm", "pairwise", "rubric"]


class Form(BaseModel):
    """The fields of a trigger's form; a description is a template of `{model}` and `{ablation}`."""

    model_config = ConfigDict(frozen=True)

    profile: str = Field(description="A name in `deploy/profiles`, or a `.toml` file as the worker sees it.")
    run_name: str = Field(
        "", description="Name of the run folder. Empty: the profile's name, with the judge and seed given here."
    )
    judge: JudgeChoice = Field(
        "the profile's",
        description="Who scores responses; another judge than the profile's comes with its defaults.",
    )
    seed: Annotated[int, Field(ge=0)] | None = Field(None, description="The run's seed. None: the profile's.")
    overrides: list[str] = Field([], description="Values in place of the profile's, each as `sample.k=4`.")
    iterations: int = Field(3, ge=0, description="T of the last model {model}_T.")
    ablation: bool = Field(False, description="Whether to {ablation}.")

    def config(self) -> RunConfig:
        """The resolved config."""
        return resolve_config(
            self.profile,
            run_name=self.run_name or None,
            judge=None if self.judge == "the profile's" else self.judge,
            seed=self.seed,
            overrides=self.overrides,
        )

    def goal(self, config: RunConfig) -> int:
        """T of the model to reach."""
        return self.iterations

    def enough(self) -> str:
        """Why there is nothing to do, other than that the goal is reached."""
        return ""


class StepForm(Form):
    """The form of a trigger that takes the run one iteration further, or resumes the interrupted one."""

    iterations: int = Field(1, ge=1, description="How many iterations this trigger adds at most.")
    last: int = Field(3, ge=0, description="T of the last model {model}_T. Once it exists, triggers do nothing.")

    def goal(self, config: RunConfig) -> int:
        """T of the next model; the run's files are checked before they are read."""
        preflight(config)
        return next_model(config, self.iterations, self.last)

    def enough(self) -> str:
        """That `last` exists."""
        return f", and `last` is {self.last}"


def deployed(recipe: Recipe) -> Flow[..., State[Any]]:
    """The deployed flow of a recipe."""
    form = StepForm if recipe.stepwise else Form

    def trigger(**answers: Any) -> State[Any]:
        return bring(recipe, form(**answers))

    asked = dict(inspect.signature(form).parameters)
    asked["profile"] = asked["profile"].replace(default=recipe.profile)
    if recipe.model is None:
        del asked["iterations"]
    if recipe.ablation is None:
        del asked["ablation"]
    known = {"model": recipe.model, "ablation": recipe.ablation and recipe.ablation.help}
    meanings = {name: (form.model_fields[name].description or "").format_map(known) for name in asked}
    goal = "one iteration further; resumes the one that was interrupted" if recipe.stepwise else "to its end"
    fields = [f"    {name}: {text}" for name, text in meanings.items()]
    trigger.__doc__ = "\n".join([f"Brings a run of `tpo {recipe.name}` {goal}.", "", "Args:", *fields])
    trigger.__name__ = trigger.__qualname__ = recipe.trigger.replace("-", "_")
    signature = inspect.Signature(list(asked.values()), return_annotation=State)
    trigger.__signature__ = signature  # type: ignore[attr-defined]  # read by Prefect, for its form
    name = f"{recipe.trigger if recipe.stepwise else recipe.name} {{profile}}"
    return flow(name=recipe.trigger, flow_run_name=name, on_failure=[alert], on_crashed=[alert])(trigger)


def bring(recipe: Recipe, form: Form) -> State[Any]:
    """Brings the run that a form describes to its goal, resuming from its manifests."""
    if form.ablation and recipe.ablation is not None:
        recipe = recipe.ablation
    config = fetch_hub_files(form.config())
    to = form.goal(config)
    entitle(recipe.says(recipe.title, config, to), config.name)
    fetch_keys(config)
    done = recipe.says(recipe.done, config, to)
    try:
        if recipe.ready(config, to) is not None:
            return Completed(name="NothingToDo", message=f"{done}{form.enough()}")
    except GateError as stop:  # its run has failed with this before, and called an alert
        return Completed(name="NotPromoted", message=str(stop))
    with working(config.metrics), explained(), tags(config.name):
        load(recipe.flow).fn(*recipe.arguments(config, to))
    return Completed(message=f"{done}: {config.place}/{recipe.page}")


def next_model(config: RunConfig, iterations: int, last: int) -> int:
    """T of the next goal: that many iterations past the last complete one, but at most `last`."""
    with reading(config):
        return min(max(iterations_made(config), 0) + iterations, last)


DEPLOYED = {recipe.name: deployed(recipe) for recipe in RECIPES.values()}
"""The deployed flows by their recipe's name."""
globals().update({found.fn.__name__: found for found in DEPLOYED.values()})  # where Prefect looks for them
