"""Claims about plans: every profile has one, its arithmetic is right, and what can't work is refused with a remedy."""

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.cli.plan import cluster_of, large, models_of, plan_run, print_plan, to_json
from tasks.spending import judging_meter
from tests.rows import a_config, a_model
from tpo.config.hub import addresses_in
from tpo.config.judges import PairwiseJudge, RubricJudge
from tpo.config.load import load_config
from tpo.config.resources import BudgetConfig
from tpo.config.run import RunConfig
from tpo.errors import InputError
from tpo.models.folder import check_model_folder
from tpo.models.shape import PUBLISHED, find_model
from tpo.planning.gpu_memory import engine_memory, trainings_memory
from tpo.planning.needs import GIB
from tpo.planning.plan import Plan, make_plan
from tpo.planning.throughput import PastRun, decode_rate, hardware_of, training_rate
from tpo.planning.workload import Amount, Kind, Lengths, calls_of, workload
from tpo.storage.ledger import LEDGER, Entry, Meter, Worker

ROOT = Path(__file__).parents[2]
PROFILES = {path.stem: path for path in sorted((ROOT / "deploy" / "profiles").glob("*.toml"))}
LLAMA_8B = PUBLISHED["Meta-Llama-3-8B-Instruct"]
SMALL = {
    "model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16,
    "vocab_size": 10, "max_position_embeddings": 512,
}  # fmt: skip


def profile(name: str, *overrides: str) -> RunConfig:
    return load_config(PROFILES[name], overrides)


