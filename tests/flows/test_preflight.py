"""Claims about what is refused before anything starts."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from flows.preflight import (
    check_before_work,
    check_endpoints,
    check_proxies,
    check_self_training,
    check_templates,
    check_thinkpo,
    check_tpo,
    preflight,
)
from tests.misbehaving_server import MisbehavingServer
from tests.models.template_families import BY_NAME
from tests.rows import LLAMA, a_config, a_model, some_weights
from tpo.config.base import SHIPPED_SEED_MODEL, Endpoint
from tpo.config.benchmarks import EvaluationConfig
from tpo.config.data import DataConfig, FileSource, ModelConfig, PromptConfig
from tpo.config.judges import ArmoRMJudge, JudgeConfig, PairwiseJudge, RewardModelJudge, VerifierJudge
from tpo.config.resources import ClusterConfig, EngineConfig, JudgeEngineConfig, TrainerConfig
from tpo.config.run import RunConfig
from tpo.config.training import LoraConfig, TrainConfig
from tpo.errors import InputError
from tpo.models.template_check import check_labels_first
from tpo.planning.machine import memory_bytes
from tpo.planning.needs import GIB

ROOT = Path(__file__).parents[2]

NO_GPU = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")


def refusal(config: RunConfig) -> str:
    with pytest.raises(InputError) as refused:
        preflight(config)
    return str(refused.value)


def on_files(folder: Path, **source: Any) -> RunConfig:
    return a_config(folder, data=DataConfig(source=FileSource(**{"path": folder / "prompts.jsonl", **source})))


def test_a_run_that_can_work_passes_and_leaves_nothing_behind(tmp_path: Path):
    config = a_config(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    preflight(config)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_context_that_is_too_small_is_refused_with_both_numbers(tmp_path: Path):
    config = a_config(tmp_path)
    a_model(tmp_path / "model", context=256 + 96 - 1)
    assert f"is 352, but {tmp_path / 'model'} has 351 tokens of context" in refusal(config)
    a_model(tmp_path / "model", context=256 + 96)
    preflight(config)


def test_a_model_that_does_not_split_over_an_engines_gpus_is_refused_if_its_shape_is_known(tmp_path: Path):
    folder = tmp_path / "copy"
    shutil.copytree(SHIPPED_SEED_MODEL, folder)
    config = a_config(tmp_path, model=ModelConfig(path=str(folder)), engine=EngineConfig(tensor_parallel=3))
    values = json.loads((folder / "config.json").read_text())
    message = f"engine.tensor_parallel is 3, but must divide the {values['num_attention_heads']} attention heads"
    assert message in refusal(config)
    (folder / "config.json").write_text(json.dumps({**values, "num_experts": 8}))
    preflight(config)


@NO_GPU
def test_missing_gpus_are_refused_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    config = a_config(tmp_path, engine=EngineConfig(device="gpu"), trainer=TrainerConfig(device="gpu"))
    engine, trainer = refusal(config).split("\n")
    assert engine.startswith("engine.device is gpu, but this machine has no GPU")
    assert trainer.startswith("trainer.device is gpu, but this machine has no GPU")


@NO_GPU
def test_a_cluster_may_have_the_gpus_that_this_machine_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    preflight(a_config(tmp_path, engine=EngineConfig(device="gpu"), cluster=ClusterConfig(address="auto")))


def written(folder: Path, **synthetic: Any) -> RunConfig:
    """A run whose prompts a model writes, with examples from a file of 20."""
    source = FileSource(path=folder / "prompts.jsonl")
    small = {"max_prompt_tokens": 400, "max_new_tokens": 112}
    data = {"source": source, "per_iteration": 2, "validation": 2, "test": 2, "synthetic": small | synthetic}
    return a_config(folder, judge={"kind": "pairwise"}, data=data)


def test_synthetic_prompts_may_use_all_the_examples_that_are_left(tmp_path: Path):
    there = {"path": put(tmp_path / "avoid.jsonl", '{"prompt": "Say it."}'), "instruction_column": "prompt"}
    preflight(written(tmp_path, shots=16, avoid=[there]))


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def in_folder(folder: Path, name: str) -> RunConfig:
    """A run in a folder of this path."""
    parent, _, last = name.rpartition("/")
    return a_config(folder).model_copy(update={"folder": folder / parent, "name": last})


def cut_off(folder: Path) -> RunConfig:
    """A run whose model's weights lack a byte."""
    config = a_config(folder)
    weights = Path(config.model.path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    return config


LONG_NAME = "has a name of 300 bytes in it, but names have up to"
LONG_PATH = "files in it need 120 more, but paths"
REFUSED: dict[str, tuple[Callable[[Path], RunConfig], str]] = {
    "a model that is not there": (
        lambda folder: a_config(folder, model=ModelConfig(path=str(folder / "nowhere"))),
        "nowhere is not a folder: expected one with",
    ),
    "weights that are cut off": (cut_off, "it is truncated or damaged, download it again"),
    "a thought prompt that is not there": (
        lambda folder: a_config(folder, prompt=PromptConfig(user_template=folder / "gone.jinja")),
        "gone.jinja",
    ),
    **{
        f"a {field} that is not there": (
            lambda folder, field=field: on_files(folder, **{field: folder / "gone.jsonl"}),  # type: ignore[misc]
            "gone.jsonl does not exist",
        )
        for field in ("path", "validation_path", "test_path")
    },
    "a prompt file without any text": (
        lambda folder: on_files(folder, path=put(folder / "p.jsonl", '{"instruction": " "}\n{"instruction": null}')),
        "has no text in column 'instruction'",
    ),
    "a damaged prompt file": (
        lambda folder: on_files(folder, path=put(folder / "p.jsonl", '{"instruction": "a"}\n{"instruction": ')),
        "line 2, is not JSON",
    ),
    "a generator that is not there": (
        lambda folder: written(folder, model=str(folder / "nowhere")),
        "nowhere is not a folder",
    ),
    "a few-shot template without examples": (
        lambda folder: written(folder, template=put(folder / "mine.jinja", "Write {{ count }} more.")),
        "mine.jinja shows 0 tasks",
    ),
    "more examples than are left": (
        lambda folder: written(folder, shots=17),
        "has 20 instructions that can be examples, 2 of them for validation, 2 of them for test, and "
        "data.synthetic.shots = 17 must be left",
    ),
    "a benchmark that is not there": (
        lambda folder: written(folder, avoid=[{"path": folder / "gone.jsonl"}]),
        "data.synthetic.avoid: ",
    ),
    "a benchmark without the column": (
        lambda folder: written(folder, avoid=[{"path": put(folder / "b.jsonl", '{"prompt": "Say it."}')}]),
        "has no column 'instruction'; its columns are 'prompt'",
    ),
    "a run folder below a file": (
        lambda folder: in_folder(folder, f"{put(folder / 'taken', 'a file')}/runs/r"),
        "taken is not a folder that can be written to",
    ),
    "a run with a long name": (lambda folder: in_folder(folder, "b" * 300), LONG_NAME),
    "a run below a long name": (lambda folder: in_folder(folder, "a" * 300 + "/b"), LONG_NAME),
    "a run with a long name in a new folder": (lambda folder: in_folder(folder, "new/" + "b" * 300), LONG_NAME),
    "a run folder with a long path": (lambda folder: in_folder(folder, "/".join(["a" * 199] * 20)), LONG_PATH),
    "a path that no file system takes": (lambda folder: in_folder(folder, "/".join(["a" * 199] * 50)), LONG_PATH),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_that_its_files_make_impossible_is_refused(tmp_path: Path, name: str):
    make, message = REFUSED[name]
    assert message in refusal(make(tmp_path))


@pytest.mark.parametrize(
    ("fine_grained", "told"),
    [
        ({}, "has no model to rate instructions, and data.source brings neither categories nor difficulties"),
        ({"model": "missing"}, "missing"),
        ({"model": "m", "user_template": "missing.jinja"}, "rating template missing.jinja cannot be read"),
    ],
)
def test_a_rater_that_cannot_rate_is_refused(tmp_path: Path, fine_grained: dict[str, Any], told: str):
    assert told in refusal(a_config(tmp_path, evaluation={"fine_grained": fine_grained}))


def test_a_rater_behind_a_server_is_tried_before_work_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with MisbehavingServer(says=lambda _: "[[Category: Other]] [[Complexity: 1]]") as server:
        endpoint = {"base_url": server.base_url, "retries": 0}
        config = a_config(tmp_path, evaluation={"fine_grained": {"model": "m", "endpoint": endpoint}})
        check_endpoints(config)
        assert "Write a poem" in server.asked[0].request["messages"][1]["content"]
        assert capsys.readouterr().err == ""
    with MisbehavingServer(says=lambda _: "A poem.") as server:
        endpoint = {"base_url": server.base_url, "retries": 0}
        check_endpoints(a_config(tmp_path, evaluation={"fine_grained": {"model": "m", "endpoint": endpoint}}))
        assert "its rating of a plain instruction had no label" in capsys.readouterr().err
    with pytest.raises(InputError, match="did not answer"):
        check_endpoints(config)


def test_a_judge_with_a_rubric_is_tried_before_work_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def judge(server: MisbehavingServer, **settings: object) -> dict[str, Any]:
        endpoint = {"base_url": server.base_url, "retries": 0}
        return {"judge": {"kind": "rubric", "model": "m", "endpoint": endpoint, **settings}}

    with MisbehavingServer(says=lambda _: "Good. [[Score: 9]]") as server:
        check_endpoints(a_config(tmp_path, **judge(server)))
        assert "12 + 30 is 42." in server.asked[0].request["messages"][1]["content"]
        assert capsys.readouterr().err == ""
        check_endpoints(a_config(tmp_path, **judge(server, expected_score=True)))
        assert "its reply about a plain response did not begin with a score from 0 to 9" in capsys.readouterr().err
        config = a_config(tmp_path, **judge(server, user_template=tmp_path / "none.jinja"))
        assert "rubric template" in refusal(config)
    assert "is not a folder" in refusal(a_config(tmp_path, judge={"kind": "rubric", "model": str(tmp_path / "none")}))


def test_an_expected_score_needs_a_tokenizer_that_tells_scores_apart(tmp_path: Path):
    (folder := tmp_path / "model").mkdir()
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "<eos>", "Say", "hello"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="[UNK]")), eos_token="<eos>", unk_token="[UNK]"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"doesn't tell 0, 1, 2 apart by one token, and judge\.expected_score"):
        check_labels_first(folder, "judge.expected_score", "false", ("0", "1", "2"))
    check_labels_first(SHIPPED_SEED_MODEL, "judge.expected_score", "false", tuple("0123456789"))


