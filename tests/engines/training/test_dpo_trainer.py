"""Claims about one worker's trainer: its loss is TRL's, packed rows are exact, adapters become one plain model.

Many workers: test_many_workers.py; stopped and resumed: test_resume.py.
"""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MambaConfig, MistralConfig, Qwen3Config
from trl import DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from tests.engines.inference.test_reward_reader import MODELS, SIZES, VOCABULARY
from tests.engines.training.test_resume import some_pairs
from tests.engines.training.worker_group import end_of_workers
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.resources import TrainerConfig
from tpo.config.training import LoraConfig, Loss, TrainConfig, TrainingConfig
from tpo.engines.training.check import check_training, packing_fault
from tpo.engines.training.flex import register_packed_attentions
from tpo.engines.training.packing import PACKED
from tpo.engines.training.preference_loss import preference_loss
from tpo.engines.training.row_inputs import PAIR, OutputLogProbs, output_log_probs, packed_row, padded_row
from tpo.engines.training.worker import make_trainer, train_from_checkpoint, write_dataset
from tpo.errors import InputError, StageError
from tpo.models.shape import ModelShape
from tpo.planning.model_flops import Reads, forward_flops, step_flops

pytestmark = pytest.mark.drawn(14)

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


def shaken(model: Any, much: float = 0.02) -> None:
    """Makes a model differ from its reference."""
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.data += much * torch.randn(weight.shape, generator=generator)


VARIANTS: dict[str, dict[str, Any]] = {
    **{loss: {"loss": loss} for loss in get_args(Loss)},
    "robust": {"loss": "robust", "label_smoothing": 0.1},
    "exo_pair": {"loss": "exo_pair", "label_smoothing": 1e-3},
    "length-desensitised": {"length_desensitization": 0.3},
    "length-desensitised irpo": {"loss": "irpo", "length_desensitization": 0.3},
    "forward_kl": {"divergence": "forward_kl"},
    "alpha_divergence": {"divergence": "alpha_divergence", "divergence_alpha": 0.7},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_over_a_whole_batch_is_trls_and_so_is_its_gradient(tmp_path: Path, variant: str):
    config = TrainConfig.model_validate({**TRAIN.model_dump(), "alpha": 0.7, **VARIANTS[variant]})
    loss = config.loss
    ours = a_trainer(tmp_path, config)
    # Losses of the ratio itself, not its logarithm, are far out of range for a model far from its reference.
    shaken(ours.model, 0.02 if config.divergence == "reverse_kl" else 0.001)
    ours.state.global_step = 1
    (inputs,) = [ours._prepare_inputs(inputs) for inputs in list(ours.get_train_dataloader())[:1]]
    pairs = [ours.train_dataset[i] for i in inputs["share"].indices]
    references = dict(zip(("ref_chosen_logps", "ref_rejected_logps"), inputs["references"], strict=True))
    ours.loss_types, ours.loss_weights = [{"dpo": "sigmoid"}.get(loss, loss)], [1.0]
    if loss == "irpo":
        ours.loss_types, ours.loss_weights = ["sigmoid", "sft"], [1.0, 0.7]
    ours.ld_alpha, ours.label_smoothing = config.length_desensitization, config.label_smoothing
    ours.f_divergence_type, ours.f_alpha_divergence_coef = config.divergence, config.divergence_alpha
    found = ours.compute_loss(ours.model, inputs)
    add_fused_lm_head(ours.model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))  # TRL logs them all.
    expected = DPOTrainer.compute_loss(ours, ours.model, {**ours.data_collator(pairs), **references})
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    weights = list(ours.model.parameters())
    for mine, its in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        assert (mine - its).norm() <= 1e-4 * its.norm() + 1e-5