def planned(name: str, *overrides: str, to: int = 4) -> Plan:
    return plan_run(profile(name, *overrides), to)


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_shipped_profile_loads_plans_and_fits_the_machines_it_names(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    if name == "self-train-t5-large":
        with pytest.raises(InputError, match=r"t5-large is an encoder-decoder model.*use a causal language model"):
            planned(name)
        return
    plan = planned(name)
    assert plan.problems == []
    assert plan.seconds > 0 and plan.tokens > 0
    assert json.loads(to_json(plan))["tokens"] == plan.tokens
    unasked = [note for note in plan.notes if note.startswith("the hub could not be asked about hf://")]
    assert len(unasked) == bool([*addresses_in(profile(name))])
    print_plan(plan)
    assert capsys.readouterr().out.rstrip().endswith("It fits.")


def test_ratings_are_planned_once_for_all_models_and_only_for_prompts_without_kinds(tmp_path: Path):
    endpoint = {"base_url": "http://x/v1", "output_price": 10.0}
    rated = {"model": "m", "endpoint": endpoint}
    benchmarks = [{"kind": "alpaca_eval", "path": "a.json"}, {"kind": "gsm8k", "path": "g.jsonl"}]
    evaluation = {"judge": {"kind": "armorm"}, "fine_grained": rated, "benchmarks": benchmarks}
    source = {"kind": "file", "path": tmp_path / "prompts.jsonl"}
    for columns, tested in (({}, 2), ({"category_column": "c", "difficulty_column": "d"}, 0)):
        data = {"source": {**source, **columns}, "per_iteration": 2, "validation": 2, "test": 2}
        config = a_config(tmp_path, data=data, evaluation=evaluation)
        plan = make_plan(config, 3, models=models_of(config), cluster=cluster_of(config), past=[])
        (stage,) = [stage for stage in plan.stages if stage.work.kind is Kind.RATE]
        assert (stage.work.prompts, stage.work.expected.answers) == (805 + tested, 805 + tested)
        assert stage.engines.who.startswith("m at http://x/v1")
        assert stage.cost == pytest.approx(stage.work.expected.tokens_out * 10 / 1e6)


def test_comparisons_with_m_0_direct_by_kind_are_planned_if_the_judge_compares(tmp_path: Path):
    rounds = []
    for kind in ("pairwise", "armorm"):
        for fine_grained in (None, {"model": "m", "endpoint": {"base_url": "http://x/v1"}}):
            config = a_config(tmp_path, evaluation={"judge": {"kind": kind}, "fine_grained": fine_grained})
            works = workload(config, 3, Lengths(10, 10, 5, 10, ""))
            rounds.append(next(work.rounds for work in works if work.kind is Kind.TEST_JUDGE))
    assert rounds == [4, 8, 5, 5]


def test_a_rater_on_our_engines_takes_memory(tmp_path: Path):
    rater = {"model": str(a_model(tmp_path / "rater")), "max_tokens": 512}
    config = a_config(tmp_path, evaluation={"fine_grained": rater})
    plan = make_plan(config, 1, models=models_of(config), cluster=cluster_of(config), past=[])
    assert "judge_engine (rater)" in plan.memory
    assert [stage.engines.who for stage in plan.stages if stage.work.kind is Kind.RATE] == ["1 vLLM engine: rater"]


@pytest.mark.parametrize(
    ("name", "parameters", "kv_kib"),
    [
        ("Meta-Llama-3-8B-Instruct", 8_030_261_248, 128),
        ("Self-taught-evaluator-llama3.1-70B", 70_553_706_496, 320),
        ("ArmoRM-Llama3-8B-v0.1", 7_504_928_768, 128),
        ("Llama-3.2-1B-Instruct", 1_235_814_400, 32),
        ("SmolLM2-135M-Instruct", 134_515_008, 22.5),
        ("Qwen2.5-0.5B-Instruct", 494_032_768, 12),
        ("Qwen2.5-1.5B-Instruct", 1_543_714_304, 28),
        ("Qwen2.5-3B-Instruct", 3_085_938_688, 36),
        ("Qwen2.5-7B-Instruct", 7_615_616_512, 56),
        ("Qwen2.5-14B-Instruct", 14_770_033_664, 192),
    ],
)
def test_shapes_have_the_published_number_of_parameters(name: str, parameters: int, kv_kib: int):
    assert PUBLISHED[name].parameters == parameters
    assert PUBLISHED[name].kv_bytes(2) == kv_kib * 1024


def test_a_model_splits_over_divisors_of_its_heads_and_width():
    assert LLAMA_8B.degrees == [1, 2, 4, 8, 16, 32]
    assert PUBLISHED["Qwen2.5-1.5B-Instruct"].degrees == [1, 2, 4], "8,960 is not a multiple of 6 or 12"
    assert replace(LLAMA_8B, kv_heads=6).degrees == [1, 2], "6 key/value heads are neither split nor copied over 4"


def test_adapters_of_rank_16_on_llama_3_8b_have_42_million_parameters():
    assert LLAMA_8B.lora_parameters(16) == 41_943_040


def test_a_shape_is_read_from_the_models_folder_if_it_exists(tmp_path: Path):
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
        "max_position_embeddings": 8192,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = find_model(tmp_path)
    assert (found.shape, found.is_there) == (LLAMA_8B, True)
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert find_model(tmp_path).shape.parameters == LLAMA_8B.parameters - 128256 * 4096
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))
    with pytest.raises(InputError, match="hidden_size = 'wide', expected a whole number"):
        find_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "head"),
    [
        ({}, True),
        ({"tie_word_embeddings": True}, False),
        ({"architectures": ["LlamaForSequenceClassification"]}, False),
        ({"architectures": ["GemmaForCausalLM"], "model_type": "gemma"}, False),
        ({"architectures": ["GemmaForCausalLM"], "model_type": "gemma", "tie_word_embeddings": False}, True),
        ({"architectures": ["Mistral3ForConditionalGeneration"], "text_config": SMALL}, True),
    ],
    ids=["own", "tied", "reward model", "gemma", "gemma, untied", "within a model that sees"],
)
def test_an_output_matrix_is_counted_if_there_is_one(tmp_path: Path, changes: dict[str, Any], head: bool):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **SMALL, **changes}))
    assert find_model(tmp_path).shape.head is head


def test_a_mixture_of_experts_is_refused_rather_than_counted_as_one_expert(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "num_local_experts": 8}))
    with pytest.raises(InputError, match="num_local_experts = 8: a plan cannot estimate memory and time of"):
        find_model(tmp_path)


def test_a_model_that_is_neither_here_nor_published_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"nobodys-model has no config.json.*Meta-Llama-3-8B-Instruct"):
        find_model(tmp_path / "nobodys-model")


def test_an_engines_cache_gets_the_memory_that_its_weights_leave():
    engine = profile("llama3-8b-armorm").engine
    held = engine_memory(Kind.SAMPLE, LLAMA_8B, engine, context=3072, gpu_bytes=80 * GIB)
    assert held.parts["weights"] == 2 * 8_030_261_248
    assert held.there == int(0.9 * 80 * GIB)
    assert held.cache == held.there - held.total
    assert held.sequences == held.cache // (128 * 1024 * 3072)


def test_tensor_parallelism_divides_weights_and_cache():
    shape = PUBLISHED["Self-taught-evaluator-llama3.1-70B"]
    one, four = (
        engine_memory(
            Kind.JUDGE,
            shape,
            profile("llama3-8b-ste", f"judge_engine.tensor_parallel={n}").judge_engine,
            context=8192,
            gpu_bytes=200 * GIB,
        )
        for n in (1, 4)
    )
    assert four.parts["weights"] == one.parts["weights"] // 4
    assert four.sequences == four.cache // (80 * 1024 * 8192)


