"""Thought Preference Optimization: M_0 → M_1 → … → M_T (2410.10630, Figure 2).

One subflow per iteration, one task per stage. Each stage checks its manifest first and does nothing if it is complete,
so the same call starts a run, resumes it and adds iterations to it. A damaged stage is moved aside and made again.
"""

from prefect import flow

from flows.benchmarks import ask, ask_directly, open_benchmarks
from flows.prefect_ops import name_subflows_as_tasks
from tasks.benchmark_numbers import measure_benchmarks
from tasks.handles import (
    Candidate,
    JudgedSamples,
    SamplingSpec,
    baseline_of,
    direct_spec,
    measuring_spec,
    seed_model,
    training_spec,
    validation_spec,
)
from tasks.judge import judge
from tasks.load_prompts import load_prompts
from tasks.pair import pair
from tasks.report import IterationResult, Origin, report
from tasks.sample import sample
from tasks.synthesize import synthesize
from tasks.train import reference_of, train
from tasks.validate import validate
from tpo.config.run import RunConfig
from tpo.records import Artifact
from tpo.report.benchmarks import BENCHMARKS
from tpo.report.summary import REPORT, SUMMARY, Summary
from tpo.storage.current import keep_config, mark_finished
from tpo.storage.lock import only_writer
from tpo.storage.mirror import writing
from tpo.storage.store import mending


@flow(name="iterate", flow_run_name="{config.name} to M_{iterations}")
def iterate(config: RunConfig, iterations: int) -> Summary:
    """Brings a run to M_T, T = `iterations`, as the only writer of its folder."""
    with only_writer(config.root), writing(config):
        keep_config(config)
        summary = mending(lambda: bring_to(config, iterations))
        mark_finished(config, SUMMARY, REPORT, *([BENCHMARKS] if config.evaluation.benchmarks else []))
        return summary


def bring_to(config: RunConfig, iterations: int) -> Summary:
    """Makes and measures M_0 to M_T, T = `iterations`."""
    seed = seed_model(config)
    benchmarks = open_benchmarks(config)
    validation = load_prompts(config, "iter_0/prompts/validation", seed, [])
    test = load_prompts(config, "iter_0/prompts/test", seed, [validation])
    first = IterationResult(
        iteration=0,
        chosen=Candidate(seed, sample_and_judge(config, validation_spec(config, 0, 0), seed, validation)),
        test=sample_and_judge(config, measuring_spec(config, 0), seed, test),
        origin=None,
    )
    direct = sample_and_judge(config, direct_spec(config), seed, test, first.test)
    measured, plain = [first], ask_directly(config, benchmarks, seed)
    answered = [*plain, *ask(config, benchmarks, seed, 0, plain)]
    for t in range(1, iterations + 1):
        measured.append(iteration(config, t, seed, validation, test, measured))
        name_subflows_as_tasks()
        answered += ask(config, benchmarks, measured[-1].chosen.model, t, plain)
    found = measure_benchmarks(config, answered) if benchmarks else None
    return report(config, test, direct, measured, found)


@flow(name="iteration", flow_run_name="M_{t} of {config.name}")
def iteration(
    config: RunConfig, t: int, seed: Artifact, validation: Artifact, test: Artifact, measured: list[IterationResult]
) -> IterationResult:
    """Makes M_t from M_{t-1}: fresh prompts, K outputs each, scores, pairs, DPO, the best checkpoint, its test."""
    first, incumbent = measured[0], measured[-1].chosen
    earlier = [validation, test, *(m.origin.prompts for m in measured if m.origin)]
    fresh = synthesize if config.data.synthetic else load_prompts
    prompts = fresh(config, f"iter_{t}/prompts", seed, earlier)
    answers = sample_and_judge(config, training_spec(config, t), incumbent.model, prompts)
    pairs = pair(config, t, answers)
    reference = reference_of(config, seed, incumbent.model)
    checkpoints = train(config, f"iter_{t}", incumbent.model, reference, pairs)
    candidates = []
    for epoch, checkpoint in enumerate(checkpoints, 1):
        spec = validation_spec(config, t, epoch)
        candidates.append(
            Candidate(checkpoint, sample_and_judge(config, spec, checkpoint, validation, incumbent.validation))
        )
    chosen = validate(config, t, incumbent, candidates)
    tested = sample_and_judge(config, measuring_spec(config, t), chosen.model, test, first.test)
    return IterationResult(t, chosen, tested, Origin(prompts, answers, pairs))


def sample_and_judge(
    config: RunConfig, spec: SamplingSpec, model: Artifact, prompts: Artifact, against: JudgedSamples | None = None
) -> JudgedSamples:
    """Samples a model's outputs and judges them; a judge that compares compares them with `against`."""
    samples = sample(config, spec, model, prompts)
    return judge(config, spec, samples, prompts, baseline_of(spec, samples, against))
