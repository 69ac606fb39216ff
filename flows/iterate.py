"""Thought Preference Optimization: M_0 → M_1 → … → M_T (2410.10630, Figure 2).

One subflow per iteration, one task per stage. Each stage checks its manifest first and does nothing if it is complete,
so the same call starts a run, resumes it and adds iterations to it. A damaged stage is moved aside and remade.

With a gate (`[gate]`, docs/gate.md), the loop ends at the first M_t that isn't shown to be as good as M_{t-1}.

An iteration may have several rounds (`train.rounds`, semi-online DPO, 2506.21495). Each has its own stages in the
same order and starts from the round before; validation and test come once, after the last.
"""

from collections.abc import Sequence

from prefect import flow

from flows.attacks import attack_judge
from flows.benchmarks import ask, ask_directly, open_benchmarks
from flows.browser.export import write_browser
from flows.fine_grained import kinds_of_run, rate_prompts
from flows.gate import ask_second_judges, with_gate
from flows.prefect_ops import name_subflows_as_tasks
from tasks.benchmark_numbers import measure_benchmarks
from tasks.handles import (
    Candidate,
    JudgedSamples,
    SamplingSpec,
    baseline_of,
    direct_spec,
    measuring_spec,
    round_folder,
    seed_model,
    training_spec,
    validation_spec,
    validation_specs,
)
from tasks.judge import judge
from tasks.judge_ahead import judging_ahead
from tasks.load_prompts import load_prompts
from tasks.pair import pair
from tasks.replay import with_replay
from tasks.report import IterationResult, Round, report
from tasks.rounds import set_other_rounds_aside
from tasks.sample import sample, samples_stage
from tasks.sample_ahead import sampling_ahead
from tasks.synthesize import synthesize
from tasks.train import reference_of, train, train_stage
from tasks.training import state_after
from tasks.validate import validate
from tpo.config.run import RunConfig
from tpo.records import Artifact
from tpo.report.benchmarks import BENCHMARKS
from tpo.report.gate import check_gate
from tpo.report.summary import REPORT, SUMMARY, Summary
from tpo.storage.current import keep_config, mark_finished
from tpo.storage.lock import only_writer
from tpo.storage.mirror import writing
from tpo.storage.store import remaking_damaged


@flow(name="iterate", flow_run_name="{config.name} to M_{iterations}")
def iterate(config: RunConfig, iterations: int) -> Summary:
    """Brings a run to M_T, T = `iterations`, as the only writer of its folder."""
    with only_writer(config.root), writing(config):
        keep_config(config)
        summary = remaking_damaged(lambda: bring_to(config, iterations))
        write_browser(config)
        mark_finished(config, SUMMARY, REPORT, *([BENCHMARKS] if config.evaluation.benchmarks else []))
    check_gate(config, summary, iterations)
    return summary


def bring_to(config: RunConfig, iterations: int) -> Summary:
    """Makes and measures M_0 to M_T, T = `iterations`."""
    seed = seed_model(config)
    benchmarks = open_benchmarks(config)
    validation = load_prompts(config, "iter_0/prompts/validation", seed, [])
    test = load_prompts(config, "iter_0/prompts/test", seed, [validation])
    ratings = rate_prompts(config, test)
    chosen = Candidate(seed, sample_and_judge(config, validation_spec(config, 0, 0), seed, validation))
    first = IterationResult(
        iteration=0,
        chosen=chosen,
        test=sample_and_judge(config, measuring_spec(config, 0), seed, test),
        rounds=(),
        second=ask_second_judges(config, 0, chosen, validation),
    )
    direct = sample_and_judge(config, direct_spec(config), seed, test, first.test)
    measured, plain = [first], ask_directly(config, benchmarks, seed)
    answered = [*plain, *ask(config, benchmarks, seed, 0, plain)]
    for t in range(1, iterations + 1):
        measured.append(iteration(config, t, seed, validation, test, measured))
        name_subflows_as_tasks()
        answered += ask(config, benchmarks, measured[-1].chosen.model, t, plain)
        if config.gate.is_on:
            measured[-1] = with_gate(config, measured[-2], measured[-1], answered)
            if not measured[-1].promoted:
                break
    found = measure_benchmarks(config, answered) if benchmarks else None
    kinds = kinds_of_run(config, test, ratings, [each.test for each in measured], direct)
    return report(config, test, direct, measured, found, kinds)


