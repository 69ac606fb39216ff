"""Claims about the proof of an engine's weights, on a model packed and fused as in vLLM on a CPU.

vLLM is imitated here, so that each fault can be made on purpose; tests/end_to_end has the real one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tpo.engines.inference import fp8
from tpo.engines.inference.weight_proof import Difference, Part, expected, foreign_weights, probe_tokens

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
Weights = Mapping[str, torch.Tensor]


def a_model(seed: int, *, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=90,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        attention_bias=True,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    return trained(trained(model, "norm", 0.1), "bias", 0.1)


def trained(model: LlamaForCausalLM, part: str, step: float) -> LlamaForCausalLM:
    """The same model with all weights of a part slightly changed."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if part in name:
                weight.add_(step * torch.randn_like(weight))
    return model


class Packed(torch.nn.Module):
    """A matrix that remains only as a copy in a kernel."""

    def __init__(
        self, matrix: torch.Tensor, *, keep: bool = False, length_name: str = "input_size_per_partition"
    ) -> None:
        super().__init__()
        packed = matrix.T.contiguous()
        setattr(self, length_name, len(packed))
        self.weight = torch.nn.Parameter(matrix if keep else torch.empty(0))
        self.cpu_linear = lambda x, weight, bias: x @ packed


class Quantized(torch.nn.Module):
    """A matrix in FP8, transposed, with the scale of each row."""

    def __init__(self, matrix: torch.Tensor, **_: Any) -> None:
        super().__init__()
        scales = fp8.row_scales(matrix)
        self.weight = torch.nn.Parameter(fp8.codes(matrix, scales).T, requires_grad=False)
        self.weight_scale = torch.nn.Parameter(scales, requires_grad=False)


def engine(
    weights: Weights, dtype: torch.dtype, head: torch.Tensor | None = None, linear: type[torch.nn.Module] = Packed
) -> torch.nn.Module:
    """The weights as vLLM stores them: fused, packed or quantized, with a padded vocabulary."""
    weights = {name: weight.detach().to(dtype) for name, weight in weights.items()}
    model = torch.nn.Module()
    embedding = torch.nn.functional.pad(weights["model.embed_tokens.weight"], (0, 0, 0, 38))
    model.add_module("embed_tokens", torch.nn.Embedding.from_pretrained(embedding))
    packed = torch.nn.functional.pad(weights["lm_head.weight"] if head is None else head.to(dtype), (0, 0, 0, 38))
    model.add_module("lm_head", Packed(packed, keep=True))
    for i in range(3):
        layer = torch.nn.Module()
        attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        layer.add_module("qkv", linear(torch.cat([weights[f"{attention}.{x}_proj.weight"] for x in "qkv"])))
        bias = torch.cat([weights[f"{attention}.{x}_proj.bias"] for x in "qkv"]).float()
        layer.register_parameter("qkv_bias", torch.nn.Parameter(bias))
        layer.add_module("out", linear(weights[f"{attention}.o_proj.weight"]))
        layer.add_module("gate_up", linear(torch.cat([weights[f"{mlp}.{x}_proj.weight"] for x in ("gate", "up")])))
        layer.add_module("down", linear(weights[f"{mlp}.down_proj.weight"], length_name="input_size"))
        norm = weights[f"model.layers.{i}.input_layernorm.weight"]
        layer.register_parameter("norm", torch.nn.Parameter(norm))
        model.add_module(f"layer{i}", layer)
    return model


