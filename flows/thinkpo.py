"""ThinkPO (2502.13173): a model that has learned to reason by imitation learns to prefer reasoning at length.

In: a config with demonstrations of long reasoning. Out: a run folder in which three models stand, the base, the one
that was fine-tuned on the demonstrations and the one that DPO made of it, and how each measures up.

The stages are those of `iterate`: each looks at its manifest first, so the same call starts a run and resumes it.
"""

from pathlib import Path
from typing import Literal

from prefect import flow

from flows.iterate import ask
from tasks.demonstrate import demonstrate
from tasks.fine_tune import fine_tune
from tasks.lineage import keep_config, leaves, seed_model, test_ask, write_ask
from tasks.load_prompts import load_prompts
from tasks.measure import Step, measure
from tasks.pair_by_length import pair_by_length, pairs_from_file
from tasks.progress import show_progress
from tasks.sample import sample
from tasks.train import train
from tpo.config.recipes import PairFile, ThinkPo
from tpo.config.run import RunConfig
from tpo.console import look_on
from tpo.records import Artifact
from tpo.report.ladder import Ladder
from tpo.storage.lock import only_writer
from tpo.storage.mirror import writing
from tpo.storage.receipt import write_receipt
from tpo.storage.store import folder_artifact, mending

RECIPE = "ThinkPO"


@flow(name="thinkpo", flow_run_name="{config.name}")
def thinkpo(config: RunConfig) -> Ladder:
    """Brings a run of ThinkPO to its end; nobody else may write to its folder meanwhile."""
    look_on(show_progress)
    with only_writer(config.root), writing(config):
        keep_config(config)
        ladder = mending(lambda: make_models(config))
        write_receipt(config.root, leaves(config))
        return ladder


def make_models(config: RunConfig) -> Ladder:
    """Makes and measures the base, the model that was fine-tuned, and the one that prefers to think."""
    base = seed_model(config)
    test = load_prompts(config, "base/prompts/test", base, [])
    first = ask(config, test_ask(config, "base"), base, test)
    steps = [Step("base", first)]
    tuned, pairs = base, None
    if config.sft is not None:
        prompts = load_prompts(config, "sft/prompts", base, [test])
        given = demonstrate(config, "sft", base, prompts)
        tuned = fine_tune(config, "sft", base, given)[-1]
        tested = ask(config, test_ask(config, "sft"), tuned, test, first)
        steps.append(Step("SFT", tested, "base", {"demonstrations": given}))
        pairs = pair(config, base, tuned, prompts, given)
    pairs = pairs or pairs_from_file(config, "dpo", tuned)
    thinking = train(config, "dpo", tuned, tuned, pairs)[-1]
    tested = ask(config, test_ask(config, "dpo"), thinking, test, first)
    steps.append(Step("ThinkPO", tested, steps[-1].model, {"pairs": pairs}))
    return measure(config, RECIPE, test, steps)


def pair(config: RunConfig, base: Artifact, tuned: Artifact, prompts: Artifact, given: Artifact) -> Artifact | None:
    """Long outputs against short ones to the prompts of fine-tuning; None where pairs are from a file."""
    source = config.recipe_as(ThinkPo).source
    if isinstance(source, PairFile):
        return None

    def written(side: Literal["long", "short"], model: str) -> Artifact:
        writer = base if model == "seed" else folder_artifact(Path(model))
        samples = sample(config, write_ask(config, source, side), writer, prompts)
        return demonstrate(config, f"dpo/{side}", tuned, prompts, samples)

    long = given if source.long == "demonstrations" else written("long", source.long)
    return pair_by_length(config, "dpo", long, written("short", source.short))