def test_training_takes_16_bytes_per_parameter_spread_over_its_workers():
    (held,) = trainings_memory(profile("llama3-8b-armorm"), LLAMA_8B, gpu_bytes=80 * GIB)
    parts = held.parts
    assert parts["weights"] + parts["gradients"] + parts["optimizer"] == 16 * 8_030_261_248 // 8
    (alone,) = trainings_memory(profile("llama3-8b-armorm", "trainer.strategy=ddp"), LLAMA_8B, gpu_bytes=80 * GIB)
    assert alone.parts["weights"] == 4 * 8_030_261_248 and not alone.fits


def test_under_adapters_the_base_weights_stay_in_16_bits_without_gradients():
    shape = PUBLISHED["Qwen2.5-1.5B-Instruct"]
    (held,) = trainings_memory(profile("single-gpu-lora"), shape, gpu_bytes=24 * GIB)
    parts = held.parts
    assert parts["frozen weights"] == 2 * shape.parameters
    assert parts["optimizer"] == 8 * shape.lora_parameters(16)


def test_gradient_checkpointing_spares_activations():
    plain, spared = (
        trainings_memory(
            profile("llama3-8b-armorm", f"train.gradient_checkpointing={value}"), LLAMA_8B, gpu_bytes=80 * GIB
        )[0].parts["activations"]
        for value in ("false", "true")
    )
    assert plain > 5 * spared


@pytest.mark.parametrize(
    ("changes", "calls", "most"),
    [
        ({"tournament": "all_pairs"}, 56, 56),
        ({"tournament": "adaptive"}, 30, 56),
        ({"tournament": "adaptive", "mode": "probability"}, 16, 24),
    ],
)
def test_comparisons_of_8_outputs(changes: dict[str, Any], calls: float, most: int):
    found = calls_of(PairwiseJudge.model_validate(changes), 8)
    assert (found.expected, found.most) == (calls, most)


def test_amounts_are_those_of_the_paper():
    stages = {str(stage.work.kind): stage.work for stage in planned("llama3-8b-ste", to=4).stages}
    assert (stages["sample"].prompts, stages["sample"].expected.answers) == (4 * 5000, 4 * 40_000)
    assert stages["sample"].expected.tokens_out == 160_000 * 1000
    assert stages["sample"].most.tokens_out == 160_000 * 2048
    assert stages["judge"].expected.answers == 4 * 5000 * 56
    assert stages["train"].expected.answers == 4 * 5000 * 10
    assert stages["train"].expected.tokens_in == 200_000 * 2 * (260 + 1000)
    assert stages["validation sample"].prompts == 41 * 1500
    assert stages["validation judge"].expected.answers == 40 * 1500 * 2
    assert stages["test sample"].prompts == 6 * 805


def test_rounds_start_engines_more_often_for_the_same_work():
    one, four = (planned("llama3-8b-armorm", f"train.rounds={rounds}", to=2) for rounds in (1, 4))
    for kind, times in {"sample": 4, "judge": 4, "train": 4, "validation sample": 1, "test sample": 1}.items():
        before, after = (next(s for s in plan.stages if s.work.kind == kind) for plan in (one, four))
        assert after.work.rounds == times * before.work.rounds, kind
        assert after.work.expected == before.work.expected, kind
        assert (after.start_seconds > before.start_seconds) is (times > 1), kind
    assert four.seconds > one.seconds


def test_replayed_pairs_are_trained_on_from_the_second_iteration_on():
    plain, replayed = (
        next(s.work for s in planned("laptop", f"pair.replay_share={share}", to=3).stages if s.work.kind == "train")
        for share in (0, 0.2)
    )
    assert plain.prompts == 3 * 400 and replayed.prompts == 3 * 400 + 2 * 100


def test_with_no_iterations_only_the_seed_is_measured():
    kinds = {stage.work.kind for stage in planned("laptop", to=0).stages}
    assert kinds == {"validation sample", "validation judge", "test sample", "test judge"}


def test_planning_more_iterations_takes_no_longer():
    assert planned("laptop", to=10**12).disk.checkpoints == 3 * 4 * 883_840 * 10**12


