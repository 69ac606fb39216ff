"""Claims about one worker's trainer: its loss is TRL's, packed rows are exact, adapters become one plain model.

Many workers: test_many_workers.py; stopped and resumed: test_training_resume.py.
"""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MambaConfig, MistralConfig, Qwen3Config
from trl import DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from tasks.lineage import SHIPPED_SEED_MODEL
from tests.engines.test_scoring import MODELS, SIZES, VOCABULARY
from tests.engines.test_training_resume import some_pairs
from tpo.config import LoraConfig, TrainConfig, TrainerConfig
from tpo.engines.dpo import make_trainer, train_from_checkpoint, write_dataset
from tpo.engines.packing import PACKED, register_packed_attention
from tpo.engines.pair_inputs import packed_row, padded_row, pair_log_probs
from tpo.engines.training_check import check_training, packing_fault
from tpo.errors import InputError, StageError

LONE = TrainerConfig(threads=1, checkpoint_share=1e-6)
TRAIN = TrainConfig(epochs=2, batch_size=8, micro_batch_size=8, learning_rate=1e-3)
EXACT: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "gpt2": MODELS["gpt2"][0],
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=8),
    "mistral, window of 64": lambda: MistralConfig(**SIZES, sliding_window=64),
}
NOT_EXACT: dict[str, tuple[Callable[[], Any], str]] = {
    "mistral, window of 16": (MODELS["mistral, window of 16"][0], "more than a softmax over all earlier tokens"),
    "gemma2, capped logits": (MODELS["gemma2, capped logits"][0], "more than a softmax over all earlier tokens"),
    "bloom, distance biases": (MODELS["bloom, distance biases"][0], "0 of its 2 layers"),
    "mamba, recurrent": (
        lambda: MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4),
        "0 of its 2 layers",
    ),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def a_trainer(folder: Path, config: TrainConfig = TRAIN, model: Path = SHIPPED_SEED_MODEL) -> Any:
    write_dataset(some_pairs(21), folder / "dataset")
    return make_trainer(model, folder, config=config, trainer=LONE, seed=7, on_step=lambda done, total: None)


def train(folder: Path, config: TrainConfig, share: float = 1e-6) -> list[dict[str, float]]:
    write_dataset(some_pairs(21), folder / "dataset")
    trainer = TrainerConfig.model_construct(threads=1, checkpoint_share=share)
    train_from_checkpoint(
        SHIPPED_SEED_MODEL, folder, config=config, trainer=trainer, seed=7, on_step=lambda done, total: None
    )
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def shaken(model: Any) -> None:
    """Makes a model another than its reference."""
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.data += 0.02 * torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize("loss", ["dpo", "irpo"])
def test_the_loss_over_a_whole_batch_is_trls_and_so_is_its_gradient(tmp_path: Path, loss: str):
    config = TRAIN.model_copy(update={"loss": loss, "alpha": 0.7})
    ours = a_trainer(tmp_path, config)
    shaken(ours.model)
    ours.state.global_step = 1
    (inputs,) = [ours._prepare_inputs(inputs) for inputs in list(ours.get_train_dataloader())[:1]]
    pairs = [ours.train_dataset[i] for i in inputs["share"].indices]
    references = dict(zip(("ref_chosen_logps", "ref_rejected_logps"), inputs["references"], strict=True))
    if loss == "irpo":
        ours.loss_types, ours.loss_weights = ["sigmoid", "sft"], [1.0, 0.7]
    found = ours.compute_loss(ours.model, inputs)
    expected = DPOTrainer.compute_loss(ours, ours.model, {**ours.data_collator(pairs), **references})
    assert abs(found.item() - 0.6931) > 0.01
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    weights = list(ours.model.parameters())
    for mine, its in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-4)


def random_model(config: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config()).eval()
    add_fused_lm_head(model)
    return model


LENGTHS = st.lists(st.tuples(*[st.integers(1, 20)] * 3), min_size=1, max_size=5)