def test_no_two_variants_of_the_loss_are_the_same():
    """Except IRPO's likelihood term, which isn't in this part."""
    torch.manual_seed(0)
    mask = torch.arange(9) < torch.randint(2, 9, (8, 1))
    policy = OutputLogProbs(-torch.rand(8, 9) * mask, mask, 2)
    away = torch.randn(2, 4)
    losses = {
        name: preference_loss(config, policy, policy.sums(config.length_desensitization) + away).item()
        for name, values in VARIANTS.items()
        if (config := TrainConfig.model_validate(values)).loss != "irpo"
    }
    assert len({round(loss, 6) for loss in losses.values()}) == len(losses) - 1, losses
    assert losses["dpo"] == pytest.approx(losses["length-desensitised"])  # they differ in the reference's log-probs


def test_a_pair_gives_the_loss_of_golden_vector_g12():
    """SPEC §7: log π = −120 and −135, of the reference −122.5 and −134, β 0.1: margin 0.35; IRPO over 60 tokens."""
    policy = OutputLogProbs(
        torch.stack([torch.full((60,), -2.0), torch.full((60,), -2.25)]), torch.ones(2, 60, dtype=torch.bool), 2
    )
    references = torch.tensor([[-122.5], [-134.0]])
    loss = preference_loss(TrainConfig(beta=0.1), policy, references)
    assert loss.item() == pytest.approx(0.533382, abs=1e-6)
    assert (loss - policy.first.sum() / len(policy.first)).item() == pytest.approx(2.533382, abs=1e-6)


def test_references_are_weighted_as_in_trl_with_length_desensitization(tmp_path: Path):
    config = TRAIN.model_copy(update={"length_desensitization": 0.3})
    ours = a_trainer(tmp_path, config)
    ours.ld_alpha = 0.3
    pairs = [ours.train_dataset[i] for i in range(len(ours.train_dataset))]
    expected = ours.compute_ref_log_probs(ours.model, ours.data_collator(pairs))
    torch.testing.assert_close(ours._references, torch.stack(expected), atol=1e-4, rtol=1e-5)
    plain = a_trainer(tmp_path / "plain")
    assert (plain._references - ours._references).abs().max() > 1


def test_a_separate_reference_is_used_and_freed_before_training(tmp_path: Path):
    """With the seed as a later model's reference, the first loss isn't ln 2, and the log-probs are the seed's."""
    train(tmp_path / "first", TRAIN)
    later = tmp_path / "first" / "epoch_2"
    write_dataset(some_pairs(21), tmp_path / "second" / "dataset")
    made = make_trainer(
        later,
        tmp_path / "second",
        config=TRAIN,
        trainer=LONE,
        seed=7,
        on_step=lambda done, total: None,
        reference=SHIPPED_SEED_MODEL,
    )
    torch.testing.assert_close(made._references, a_trainer(tmp_path / "seed")._references)
    made.train()
    (first, *_) = (line["loss"] for line in made.state.log_history if "loss" in line)
    assert first < 0.6


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
    padded = output_log_probs(model, padded_row(pairs, PAIR, 0)).sums()
    own = torch.autograd.grad((padded[0] - 2 * padded[1]).sum(), list(model.parameters()))
    assert register_packed_attentions("cpu") == [PACKED]
    model.set_attn_implementation(PACKED)
    packed = output_log_probs(model, packed_row(pairs, PAIR)).sums()
    other = torch.autograd.grad((packed[0] - 2 * packed[1]).sum(), list(model.parameters()))
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-5)
    whole = torch.stack([gradient.norm() for gradient in own]).norm()
    for mine, its in zip(other, own, strict=True):
        assert (mine - its).norm() <= 1e-5 * whole + 1e-6