def test_a_profiles_figures_override_guesses_and_determine_the_hours():
    guessed = planned("llama3-8b-armorm")
    given = planned("llama3-8b-armorm", "throughput.sample=1000", "prices.gpu_hour=2.5")
    stage = given.stages[0]
    assert [guessed.stages[0].rate.is_guess, stage.rate.source] == [True, "profile"]  # type: ignore[union-attr]
    assert stage.seconds == pytest.approx(160e6 / 8000 + stage.start_seconds)
    assert stage.cost == pytest.approx(stage.seconds / 3600 * 8 * 2.5)
    assert given.cost == pytest.approx(given.gpu_hours * 2.5)


def test_a_server_costs_what_its_tokens_cost():
    stage = next(stage for stage in planned("api-judge").stages if stage.work.kind == "judge")
    assert (stage.engines.device, stage.engines.gpus) == ("api", 0)
    assert stage.cost == pytest.approx(0.9 * stage.work.expected.tokens / 1e6)


def past_run(root: Path, work: str, *, tokens: int, seconds: float, start: float, answers: int = 100) -> None:
    clock = [0.0]
    worker = Worker("cpu", 1, 883_840)
    with Meter(root, work, worker, BudgetConfig(), clock=lambda: clock[0]) as meter:
        clock[0] += start
        meter.started()
        clock[0] += seconds
        meter.book(prompts=answers // 2, answers=answers, tokens_in=10 * answers // 2, tokens_out=tokens)


def test_a_past_run_refines_the_forecast_and_the_latest_one_counts(tmp_path: Path):
    config = load_config(PROFILES["laptop"], [f"folder={tmp_path}"])
    for i, (name, seconds) in enumerate((("old", 100.0), ("new", 50.0))):
        (tmp_path / name).mkdir()
        past_run(tmp_path / name, "iter_1/samples", tokens=5000, seconds=seconds, start=30.0)
        os.utime(tmp_path / name / LEDGER, (1000 + i, 1000 + i))
    plan = plan_run(config, 3)
    stage = plan.stages[0]
    assert stage.rate is not None
    assert (stage.rate.source, stage.rate.tokens_per_second) == ("past run new", 100.0)
    assert (plan.lengths.output, plan.lengths.prompt, plan.lengths.source) == (50, 10, "past run new")
    assert stage.work.expected.tokens_out == 9600 * 50
    assert stage.seconds == pytest.approx(9600 * 50 / 100 + 30), "on CPUs engines are started once"


def test_a_judge_with_a_rubric_is_asked_once_for_each_sample_and_shown_one_response():
    settings: dict[str, object] = {"kind": "rubric", "model": "m", "endpoint": {"base_url": "http://one/v1"}}
    lengths, amounts = Lengths(10, 40, 30, 200, ""), dict[str, Amount]()
    given: dict[str, dict[str, object]] = {
        "one": {},
        "four": {"samples": 4, "temperature": 1.0},
        "expected": {"expected_score": True},
    }
    for name, changes in given.items():
        config = load_config(PROFILES["laptop"]).model_copy(
            update={"judge": RubricJudge.model_validate(settings | changes)}
        )
        (work,) = [work for work in workload(config, 1, lengths) if work.kind is Kind.JUDGE]
        amounts[name] = work.expected
    prompts = load_config(PROFILES["laptop"]).data.count
    assert amounts["one"].answers == prompts * 8 and amounts["four"].answers == prompts * 32
    assert amounts["one"].tokens_out == prompts * 8 * 200 and amounts["expected"].tokens_out == prompts * 8
    pair = workload(load_config(PROFILES["laptop"], ["judge={kind='pairwise'}"]), 1, lengths)
    (compared,) = [work.expected for work in pair if work.kind is Kind.JUDGE]
    assert amounts["one"].tokens_in / amounts["one"].answers == pytest.approx(
        compared.tokens_in / compared.answers - lengths.response, abs=1
    )


def test_a_reward_model_behind_a_server_is_planned_by_its_responses():
    judge = "judge={ kind = 'reward_server', model = 'm', endpoint = { base_url = 'http://one', input_price = 2.0 } }"
    plan = plan_run(load_config(PROFILES["laptop"], [judge]), 1)
    (stage,) = [stage for stage in plan.stages if stage.work.kind is Kind.JUDGE]
    assert stage.engines.device == "api" and "m at http://one" in stage.engines.who
    assert stage.work.expected.answers == 8 * load_config(PROFILES["laptop"]).data.count
    assert stage.work.expected.tokens_out == 0
    assert stage.cost == pytest.approx(2 * stage.work.expected.tokens_in / 1e6)


def test_an_ensemble_is_planned_member_by_member():
    endpoint = "{ base_url = 'http://one/v1', input_price = 1.0 }"
    members = (
        "{ name = 'rm', judge = { kind = 'armorm' }, unit = 1.0 }",
        f"{{ name = 'paid', judge = {{ kind = 'rubric', model = 'm', endpoint = {endpoint} }}, unit = 3.0 }}",
        "{ name = 'duel', judge = { kind = 'pairwise' }, unit = 1.0 }",
    )
    found = {}
    for escalates in ("", ", escalate_below = 1.0"):
        judge = f"judge={{ kind = 'ensemble', members = [{', '.join(members)}]{escalates} }}"
        plan = plan_run(load_config(PROFILES["laptop"], [judge]), 1)
        found[escalates] = {stage.work.member: stage for stage in plan.stages if stage.work.kind is Kind.JUDGE}
        validated = [stage.work.member for stage in plan.stages if stage.work.kind is Kind.VALIDATION_JUDGE]
        assert validated == [0, 1], "a judge that compares reads no single response"
    every, close = found.values()
    assert [stage.engines.device for stage in every.values()] == ["cpu", "api", "cpu"]
    assert "reward model" in every[0].engines.who and "m at http://one/v1" in every[1].engines.who
    assert every[0].work.expected == close[0].work.expected and every[1].cost > 0
    assert close[1].work.expected.answers == every[1].work.expected.answers / 2
    assert close[1].work.most == every[1].work.most


@pytest.mark.parametrize("judge", ["armorm", "pairwise"])
def test_a_past_runs_entries_for_a_judge_are_found_again(tmp_path: Path, judge: str):
    config = load_config(PROFILES["laptop"], [f"judge={{kind='{judge}'}}", f"folder={tmp_path}"])
    config.root.mkdir()
    with judging_meter(config, "iter_1/judgments", config.judge) as meter:
        time.sleep(0.01)
        meter.book(prompts=100, answers=800, tokens_in=1000, tokens_out=1000)
    (stage,) = [stage for stage in plan_run(config, 1).stages if stage.work.kind == "judge"]
    assert stage.rate is not None and stage.rate.source == "past run laptop"


def test_a_past_run_with_another_server_or_served_model_refines_nothing(tmp_path: Path):
    config = load_config(PROFILES["api-judge"], [f"folder={tmp_path}"])
    config.root.mkdir()
    with judging_meter(config, "iter_1/judgments", config.judge) as meter:
        time.sleep(0.01)
        meter.book(prompts=100, answers=800, tokens_in=1000, tokens_out=1000)
    for changes, known in (
        ([], "past run"),
        (["judge.model=x"], "guess"),
        (["judge.endpoint.base_url=http://b/v1"], "guess"),
    ):
        other = load_config(PROFILES["api-judge"], [f"folder={tmp_path}", *changes])
        (stage,) = [stage for stage in plan_run(other, 1).stages if stage.work.kind == "judge"]
        assert stage.rate is not None and stage.rate.source.startswith(known), changes


@pytest.mark.parametrize(
    "other",
    [{"device": "H100"}, {"parameters": 900_000_000}, {"stage": "iter_1/test/samples"}, {"answers": 10}],
    ids=["device", "size", "work", "too_little"],
)
def test_a_past_run_of_something_else_refines_nothing(tmp_path: Path, other: dict[str, Any]):
    config = load_config(PROFILES["laptop"], [f"folder={tmp_path}"])
    entry = {"stage": "iter_1/samples", "device": "cpu", "devices": 1, "parameters": 883_840, "answers": 100}
    past = [PastRun("other", [Entry(**{**entry, "tokens_out": 100, "seconds": 1.0, **other})])]
    plan = make_plan(config, 1, models=models_of(config), cluster=cluster_of(config), past=past)
    assert plan.stages[0].rate is not None and plan.stages[0].rate.is_guess


SHORT = "recipe.source.short_sample.max_new_tokens"
SLOW = "train: at start-up the workers hold {:,.1f} GiB of a node's host memory"


@pytest.mark.parametrize(
    ("name", "overrides", "pattern"),
    [
        (
            "llama3-8b-armorm",
            ["cluster.gpus=4"],
            r"^engine needs 8 GPUs, but there are 4 \(as described in \[cluster\]",
        ),
        ("llama3-8b-armorm", ["trainer.strategy=ddp"], r"^train needs 155.0 GiB of a GPU.*: set trainer.strategy = "),
        ("llama3-8b-ste", ["judge_engine.tensor_parallel=1"], r"^judge needs .*: raise judge_engine.tensor_parallel"),
        (
            "llama3-8b-ste",
            ["judge_engine.tensor_parallel=3"],
            r"the 64 attention heads .*: choose 1, 2, 4, 8, 16, 32 or",
        ),
        ("thinkpo-qwen2.5-3b", ["engine.tensor_parallel=8", "engine.count=1"], r"28 .* of Qwen2.5-Math-7B-Instruct"),
        ("thinkpo-reproduced-7b", [f"{SHORT}=3073"], rf"\+ {SHORT} is 4097, but Qwen2.5-Math-7B-Instruct has 4096 tok"),
        ("llama3-8b-armorm", ["data.max_prompt_tokens=7000", "train.max_tokens=10000"], r"has 8192 tokens of context"),
        (
            "laptop",
            ["trainer.workers=4096", "train.batch_size=4096", "train.micro_batch_size=1"],
            r"CPUs here, and each",
        ),
        ("laptop", ["engine.kv_cache_gib=100000"], r"^this machine's memory must hold 100,000.0 GiB at once"),
        (
            "laptop",
            ["engine.device=gpu", "cluster.gpus=8"],
            r"their memory size is not known here: set cluster.g",
        ),
    ],
)
def test_everything_that_cannot_work_is_a_problem_with_a_remedy(name: str, overrides: list[str], pattern: str):
    plan = planned(name, *overrides)
    assert len([problem for problem in plan.problems if re.search(pattern, problem)]) == 1, plan.problems
    assert not plan.fits


@pytest.mark.parametrize(
    ("name", "overrides", "beginning"),
    [
        ("llama3-8b-armorm", [], SLOW.format(4 * 8_030_261_248 / GIB)),
        ("single-gpu-lora", [], SLOW.format(2 * 1_543_714_304 / GIB)),
        ("llama3-8b-armorm", ["budget.hours=1"], "budget.hours is 1.0, but"),
        ("llama3-8b-armorm", ["budget.tokens=1000"], "budget.tokens is 1,000, but"),
        ("thinkpo-reproduced-7b", [f"{SHORT}=3072"], SLOW.format(4 * 7_615_616_512 / GIB)),
    ],
)
def test_doubts_that_do_not_justify_a_refusal_are_noted(name: str, overrides: list[str], beginning: str):
    plan = planned(name, *overrides)
    assert any(note.startswith(beginning) for note in plan.notes), plan.notes
    assert plan.problems == []


@pytest.mark.parametrize(
    ("overrides", "workers"), [([], 8), (["cluster.gpus=4", "cluster.nodes=2"], 4)], ids=["one node", "two nodes"]
)
def test_without_fsdp_every_worker_of_a_node_loads_the_whole_model(overrides: list[str], workers: int):
    notes = planned("llama3-8b-armorm", "trainer.strategy=ddp", *overrides).notes
    assert any(note.startswith(SLOW.format(workers * 4 * 8_030_261_248 / GIB)) for note in notes)


@pytest.mark.parametrize(
    ("nodes", "gpus", "each", "places"),
    [
        (1, 8, 4, ["node 0: GPUs 0-3 | GPUs 4-7"]),
        (2, 4, 4, ["nodes 0-1: GPUs 0-3"]),
        (2, 4, 2, ["node 0: GPUs 0-1 | GPUs 2-3"]),
        (4, 2, 4, ["nodes 0-3: GPUs 0-1"]),
    ],
)
def test_engines_are_placed_node_by_node(nodes: int, gpus: int, each: int, places: list[str]):
    plan = planned(
        "llama3-8b-ste", f"cluster.nodes={nodes}", f"cluster.gpus={gpus}", f"judge_engine.tensor_parallel={each}"
    )
    judge = next(engines for engines in plan.engines if engines.work == "judge")
    assert list(judge.places) == places
    assert any("spans nodes" in note for note in plan.notes) == (each > gpus)


@pytest.mark.parametrize(
    ("name", "disk_gib", "fits", "last"),
    [
        ("laptop", 0.01, False, "or lower --to (ITER) or train.epochs"),
        ("laptop", 0.08, True, "It may not fit: it writes up to 85.6 MiB, but the disk has 81.9 MiB free."),
        ("laptop", 10, True, "It fits."),
        ("llama3-8b-armorm", 10, True, "GiB free (this machine's has 10.0 GiB): It fits."),
        ("llama3-8b-armorm", 10_000, True, "It fits."),
    ],
)
def test_a_disk_here_must_hold_the_checkpoints_and_the_need_for_one_elsewhere_is_noted(
    name: str, disk_gib: float, fits: bool, last: str, capsys: pytest.CaptureFixture[str]
):
    config = profile(name)
    cluster = replace(cluster_of(config), disk_bytes=int(disk_gib * GIB))
    plan = make_plan(config, 3, models=models_of(config), cluster=cluster, past=[])
    print_plan(plan)
    printed = " ".join(capsys.readouterr().out.split())
    assert (plan.fits, printed.endswith(last)) == (fits, True), printed[-300:]
    sentences = [sentence for sentence in (*plan.notes, *plan.problems) if " of disk (" in sentence]
    assert len(sentences) == (last != "It fits.")


def test_past_spending_is_listed_separately(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = load_config(PROFILES["laptop"], [f"folder={tmp_path}"])
    config.root.mkdir()
    past_run(config.root, "iter_1/samples", tokens=12_345, seconds=10, start=1)
    plan = plan_run(config, 3)
    print_plan(plan)
    assert [line.tokens_out for line in plan.spent] == [12_345, 12_345]
    assert "Spent so far" in capsys.readouterr().out


def test_a_run_on_any_model_folder_is_planned_from_its_config_json(tmp_path: Path):
    config = a_config(tmp_path)
    (tmp_path / "model" / "config.json").write_text(json.dumps(SMALL))
    assert plan_run(config, 1).problems == []


def test_guesses_grow_with_the_hardware_and_shrink_with_the_model():
    def decode(model: str, gpu: str) -> float:
        return decode_rate(PUBLISHED[model], hardware_of(gpu, 1), devices=1, sequences=64, context=1000, number_bytes=2)

    small, large_ = "Llama-3.2-1B-Instruct", "Meta-Llama-3-8B-Instruct"
    assert decode(small, "NVIDIA H100 80GB HBM3") > decode(large_, "NVIDIA H100 80GB HBM3") > decode(large_, "L4")
    train = [
        training_rate(LLAMA_8B, hardware_of("H100", 1), checkpointing=checkpointing, epochs=10, frozen=frozen)
        for checkpointing, frozen in ((True, False), (False, False), (False, True))
    ]
    assert train == sorted(train)


@pytest.mark.parametrize(("count", "shown"), [(0, "0"), (999, "999"), (1500, "1.5 k"), (2_000_000, "2.0 M")])
def test_counts_are_human_readable(count: int, shown: str):
    assert large(count) == shown


def test_prompts_that_a_model_writes_are_planned_for():
    writes = "data.synthetic={}"
    plain, own = planned("llama3-8b-armorm", to=2), planned("llama3-8b-armorm", writes, to=2)
    assert [stage.work.kind for stage in own.stages][1:] == [stage.work.kind for stage in plain.stages]
    generate = own.stages[0]
    assert (generate.work.kind, generate.work.rounds, generate.work.prompts) == ("generate", 2, 10_000)
    assert generate.engines.who == own.stages[1].engines.who
    assert generate.seconds > 0 and generate.work.expected.tokens < generate.work.most.tokens
    assert own.problems == []


def test_a_server_that_writes_prompts_is_costed_at_its_prices():
    endpoint = '{base_url = "http://here/v1", input_price = 2, output_price = 8, concurrency = 4}'
    plan = planned("llama3-8b-armorm", f'data.synthetic={{model = "m", endpoint = {endpoint}}}', to=2)
    generate = plan.stages[0]
    assert "m at http://here/v1, 4 calls at once" in generate.engines.who
    expected = generate.work.expected
    assert generate.cost == pytest.approx((expected.tokens_in * 2 + expected.tokens_out * 8) / 1e6)
    assert plan.models.generator is None


def test_a_separate_generator_must_fit_alongside_the_other_models(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "architectures": ["LlamaForCausalLM"]}))
    settings = f'{{model = "{tmp_path}", max_prompt_tokens = 500, max_new_tokens = 13}}'
    plan = planned("llama3-8b-armorm", f"data.synthetic={settings}")
    assert any("data.synthetic.max_prompt_tokens + max_new_tokens is 513" in problem for problem in plan.problems)
    assert "generate" in [held.work for held in plan.gpu_memory]


