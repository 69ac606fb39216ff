"""DPO-augmented self-training (DPO-ST, 2407.18248, Algorithm 1): a model learns repeatedly from its own correct
answers.

It starts from a few demonstrations and many questions with known answers. SFT_t is always the base fine-tuned on all
demonstrations and all correct outputs so far; DPO_t, trained from SFT_{t-1}, only writes outputs for it.

Without the DPO step (`recipe.dpo`) this is classic self-training, in which SFT_{t-1} writes for SFT_t: the ablation
that `self_train_and_plain` adds. Each stage checks its manifest first, so the same call starts a run, resumes it and
adds iterations to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from prefect import flow

from flows.browser.export import write_browser
from flows.iterate import sample_and_judge
from flows.recipes import without_dpo
from tasks.demonstrate import demonstrate
from tasks.fine_tune import fine_tune
from tasks.handles import JudgedSamples, evaluation_spec, labelling_spec, pairing_spec, seed_model
from tasks.load_prompts import load_prompts
from tasks.measure import MeasuredModel, measure
from tasks.pair_by_answer import pair_by_answer
from tasks.pseudo_label import pseudo_label
from tasks.train import train
from tpo.config.recipes import SelfTrain
from tpo.config.run import RunConfig
from tpo.records import Artifact
from tpo.report.model_table import ABLATION, MODEL_TABLE, ModelTable, page_of
from tpo.storage.current import keep_config, mark_finished
from tpo.storage.lock import only_writer
from tpo.storage.mirror import writing
from tpo.storage.store import remaking_damaged


@dataclass(frozen=True)
class Made:
    """The result of a run."""

    test: Artifact
    """The test prompts."""
    steps: list[MeasuredModel]
    """Its models, in the order in which they were made."""
    table: ModelTable
    """Their test results."""


@flow(name="self_train", flow_run_name="{config.name} to SFT_{iterations}")
def self_train(config: RunConfig, iterations: int) -> ModelTable:
    """Brings a run to SFT_T, T = `iterations`, as the only writer of its folder."""
    return _run(config, iterations).table


@flow(name="self_train_and_plain", flow_run_name="{config.name} with and without DPO, to SFT_{iterations}")
def self_train_and_plain(config: RunConfig, iterations: int) -> ModelTable:
    """Brings a run and one without the DPO step to SFT_T, T = `iterations`, and compares the SFT_t of both."""
    ours, plain = (_run(each, iterations) for each in (config, without_dpo(config)))
    theirs = {step.model: step for step in plain.steps}
    steps = [MeasuredModel("base", ours.steps[0].test)]
    for step in ours.steps:
        if step.model.startswith("SFT_"):
            other = theirs[step.model]
            below = f"{step.model} without"
            steps += [
                MeasuredModel(below, other.test, None, other.rows),
                MeasuredModel(step.model, step.test, below, step.rows),
            ]
    with only_writer(config.root), writing(config):
        return remaking_damaged(
            lambda: measure(config, "DPO-ST and self-training without DPO", ours.test, steps, ABLATION)
        )


def _run(config: RunConfig, iterations: int) -> Made:
    with only_writer(config.root), writing(config):
        keep_config(config)
        made = remaking_damaged(lambda: make_models(config, iterations))
        write_browser(config)
        mark_finished(config, MODEL_TABLE, page_of(MODEL_TABLE))
        return made


def make_models(config: RunConfig, iterations: int) -> Made:
    """Makes and measures the base, SFT_0, and DPO_t and SFT_t for t = 1 … T."""
    recipe = config.recipe_as(SelfTrain)
    base = seed_model(config)
    test = load_prompts(config, "base/prompts/test", base, [])
    questions = load_prompts(config, "base/prompts/train", base, [test])
    first = sample_and_judge(config, evaluation_spec(config, "base"), base, test)
    steps = [MeasuredModel("base", first)]

    def measured(name: str, folder: str, model: Artifact, rows: Mapping[str, Artifact]) -> Artifact:
        below = next(step.model for step in reversed(steps) if not step.model.startswith("DPO_"))
        steps.append(
            MeasuredModel(
                name, sample_and_judge(config, evaluation_spec(config, folder), model, test, first), below, rows
            )
        )
        return model

    def fine_tuned(t: int, demonstrations: Artifact) -> Artifact:
        model = fine_tune(config, f"iter_{t}/sft", base, demonstrations)[-1]
        return measured(f"SFT_{t}", f"iter_{t}/sft", model, {"demonstrations": demonstrations})

    given = demonstrate(config, "iter_0/sft", base, questions, most=recipe.demonstrations)
    tuned = fine_tuned(0, given)
    to_pair, to_imitate = list[JudgedSamples](), list[JudgedSamples]()
    for t in range(1, iterations + 1):
        writer = tuned
        if recipe.dpo:
            to_pair.append(sample_and_judge(config, pairing_spec(config, t), tuned, questions))
            pairs = pair_by_answer(config, f"iter_{t}/dpo", given, to_pair)
            writer = train(config, f"iter_{t}/dpo", tuned, tuned, pairs)[-1]
            measured(f"DPO_{t}", f"iter_{t}/dpo", writer, {"pairs": pairs})
        to_imitate.append(sample_and_judge(config, labelling_spec(config, t), writer, questions))
        tuned = fine_tuned(t, pseudo_label(config, f"iter_{t}/sft", given, to_imitate))
    name = "DPO-ST" if recipe.dpo else "self-training"
    return Made(test, steps, measure(config, name, test, steps))