def foreign(held: Weights, stored: LlamaForCausalLM, folder: Path, dtype: torch.dtype, **how: Any) -> set[str]:
    stored.save_pretrained(folder)
    return set(foreign_weights(engine(held, dtype, **how), folder, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_an_engine_with_the_weights_of_the_folder_passes(tmp_path: Path, dtype: torch.dtype, tied: bool):
    assert foreign(a_model(0, tied=tied).state_dict(), a_model(0, tied=tied), tmp_path, dtype) == set()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", [1.0, 1e-2, 1e-4])
def test_one_layer_of_old_weights_is_named_even_if_training_hardly_moved_it(
    tmp_path: Path, dtype: torch.dtype, step: float
):
    new = trained(a_model(0), "layers.1.", step)
    found = foreign(a_model(0).state_dict(), new, tmp_path, dtype)
    assert found >= {f"layer1.{part} (packed)" for part in ("qkv", "out", "gate_up", "down")}
    assert all(name.startswith("layer1.") for name in found)


@pytest.mark.parametrize(("part", "name"), [("input_layernorm", "norm"), ("k_proj.bias", "qkv_bias")])
def test_old_norms_and_biases_are_named(tmp_path: Path, part: str, name: str):
    new = trained(a_model(0), f"layers.2.{'self_attn.' * ('bias' in part)}{part}", 1e-3)
    assert foreign(a_model(0).state_dict(), new, tmp_path, torch.float32) == {f"layer2.{name}"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tied_head_that_a_reload_left_stale_is_named(tmp_path: Path, dtype: torch.dtype):
    stale = a_model(0, tied=True).state_dict()["lm_head.weight"].clone()
    new = trained(a_model(0, tied=True), "embed_tokens", 1e-3)
    assert foreign(new.state_dict(), new, tmp_path, dtype) == set()
    assert foreign(new.state_dict(), new, tmp_path, dtype, head=stale) == {"lm_head (packed)", "lm_head.weight"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_quantized_engine_has_what_vllm_makes_of_the_file(tmp_path: Path, dtype: torch.dtype):
    how = {"linear": Quantized}
    assert foreign(a_model(0).state_dict(), a_model(0), tmp_path, dtype, **how) == set()
    new = trained(a_model(0), "layers.1.", 1e-3)
    found = foreign(a_model(0).state_dict(), new, tmp_path, dtype, **how)
    assert found >= {f"layer1.{part}.weight" for part in ("qkv", "out", "gate_up", "down")}
    assert all(name.startswith("layer1.") for name in found)


@pytest.mark.parametrize("wrong", ["codes", "scale"])
def test_a_row_of_a_quantized_matrix_with_wrong_codes_or_a_wrong_scale_is_named(tmp_path: Path, wrong: str):
    a_model(0).save_pretrained(tmp_path)
    held = engine(a_model(0).state_dict(), torch.bfloat16, linear=Quantized)
    assert not foreign_weights(held, tmp_path, torch.bfloat16)
    matrix: Any = held.get_submodule("layer2.down")
    if wrong == "codes":
        matrix.weight.data[:, 3] = matrix.weight.data[:, 3].contiguous().view(torch.uint8).bitwise_xor(1).view(fp8.CODE)
    else:
        matrix.weight_scale.data[3] *= 1 + 2e-7
    assert foreign_weights(held, tmp_path, torch.bfloat16) == {"layer2.down.weight"}


def test_a_gpus_part_of_the_columns_has_the_codes_of_the_whole_rows(tmp_path: Path):
    stored, dtype = a_model(0), torch.bfloat16
    stored.save_pretrained(tmp_path)
    held = engine(stored.state_dict(), dtype, linear=Quantized)
    down: Any = held.get_submodule("layer2.down")
    down.weight = torch.nn.Parameter(down.weight.data[80:], requires_grad=False)
    assert foreign_weights(held, tmp_path, dtype, Part(1, 2)) == set()
    assert foreign_weights(held, tmp_path, dtype, Part(0, 2)) == {"layer2.down.weight"}


def test_log_probs_in_fp8_pass_for_fp8_and_other_weights_do_not(tmp_path: Path):
    probe = probe_tokens(90, 64)
    a_model(0).save_pretrained(tmp_path)
    trained(a_model(0), "layers.1.", 0.2).save_pretrained(tmp_path / "other")

    def found(folder: Path, *, in_fp8: bool) -> Difference:
        peer = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        with torch.inference_mode(), fp8.linears_of(peer):
            logits = peer(torch.tensor([probe])).logits[0, :-1].float()
        said = logits.log_softmax(-1).gather(1, torch.tensor(probe[1:])[:, None])[:, 0].tolist()
        return expected(probe, tmp_path, torch.bfloat16, in_fp8=in_fp8).difference(said)

    assert found(tmp_path, in_fp8=True).is_rounding
    assert not found(tmp_path, in_fp8=False).is_rounding
    assert not found(tmp_path / "other", in_fp8=True).is_rounding


def said_by(folder: Path, dtype: torch.dtype, probe: list[int]) -> list[float]:
    with torch.inference_mode():
        model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
        logits: torch.Tensor = model(torch.tensor([probe])).logits[0, :-1].float()
    log_probs: list[float] = logits.log_softmax(-1).gather(1, torch.tensor(probe[1:])[:, None])[:, 0].tolist()
    return log_probs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_rounding_passes_and_other_weights_do_not(tmp_path: Path, dtype: torch.dtype, tied: bool):
    probe = probe_tokens(90, 64)
    a_model(0, tied=tied).save_pretrained(tmp_path)
    found = expected(probe, tmp_path, dtype).difference(said_by(tmp_path, dtype, probe))
    assert found.is_rounding
    assert found.rounding == 0 if dtype == torch.float32 else found.rounding > 0.003
    for part in ("layers.1.", "embed_tokens"):
        trained(a_model(0, tied=tied), part, 0.2).save_pretrained(tmp_path / "other")
        assert not expected(probe, tmp_path, dtype).difference(said_by(tmp_path / "other", dtype, probe)).is_rounding


def test_a_copy_that_is_held_in_bfloat16_computes_in_float32_what_a_float32_copy_does(tmp_path: Path):
    probe = probe_tokens(90, 64)
    a_model(0).to(torch.bfloat16).save_pretrained(tmp_path)
    found = expected(probe, tmp_path, torch.bfloat16).difference(said_by(tmp_path, torch.float32, probe))
    assert found.found < 1e-5 < found.rounding


def test_log_probs_that_are_not_numbers_do_not_count_as_rounding():
    assert not Difference(float("inf"), 0.1).is_rounding
    assert Difference(0.06, 0.07).is_rounding
    assert not Difference(2.0, 0.07).is_rounding