def test_a_model_with_an_encoder_is_refused_from_its_config_json(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"is_encoder_decoder": True}))
    for refuses in (find_model, check_model_folder):
        with pytest.raises(InputError, match="is an encoder-decoder model"):
            refuses(tmp_path)


def amounts(name: str, *overrides: str, to: int = 3) -> dict[str, tuple[int, int, int]]:
    """Rounds, prompts and answers by kind of work."""
    stages = planned(name, *overrides, to=to).stages
    return {s.work.kind: (s.work.rounds, s.work.prompts, s.work.expected.answers) for s in stages}


def test_a_plan_of_thinkpo_has_one_output_a_prompt_two_trainings_and_the_test_of_three_models():
    found = amounts("thinkpo-qwen2.5-3b")
    assert found["short sample"] == (1, 16_710, 16_710)
    assert found["train"] == (2, 2 * 16_710, 3 * 16_710 + 16_710)
    assert found["test sample"] == (3, 1_500, 1_500)
    assert "validation sample" not in found and "judge" not in found
    assert amounts("thinkpo-bespoke-7b").keys() == {"train", "test sample", "test judge"}
    assert planned("thinkpo").goal == "ThinkPO"


def test_a_plan_of_self_training_asks_every_question_per_iteration_and_fine_tunes_one_extra_time():
    found = amounts("self-train")
    assert found["sample"] == (3, 1_800, 3 * 600 * (5 + 3))
    assert found["train"][0] == 4 + 3 and found["test sample"] == (8, 3_200, 3_200)
    plain = amounts("self-train", "recipe.dpo=false")
    assert plain["sample"] == (3, 1_800, 3 * 600 * 3)
    assert plain["train"][0] == 4 and plain["test sample"][0] == 5
    assert planned("self-train", to=3).goal == "to SFT_3"