@pytest.mark.parametrize("own", [False, True])
def test_a_generator_whose_context_is_too_small_is_refused_with_both_numbers(tmp_path: Path, own: bool):
    folder = a_model(tmp_path / "writer", context=511) if own else tmp_path / "model"
    config = written(tmp_path, **({"model": str(folder)} if own else {}))
    a_model(folder, context=511)
    message = refusal(config)
    assert (
        f"data.synthetic.max_prompt_tokens + max_new_tokens is 512, but {folder} has 511 tokens of context" in message
    )
    a_model(folder, context=512)
    preflight(config)


def test_a_generator_behind_a_server_is_tried_before_work_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WRITER_KEY", "sk-wrong")
    with MisbehavingServer(key="sk-right", model="m") as server:
        endpoint = {"base_url": server.base_url, "key_variable": "WRITER_KEY"}
        config = written(tmp_path, model="m", endpoint=endpoint)
        preflight(config)
        assert not server.asked
        with pytest.raises(InputError, match=r"model 'm' at .* 401.*WRITER_KEY"):
            check_endpoints(config)
        monkeypatch.setenv("WRITER_KEY", "sk-right")
        check_endpoints(config)


def test_the_few_shot_prompt_is_tried_on_the_generators_chat_template(tmp_path: Path):
    (writer := tmp_path / "writer").mkdir()
    for path in SHIPPED_SEED_MODEL.iterdir():
        (writer / path.name).write_bytes(path.read_bytes())
    config = written(tmp_path, model=str(writer)).model_copy(update={"model": ModelConfig()})
    assert check_templates(config) == check_templates(a_config(tmp_path, model=ModelConfig(), judge=PairwiseJudge()))
    (writer / "chat_template.jinja").write_text("{{ messages[0]['content'] | upper }}")
    with pytest.raises(InputError):
        check_templates(config)