@flow(name="iteration", flow_run_name="M_{t} of {config.name}")
def iteration(
    config: RunConfig, t: int, seed: Artifact, validation: Artifact, test: Artifact, measured: list[IterationResult]
) -> IterationResult:
    """Makes M_t from M_{t-1}: a round or several, the best checkpoint of the last one, its test."""
    set_other_rounds_aside(config, t)
    first, incumbent = measured[0], measured[-1].chosen
    earlier, rounds = [each for m in measured for each in m.rounds], list[Round]()
    for number in range(1, config.train.rounds + 1):
        taken = [validation, test, *(each.prompts for each in (*earlier, *rounds))]
        rounds.append(make_round(config, t, number, seed, incumbent.model, taken, earlier, rounds[-1:], validation))
    epochs = [*zip(validation_specs(config, t), rounds[-1].checkpoints, strict=False)]
    validated = sample_and_judge_each(config, epochs, validation, incumbent.validation)
    candidates = [Candidate(checkpoint, answers) for (_, checkpoint), answers in zip(epochs, validated, strict=True)]
    chosen = validate(config, t, incumbent, candidates)
    tested = sample_and_judge(config, measuring_spec(config, t), chosen.model, test, first.test)
    return IterationResult(t, chosen, tested, rounds, ask_second_judges(config, t, chosen, validation, measured[-1]))


def make_round(
    config: RunConfig,
    t: int,
    number: int,
    seed: Artifact,
    model: Artifact,
    taken: list[Artifact],
    earlier: list[Round],
    before: list[Round],
    validation: Artifact,
) -> Round:
    """Fresh prompts, K outputs each, scores, pairs, DPO: round `number` on the way from `model`, M_{t-1}, to M_t.

    The outputs are those of the newest checkpoint, which is from the round `before`, if there is one. Prompts are fresh
    if they aren't `taken`; pairs of `earlier` iterations are replayed if the config says so.
    """
    folder, newest = round_folder(config, t, number), before[-1].checkpoints[-1] if before else None
    fresh = synthesize if config.data.synthetic else load_prompts
    prompts = fresh(config, f"{folder}/prompts", seed, taken)
    answers = sample_and_judge(config, training_spec(config, t, number), newest or model, prompts)
    attacks = attack_judge(config, t, number, prompts, answers)
    pairs = pair(config, t, answers, number)
    trained_on = with_replay(config, t, number, pairs, [each.pairs for each in earlier])
    reference = reference_of(config, seed, model)
    state = state_after(newest) if newest else None
    stage = train_stage(config, folder, model, reference, trained_on, number, state)
    validated = validation_specs(config, t) if number == config.train.rounds else []
    with sampling_ahead(config, stage, validated, validation):
        checkpoints = train(config, folder, model, reference, trained_on, number, state)
    return Round(prompts, answers, pairs, trained_on, checkpoints, attacks)


def sample_and_judge(
    config: RunConfig, spec: SamplingSpec, model: Artifact, prompts: Artifact, against: JudgedSamples | None = None
) -> JudgedSamples:
    """Samples a model's outputs and judges them; a judge that compares compares them with `against`."""
    return sample_and_judge_each(config, [(spec, model)], prompts, against)[0]


def sample_and_judge_each(
    config: RunConfig,
    models: Sequence[tuple[SamplingSpec, Artifact]],
    prompts: Artifact,
    against: JudgedSamples | None = None,
) -> list[JudgedSamples]:
    """Samples several models, then judges all: engines that don't fit beside a judge's make way once, not each time."""
    sampled = list[tuple[SamplingSpec, Artifact]]()
    for spec, model in models:
        with judging_ahead(config, spec, samples_stage(config, spec, model, prompts), prompts, against):
            sampled.append((spec, sample(config, spec, model, prompts)))
    return [judge(config, spec, answers, prompts, baseline_of(spec, answers, against)) for spec, answers in sampled]