def test_a_writer_of_thinkpo_has_its_own_context_model_memory_and_time():
    plan = planned("thinkpo-reproduced-7b")
    held = {str(held.work): held for held in plan.gpu_memory}
    (writer,) = [stage for stage in plan.stages if stage.work.kind == "short sample"]
    assert writer.engines.who.endswith("Qwen2.5-Math-7B-Instruct") and writer.engines.gpus == 8 and writer.seconds > 60
    short, long = held["short sample"].sequences, held["sample"].sequences
    assert short is not None and long is not None
    assert short == pytest.approx(long * 32_768 / 2_048, rel=0.1)
    assert plan.problems == []


def test_thinkpos_disk_has_a_model_per_epoch_of_both_trainings_and_its_writers_outputs():
    plan = planned("thinkpo-reproduced-7b")
    parameters = plan.models.seed.shape.parameters
    assert plan.disk.checkpoints == (3 + 1) * 2 * parameters
    assert plan.disk.scratch == 2 * 12 * parameters
    longer = planned("thinkpo-reproduced-7b", "recipe.source.short_sample.max_new_tokens=2048")
    assert longer.disk.rows - plan.disk.rows == 16_710 * 2 * 1024 * 10


def test_self_trainings_disk_has_a_model_per_epoch_of_all_trainings():
    plan = planned("self-train-llama", to=3)
    config, parameters = profile("self-train-llama"), plan.models.seed.shape.parameters
    assert config.sft is not None
    preferences = config.train.passes(config.data.count * 3)
    assert plan.disk.checkpoints == (4 * config.sft.epochs + 3 * preferences) * 2 * parameters