def test_a_packed_row_holds_a_pairs_prompt_once_and_no_padding():
    pairs = [{"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6]}]
    row = packed_row([*pairs, *pairs], PAIR)
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
def test_an_architecture_that_would_not_pack_exactly_is_refused_before_anything_starts(name: str):
    config, reason = NOT_EXACT[name]
    fault = packing_fault(on_meta(config), 60)
    assert fault is not None and reason in fault


def model_folder(parent: Path, name: str) -> Path:
    """A model of an architecture that can't be packed, with our tokenizer."""
    folder = parent / "model"
    config = NOT_EXACT[name][0]()
    config.vocab_size = 504
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for path in SHIPPED_SEED_MODEL.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("name", ["mistral, window of 16", "gemma2, capped logits"])
def test_the_trainer_refuses_it_too_and_says_what_to_do(tmp_path: Path, name: str):
    folder = model_folder(tmp_path, name)
    packed = TRAIN.model_copy(update={"packing": True})
    with pytest.raises(InputError, match=r"packed rows would not give what padded ones do: set train.packing to false"):
        check_training(folder, packed, LONE)


def test_packed_rows_that_give_other_numbers_stop_the_training(tmp_path: Path):
    folder = model_folder(tmp_path, "bloom, distance biases")
    with pytest.raises(StageError, match=r"packed rows give other log-probabilities .* set train.packing to false"):
        a_trainer(tmp_path, TRAIN.model_copy(update={"packing": True}), folder)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_adapters_train_and_are_merged_into_an_equivalent_plain_model(tmp_path: Path, precision: str):
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
    row = padded_row([dpo.train_dataset[i] for i in range(6)], PAIR, 0)
    with torch.no_grad():
        found, expected = output_log_probs(merged, row).sums(), output_log_probs(dpo.model.float(), row).sums()
        dpo.model.disable_adapter_layers()
        seed = output_log_probs(dpo.model, row).sums()
    tolerance = 1e-4 if precision == "float32" else 0.3  # log-probabilities of outputs around −50
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0.0)
    assert (expected[1] - seed[1]).abs().max() > 1.0


def test_the_weights_are_not_hashed_for_trls_unused_cache(tmp_path: Path):
    assert a_trainer(tmp_path, TRAIN)._precompute_model_hash is None


def test_only_adapters_of_named_modules_are_trained(tmp_path: Path):
    train(tmp_path, TRAIN.model_copy(update={"lora": LoraConfig(target_modules=("q_proj",)), "epochs": 1}))
    seed = AutoModelForCausalLM.from_pretrained(SHIPPED_SEED_MODEL, dtype=torch.float32).state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "epoch_1", dtype=torch.float32).state_dict()
    changed = {re.sub(r"\d+", "n", name) for name, weight in found.items() if (weight != seed[name]).any()}
    assert changed == {"model.layers.n.self_attn.q_proj.weight"}


@pytest.mark.parametrize("targets", [("query",), ("q_proj", "lm_head")])
def test_adapters_on_missing_modules_are_refused_with_those_that_exist(targets: tuple[str, ...]):
    config = TRAIN.model_copy(update={"lora": LoraConfig(target_modules=targets)})
    with pytest.raises(InputError, match=r"known there: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"):
        check_training(SHIPPED_SEED_MODEL, config, LONE)


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_a_training_of_adapters_that_is_killed_ends_the_same(tmp_path: Path, packing: bool):
    config = TRAIN.model_copy(update={"lora": LoraConfig(rank=4), "packing": packing})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole, config)

    def die(done: int, total: int) -> None:
        if total and done == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        often = TrainerConfig.model_construct(threads=1, checkpoint_share=1e9)
        train_from_checkpoint(SHIPPED_SEED_MODEL, broken, config=config, trainer=often, seed=7, on_step=die)

    write_dataset(some_pairs(21), broken / "dataset")
    assert end_of_workers(1, work) == [-signal.SIGKILL]
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


def test_the_operations_of_a_step_are_those_that_pytorch_counts():
    shape = ModelShape(layers=2, hidden=16, heads=4, kv_heads=2, head_dim=4, intermediate=32, vocabulary=50, context=64)
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        attn_implementation="eager",
    )
    model = AutoModelForCausalLM.from_config(config)
    # Eager attention computes the whole square, and the mask then discards half of it.
    reads = Reads(tokens=10, scored=10, attended=100)
    with FlopCounterMode(display=False) as counted:
        loss = model(input_ids=torch.arange(10)[None]).logits.sum()
        assert counted.get_total_flops() == forward_flops(shape, reads)
        loss.backward()
    assert counted.get_total_flops() == step_flops(shape, reads, TrainingConfig())