@pytest.mark.parametrize("judge", ["judge", "evaluation.judge"])
def test_a_judge_of_instructions_is_refused_for_prompts_without_any(tmp_path: Path, judge: str):
    def checking(config: RunConfig) -> RunConfig:
        verifier = VerifierJudge(match="instructions")
        changed = {"judge": verifier} if judge == "judge" else {"evaluation": EvaluationConfig(judge=verifier)}
        return config.model_copy(update=changed)

    columns = {"instruction_ids_column": "ids", "kwargs_column": "kwargs"}
    config = checking(on_files(tmp_path, **columns))
    for origin, refused in (
        ('data.source (kind "file") come without', checking(on_files(tmp_path))),
        ('data.source (kind "miniature") come without', checking(a_config(tmp_path, data=DataConfig()))),
    ):
        found = refusal(refused)
        assert f'{judge}.match is "instructions", and prompts of {origin} verifiable instructions: name' in found
    (tmp_path / "prompts.jsonl").write_text('{"instruction": "a", "ids": [], "kwargs": []}')
    assert "no row of" in refusal(config)
    (tmp_path / "prompts.jsonl").write_text('{"instruction": "a", "ids": ["a:b"], "kwargs": [{}]}')
    assert "row 1: the instruction id 'a:b' is unknown" in refusal(config)
    rows = ({"instruction": f"{i}", "ids": ["punctuation:no_comma"], "kwargs": [{}]} for i in range(1200))
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    preflight(config)