def test_engines_without_a_shard_are_noted_and_speed_nothing_up():
    speed = "throughput.sample=1000"
    plan, split = (planned("thinkpo-reproduced-7b", speed, f"engine.shard_prompts={size}") for size in (250, 25))
    seconds = [
        next(stage.seconds - stage.start_seconds for stage in each.stages if stage.work.kind == "test sample")
        for each in (plan, split)
    ]
    assert any("test sample: 500 prompts are 2 shards, so 6 of 8 engines" in note for note in plan.notes)
    assert "lower engine.shard_prompts to 63" in "".join(plan.notes)
    assert not any("are idle" in note for note in split.notes)
    assert seconds[0] > 1.5 * seconds[1]


def test_a_files_prompts_are_counted_if_it_exists(tmp_path: Path):
    path, test = tmp_path / "rows.jsonl", tmp_path / "test.jsonl"
    row = {"demonstration": "d", "answer": "1"}
    test.write_text("".join(json.dumps({"instruction": f"Test {i}", **row}) + "\n" for i in range(500)))
    path.write_text("".join(json.dumps({"instruction": f"{i % 70}", **row}) + "\n" for i in range(100)))
    files = [f"data.source.path={path}", f"data.source.test_path={test}"]
    assert amounts("thinkpo-qwen2.5-3b", *files)["short sample"] == (1, 70, 70)
    plan = planned("thinkpo-qwen2.5-3b", *files, "data.per_iteration=71")
    ending = 'but the run takes more: data.per_iteration 71: set data.per_iteration to "all", or to 70 at most'
    assert any(f"{path} has 70 different prompts, {ending}" in problem for problem in plan.problems)
    assert not plan.fits
