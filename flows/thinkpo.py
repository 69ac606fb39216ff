"""ThinkPO (2502.13173): a model that has learned to reason by imitation learns to prefer long reasoning.

A run has three models, each with its test results: the base, the one fine-tuned on demonstrations of long reasoning,
and the one that DPO makes of it. Each stage checks its manifest first, so the same call starts a run and resumes it.
"""

from typing import Literal

from prefect import flow

from flows.browser.export import write_browser
from flows.iterate import sample_and_judge
from tasks.demonstrate import demonstrate
from tasks.fine_tune import fine_tune
from tasks.handles import evaluation_spec, seed_model, write_spec
from tasks.load_prompts import load_prompts
from tasks.measure import MeasuredModel, measure
from tasks.pair_by_length import pair_by_length, pairs_from_file
from tasks.sample import sample
from tasks.train import train
from tpo.config.hub import local_path
from tpo.config.recipes import PairFile, ThinkPo
from tpo.config.run import RunConfig
from tpo.records import Artifact
from tpo.report.model_table import MODEL_TABLE, ModelTable, page_of
from tpo.storage.current import keep_config, mark_finished
from tpo.storage.lock import only_writer
from tpo.storage.mirror import writing
from tpo.storage.store import folder_artifact, remaking_damaged

RECIPE = "ThinkPO"


@flow(name="thinkpo", flow_run_name="{config.name}")
def thinkpo(config: RunConfig) -> ModelTable:
    """Brings a run of ThinkPO to its end, as the only writer of its folder."""
    with only_writer(config.root), writing(config):
        keep_config(config)
        table = remaking_damaged(lambda: make_models(config))
        write_browser(config)
        mark_finished(config, MODEL_TABLE, page_of(MODEL_TABLE))
        return table


def make_models(config: RunConfig) -> ModelTable:
    """Makes and measures the base, the fine-tuned model, and the one that prefers to think."""
    base = seed_model(config)
    test = load_prompts(config, "base/prompts/test", base, [])
    first = sample_and_judge(config, evaluation_spec(config, "base"), base, test)
    steps = [MeasuredModel("base", first)]
    tuned, pairs = base, None
    if config.sft is not None:
        prompts = load_prompts(config, "sft/prompts", base, [test])
        given = demonstrate(config, "sft", base, prompts)
        tuned = fine_tune(config, "sft", base, given)[-1]
        tested = sample_and_judge(config, evaluation_spec(config, "sft"), tuned, test, first)
        steps.append(MeasuredModel("SFT", tested, "base", {"demonstrations": given}))
        pairs = pair(config, base, tuned, prompts, given)
    pairs = pairs or pairs_from_file(config, "dpo", tuned)
    thinking = train(config, "dpo", tuned, tuned, pairs)[-1]
    tested = sample_and_judge(config, evaluation_spec(config, "dpo"), thinking, test, first)
    steps.append(MeasuredModel("ThinkPO", tested, steps[-1].model, {"pairs": pairs}))
    return measure(config, RECIPE, test, steps)


def pair(config: RunConfig, base: Artifact, tuned: Artifact, prompts: Artifact, given: Artifact) -> Artifact | None:
    """Long and short outputs to the prompts of fine-tuning; None if pairs come from a file."""
    source = config.recipe_as(ThinkPo).source
    if isinstance(source, PairFile):
        return None

    def written(side: Literal["long", "short"], model: str) -> Artifact:
        writer = base if model == "seed" else folder_artifact(local_path(model))
        samples = sample(config, write_spec(config, source, side), writer, prompts)
        return demonstrate(config, f"dpo/{side}", tuned, prompts, samples)

    long = given if source.long == "demonstrations" else written("long", source.long)
    return pair_by_length(config, "dpo", long, written("short", source.short))