def able(folder: Path, *, parameters: int = 1000, family: str = "chatml", **changes: Any) -> RunConfig:
    """A run whose seed model has a tokenizer, and weights as large as their file's header claims."""
    config = a_config(folder, **changes)
    rows = max(640, parameters // 64)
    some_weights(BY_NAME[family].save(Path(config.model.path), **{**LLAMA, "vocab_size": rows}), rows=rows)
    return config


def refused_before_work(config: RunConfig, iterations: int = 3) -> str:
    preflight(config)
    with pytest.raises(InputError) as refused:
        check_before_work(config, iterations)
    return str(refused.value)


def notes_of(config: RunConfig, capsys: pytest.CaptureFixture[str], iterations: int = 3) -> list[str]:
    """What a passing check prints."""
    check_before_work(config, iterations)
    return capsys.readouterr().err.splitlines()


def test_a_run_that_can_work_passes_in_silence_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = able(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert notes_of(config, capsys) == []
    assert sorted(tmp_path.rglob("*")) == before


def test_the_check_of_every_run_loads_nothing_heavy():
    code = (
        "import sys; from flows.recipes import resolve_config; from flows.preflight import preflight;"
        "preflight(resolve_config('laptop', run_name=None, judge='armorm', seed=None, overrides=[]));"
        "print([name for name in ('torch', 'ray', 'prefect', 'vllm', 'transformers', 'openai') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no file system here that refuses files")
def test_adapters_on_modules_that_the_model_does_not_have_are_refused(tmp_path: Path):
    train = TrainConfig(lora=LoraConfig(target_modules=("query",)))
    message = refused_before_work(RunConfig(folder=tmp_path, train=train))
    assert "train.lora.target_modules has 'query'" in message and "known there: down_proj" in message


def test_a_run_folder_that_takes_no_files_is_refused_despite_its_permissions(tmp_path: Path):
    config = able(tmp_path).model_copy(update={"folder": Path("/proc")})
    with pytest.raises(InputError, match=r"a probe could not be written into /proc: .* set folder in the profile"):
        check_before_work(config, 3)


def test_checkpoints_that_the_disk_cannot_hold_are_refused_with_all_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = filling(tmp_path)
    free = shutil.disk_usage(tmp_path).free / GIB
    message = refused_before_work(config, 9)
    numbers = [float(number.replace(",", "")) for number in re.findall(r"([\d,.]+) GiB", message)]
    assert numbers == pytest.approx([1.1 * free, 0.9 * free, 0.2 * free, free], rel=0.05, abs=0.1)
    assert "lower --to (ITER) or train.epochs" in message
    assert notes_of(config, capsys, 7) == []


def test_checkpoints_already_on_disk_are_not_counted_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = filling(tmp_path)
    assert "for one checkpoint per epoch" in refused_before_work(config, 9)
    for t in range(1, 10):
        epoch = config.root / f"iter_{t}" / "train" / "epoch_1"
        epoch.mkdir(parents=True)
        some_weights(epoch, rows=shutil.disk_usage(tmp_path).free // 60 // 64)
    assert notes_of(config, capsys, 9) == []


def filling(folder: Path) -> RunConfig:
    """A run whose checkpoints take a tenth of the free disk an iteration, and a fifth while it trains."""
    return able(
        folder,
        parameters=shutil.disk_usage(folder).free // 120,
        data=DataConfig(per_iteration=2, validation=2, test=2),
        train=TrainConfig(epochs=3),
        cluster=ClusterConfig(address="auto"),
    )


def test_outputs_that_may_not_fit_are_reported_and_not_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    many = shutil.disk_usage(tmp_path).free // 10_000
    config = able(tmp_path, data=DataConfig(per_iteration=many))
    (line,) = notes_of(config, capsys)
    assert "is free there: it may not fit; lower data.per_iteration" in line


@pytest.mark.parametrize(
    ("changes", "share", "message"),
    [
        ({"engine": EngineConfig(count=9000)}, 0, "(engine 9,00"),
        ({"judge": PairwiseJudge(), "judge_engine": JudgeEngineConfig(count=9000)}, 0, "judge_engine (pairwise) 9,0"),
        ({"train": TrainConfig(precision="float32")}, 1 / 15, "trainer"),
    ],
    ids=["engines", "judges", "trainer"],
)
def test_work_that_cannot_be_in_memory_at_once_is_refused_with_the_numbers(
    tmp_path: Path, changes: dict[str, Any], share: float, message: str
):
    here = memory_bytes()
    found = refused_before_work(able(tmp_path, parameters=max(1000, int(here * share)), **changes), 0)
    assert message in found and f"but has {here / GIB:,.1f} GiB: lower engine.kv_cache_gib" in found


def test_work_that_may_not_fit_in_memory_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = able(tmp_path, engine=EngineConfig(kv_cache_gib=int(0.9 * memory_bytes() / GIB)))
    (line,) = notes_of(config, capsys)
    assert "processes use more than their models do: it may not fit" in line


def test_everything_that_this_machine_lacks_is_in_one_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    changes: dict[str, Any] = {"trainer": TrainerConfig(workers=32), "train": TrainConfig(micro_batch_size=1)}
    monkeypatch.setattr("os.cpu_count", lambda: 31)
    cpus, memory = refused_before_work(able(tmp_path, **changes, engine=EngineConfig(kv_cache_gib=9000))).split("\n")
    assert cpus.startswith("trainer.workers is 32, but Ray has 31 CPUs here, and each takes one")
    assert memory.startswith("this machine's memory must hold 9,000.0 GiB at once")
    monkeypatch.setattr("os.cpu_count", lambda: 32)
    check_before_work(able(tmp_path, **changes), 1)


def test_a_cluster_may_have_the_memory_that_this_machine_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = able(tmp_path, engine=EngineConfig(kv_cache_gib=9000), cluster=ClusterConfig(address="auto"))
    assert notes_of(config, capsys) == []


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `nvidia-smi` that lists two GPUs."""
    listing = tmp_path / "bin" / "nvidia-smi"
    listing.parent.mkdir()
    listing.write_text("#!/bin/sh\necho 'GPU 0: One (UUID: a)'\necho 'GPU 1: One (UUID: b)'\n")
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", str(listing.parent))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("visible", "there"), [(None, 2), ("1", 1)], ids=["all", "one hidden"])
def test_a_part_that_needs_more_gpus_than_are_visible_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, there: int
):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    check_before_work(able(tmp_path, engine=EngineConfig(device="gpu", count=there)), 1)
    found = refused_before_work(able(tmp_path, engine=EngineConfig(device="gpu", count=there + 1)))
    there_are = f"there {'is' if there == 1 else 'are'} {there}"
    assert f"engine needs {there + 1} GPUs, but {there_are} (this machine, by nvidia-smi -L" in found


def test_a_server_that_is_down_is_refused_before_work(tmp_path: Path):
    endpoint = Endpoint(base_url="http://127.0.0.1:9/v1", retries=0)
    message = refused_before_work(able(tmp_path, judge=PairwiseJudge(model="judge", endpoint=endpoint)))
    assert "did not answer" in message


def test_a_seed_model_that_would_not_stop_is_refused(tmp_path: Path):
    config = able(tmp_path, family="llama3")
    template = Path(config.model.path) / "chat_template.jinja"
    template.write_text(template.read_text().replace("~ '<|eot_id|>'", ""))
    assert f"{template} puts '' after an assistant's turn" in refused_before_work(config)


def test_a_system_prompt_for_a_model_without_system_turns_is_refused(tmp_path: Path):
    config = able(tmp_path, family="gemma", prompt=PromptConfig(variant="system"))
    assert "rejects a ('system', 'user') chat: there is no system turn" in refused_before_work(config)


@pytest.mark.parametrize("kind", ["reward_model", "pairwise"])
def test_a_judge_whose_template_doubles_bos_is_refused(tmp_path: Path, kind: str):
    folder = BY_NAME["llama3"].save(tmp_path / "judge")
    some_weights(folder)
    template = folder / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text())
    judge: JudgeConfig = PairwiseJudge(model=str(folder)) if kind == "pairwise" else RewardModelJudge(model=str(folder))
    with pytest.raises(InputError, match=rf"{template} begins a chat with 2 BOS"):
        check_templates(able(tmp_path, judge=judge))


def test_a_judge_that_always_thinks_is_refused_if_the_label_must_come_first(tmp_path: Path):
    folder = BY_NAME["chatml"].save(tmp_path / "judge")
    some_weights(folder)
    template = Path(trl.__file__).parent / "chat_templates" / "deepseek_r1_distill.jinja"
    (folder / "chat_template.jinja").write_text(template.read_text().replace("<｜end▁of▁sentence｜>", "<|im_end|>"))
    for mode in ("probability", "verdict"):
        with pytest.raises(InputError, match=r'opens every answer with a thought.*set judge.mode to "cot"'):
            check_templates(a_config(tmp_path, model=ModelConfig(), judge=PairwiseJudge(model=str(folder), mode=mode)))
    check_templates(a_config(tmp_path, model=ModelConfig(), judge=PairwiseJudge(model=str(folder), mode="cot")))


@pytest.mark.parametrize("judge", [VerifierJudge(), ArmoRMJudge(), PairwiseJudge(), PairwiseJudge(mode="probability")])
@pytest.mark.parametrize("variant", ["generic", "specific", "specific_draft", "system", "direct"])
def test_the_shipped_models_templates_get_no_warning(tmp_path: Path, judge: JudgeConfig, variant: str):
    config = a_config(
        tmp_path, model=ModelConfig(), judge=judge, prompt=PromptConfig.model_validate({"variant": variant})
    )
    assert check_templates(config) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "self_train"}, 'recipe.kind is "self_train", expected "thinkpo"'),
        ({"sft": None}, r"whose prompts the models write for"),
        ({"source": {"kind": "file", "path": "no.jsonl"}}, "recipe.source.path must name a file"),
        ({"source": {"kind": "models", "short": "no-model"}}, "no-model"),
        ({"source": {"kind": "models", "short_prompt": {"variant": "direct", "user_template": "no.j"}}}, "no.j"),
        ({}, "data.source.demonstration_column isn't"),
    ],
)
def test_an_impossible_run_of_thinkpo_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    values = a_config(tmp_path).model_dump() | {"recipe": {"kind": "thinkpo", "sft": {}} | changes}
    with pytest.raises(InputError, match=message):
        check_thinkpo(RunConfig.model_validate(values))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": {"kind": "tpo"}}, 'recipe.kind is "tpo", expected "self_train"'),
        ({}, "data.source names no reference_column"),
        ({"judge": {"kind": "verifier", "match": "instructions"}}, "data.source names no instruction_ids_column"),
        (
            {
                "data": {"per_iteration": 9, "source": {"kind": "miniature"}},
                "recipe": {"kind": "self_train", "demonstrations": 10},
            },
            "demonstrations is 10, expected at most data.per_iteration, 9",
        ),
    ],
)
def test_an_impossible_run_of_self_training_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    values = a_config(tmp_path).model_dump() | {"recipe": {"kind": "self_train"}} | changes
    with pytest.raises(InputError, match=message):
        check_self_training(RunConfig.model_validate(values))


@pytest.mark.parametrize("recipe", ["thinkpo", "self_train"])
def test_tpo_refuses_a_profile_of_another_recipe(tmp_path: Path, recipe: str):
    values = a_config(tmp_path).model_dump()
    check_tpo(RunConfig.model_validate(values))
    with pytest.raises(InputError, match=f'recipe.kind is "{recipe}", expected "tpo"'):
        check_tpo(RunConfig.model_validate(values | {"recipe": {"kind": recipe}}))


@pytest.mark.parametrize(
    ("match", "message"),
    [("exact", "whose prompts have none: set judge.match"), ("math", "whose prompts have none: set judge.match")],
)
def test_a_verifier_that_compares_with_references_refuses_writing_tasks(tmp_path: Path, match: str, message: str):
    checking = {"kind": "verifier", "match": "instructions"}
    values = a_config(tmp_path).model_dump() | {"evaluation": {"judge": checking}}
    values["data"] = {"source": {"kind": "instructions"}}
    preflight(RunConfig.model_validate(values | {"judge": checking}))
    with pytest.raises(InputError, match=message):
        preflight(RunConfig.model_validate(values | {"judge": {"kind": "verifier", "match": match}}))


@pytest.mark.parametrize("proxy", ["ftp://proxy.corp", "http://[::1"])
def test_an_unusable_proxy_is_refused_if_a_run_needs_a_server_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
):
    monkeypatch.setenv("ALL_PROXY", proxy)

    def asking(address: str) -> RunConfig:
        return a_config(tmp_path, judge=PairwiseJudge(model="m", endpoint=Endpoint(base_url=address)))

    with pytest.raises(InputError, match=r"ALL_PROXY is not .*, and the run asks https://judge"):
        check_proxies(asking("https://judge.corp/v1"))
    check_proxies(asking("http://localhost:8000/v1"))
    check_proxies(a_config(tmp_path))
    monkeypatch.setenv("ALL_PROXY", "http://proxy.corp:3128")
    check_proxies(asking("https://judge.corp/v1"))


def test_folders_that_prefect_and_ray_cannot_use_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = a_config(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set PREFECT_HOME to a folder that can be"):
        check_before_work(config, 0)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 20)))
    with pytest.raises(InputError, match=r"bytes too long: set RAY_TMPDIR"):
        check_before_work(config, 0)