@pytest.mark.parametrize("name", ["seed model", *EXACT])
@given(lengths=LENGTHS)
@settings(max_examples=5)
def test_a_packed_row_gives_the_log_probabilities_and_gradients_of_padded_ones(
    name: str, lengths: list[tuple[int, int, int]]
):
    if name == "seed model":
        model = AutoModelForCausalLM.from_pretrained(SHIPPED_SEED_MODEL, dtype=torch.float32)
        add_fused_lm_head(model)
    else:
        model = random_model(EXACT[name])
    generator = torch.Generator().manual_seed(0)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    pairs = [
        {name: torch.randint(3, 80, (n,), generator=generator).tolist() for name, n in zip(names, each, strict=True)}
        for each in lengths
    ]
    padded = pair_log_probs(model, padded_row(pairs, 0))
    own = torch.autograd.grad((padded.chosen - 2 * padded.rejected).sum(), list(model.parameters()))
    register_packed_attention()
    model.set_attn_implementation(PACKED)
    packed = pair_log_probs(model, packed_row(pairs))
    other = torch.autograd.grad((packed.chosen - 2 * packed.rejected).sum(), list(model.parameters()))
    torch.testing.assert_close(packed.chosen, padded.chosen, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed.rejected, padded.rejected, atol=1e-5, rtol=1e-5)
    whole = torch.stack([gradient.norm() for gradient in own]).norm()
    for mine, its in zip(other, own, strict=True):
        assert (mine - its).norm() <= 1e-5 * whole + 1e-6


def test_a_packed_row_holds_a_pairs_prompt_once_and_no_padding():
    pairs = [{"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6]}]
    row = packed_row([*pairs, *pairs])
    assert row["input_ids"].tolist() == [[1, 2, 3, 4, 5, 3, 6] * 2]
    assert row["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3] * 2]
    assert row["shift_labels"].tolist() == [[-100, -100, 4, 5, -100, 6, -100] * 2]


def on_meta(config: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config())


@pytest.mark.parametrize("name", EXACT)
def test_an_architecture_that_packs_exactly_is_not_refused(name: str):
    assert packing_fault(on_meta(EXACT[name]), 60) is None


@pytest.mark.parametrize("name", NOT_EXACT)
def test_an_architecture_that_would_not_is_refused_before_anything_starts(name: str):
    config, told = NOT_EXACT[name]
    fault = packing_fault(on_meta(config), 60)
    assert fault is not None and told in fault


@pytest.mark.parametrize("name", ["mistral, window of 16", "gemma2, capped logits"])
def test_the_trainer_refuses_it_too_and_says_what_to_do(tmp_path: Path, name: str):
    folder = tmp_path / "model"
    config = NOT_EXACT[name][0]()
    config.vocab_size = 504
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for path in SHIPPED_SEED_MODEL.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    told = TRAIN.model_copy(update={"packing": True})
    with pytest.raises(InputError, match=r"packed rows would not give what padded ones do: set train.packing to false"):
        check_training(folder, told, LONE)


def test_packed_rows_that_give_other_numbers_stop_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def shifted(pairs: Any) -> Any:
        row = packed_row(pairs)
        return {**row, "position_ids": torch.arange(row["input_ids"].shape[1])[None]}

    monkeypatch.setattr("tpo.engines.pair_trainer.packed_row", shifted)
    with pytest.raises(StageError, match=r"packed rows give other log-probabilities .* set train.packing to false"):
        a_trainer(tmp_path, TRAIN.model_copy(update={"packing": True}))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_adapters_train_and_are_merged_into_a_plain_model_that_says_the_same(tmp_path: Path, precision: str):
    config = TRAIN.model_copy(update={"lora": LoraConfig(rank=4, alpha=16.0), "precision": precision, "epochs": 4})
    dpo = a_trainer(tmp_path, config)
    frozen = {name: weight.clone() for name, weight in dpo.model.named_parameters() if not weight.requires_grad}
    assert {weight.dtype for weight in frozen.values()} == {getattr(torch, precision)}
    dpo.train()
    losses = [line["loss"] for line in dpo.state.log_history if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert all((dict(dpo.model.named_parameters())[name] == weight).all() for name, weight in frozen.items())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "epoch_4", dtype=torch.float32)
    add_fused_lm_head(merged)
    row = padded_row([dpo.train_dataset[i] for i in range(6)], 0)
    with torch.no_grad():
        found, expected = pair_log_probs(merged, row), pair_log_probs(dpo.model.float(), row)
        dpo.model.disable_adapter_layers()
        seed = pair_log_probs(dpo.model, row)
    tolerance = 1e-4 if precision == "float32" else 0.3  # log-probabilities of outputs around −50
    torch.testing.assert_close(found.chosen, expected.chosen, atol=tolerance, rtol=0.0)
    torch.testing.assert_close(found.rejected, expected.rejected, atol=tolerance, rtol=0.0)
    assert (expected.rejected - seed.rejected).abs().max() > 1.0


def test_adapters_of_named_modules_alone_are_trained(tmp_path: Path):
    train(tmp_path, TRAIN.model_copy(update={"lora": LoraConfig(target_modules=("q_proj",)), "epochs": 1}))
    seed = AutoModelForCausalLM.from_pretrained(SHIPPED_SEED_MODEL, dtype=torch.float32).state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "epoch_1", dtype=torch.float32).state_dict()
    changed = {re.sub(r"\d+", "n", name) for name, weight in found.items() if (weight != seed[name]).any()}
    assert changed == {"model.layers.n.self_attn.q_proj.weight"}


@pytest.mark.parametrize("targets", [("query",), ("q_proj", "lm_head")])
def test_adapters_on_modules_that_are_not_there_are_refused_with_those_that_are(targets: tuple[str, ...]):
    config = TRAIN.model_copy(update={"lora": LoraConfig(target_modules=targets)})
    with pytest.raises(InputError, match=r"known there: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"):
        check_training(SHIPPED_SEED_MODEL, config, LONE)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_a_training_of_adapters_that_is_killed_ends_the_same(tmp_path: Path, packing: bool):
    config = TRAIN.model_copy(update={"lora": LoraConfig(rank=4), "packing": packing})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole, config)

    def die(done: int, total: int) -> None:
        if total and done == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    write_dataset(some_pairs(21), broken / "dataset")
    if (child := os.fork()) == 0:
        often = TrainerConfig.model_construct(threads=1, checkpoint_share=1e9)
        train_from_checkpoint(SHIPPED_SEED_MODEL, broken, config=config, trainer=often, seed=7, on_step=die)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    kept = {path.name for path in (broken / "trainer" / "checkpoint-4").iterdir()}
    assert "adapter_model.safetensors" in kept and "model.safetensors" not in kept
    train(broken, config)
    for name in ("steps.jsonl", "epoch_1/model.safetensors", "epoch_2/model.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name


def test_gradient_checkpointing_changes_no_step(tmp_path: Path):
    plain = train(tmp_path / "plain", TRAIN)
    recomputed = train(tmp_path / "recomputed", TRAIN.model_copy(update={"gradient_checkpointing": True}))
    for name in ("loss", "margin", "gradient_norm"):
        assert [step[name] for step in recomputed] == pytest.approx([step[name] for step in plain], abs=1e-5)


def test_gpt2s_transposed_layers_are_merged_too(tmp_path: Path):
    folder = tmp_path / "model"
    config = GPT2Config(vocab_size=504, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for path in SHIPPED_SEED_MODEL.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    dpo = a_trainer(tmp_path, TRAIN.model_copy(update={"lora": LoraConfig(rank=4), "epochs": 1}), folder)
    dpo.train()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "epoch_1", dtype=torch.float32)
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, dpo.model(ids).logits, atol=1e-4, rtol=1e-4)
        dpo.model.disable_adapter_layers()
        assert not torch.allclose(merged(ids).logits, dpo.model(ids).logits, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_a_gpu_makes_the_steps_of_a_cpu(tmp_path: Path, packing: bool):
    config = TRAIN.model_copy(update={"lora": LoraConfig(rank=4), "packing": packing})
    expected = train(tmp_path / "cpu", config)
    write_dataset(some_pairs(21), tmp_path / "gpu" / "dataset")
    trainer = TrainerConfig(device="gpu", threads=1)
    train_from_checkpoint(
        SHIPPED_SEED_MODEL, tmp_path / "gpu", config=config, trainer=trainer, seed=7, on_step=lambda done, total: None
    )
    found = [json.loads(line) for line in (tmp_path / "gpu" / "steps.jsonl").read_text().splitlines()]
    assert [step["loss"] for step in found] == pytest.approx([step["loss"] for step in expected], abs=1e-3)
