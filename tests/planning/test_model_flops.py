"""Claims about the arithmetic of a training: cases computed by hand, and no MFU without a known peak.

tests/engines/training/test_dpo_trainer.py compares it with what PyTorch counts.
"""

import pytest

from tpo.config.training import LoraConfig, TrainConfig, TrainingConfig
from tpo.models.shape import ModelShape
from tpo.planning.model_flops import (
    PEAK_TFLOPS,
    Reads,
    TrainingLoad,
    forward_flops,
    peak_tflops,
    reads_of,
    step_flops,
    training_load,
)
from tpo.planning.throughput import HARDWARE
from tpo.records import Demonstration, Pair

SHAPE = ModelShape(layers=2, hidden=16, heads=4, kv_heads=2, head_dim=4, intermediate=32, vocabulary=50, context=64)
BY_HAND = 2 * (16 * (2 * 16 + 2 * 8 + 3 * 32))
"""Weights of both layers: queries and outputs, keys and values, three matrices of the feed-forward part."""


def pair(prompt: int, chosen: int, rejected: int) -> Pair:
    return Pair("p", "regular", [1] * prompt, [1] * chosen, [1] * rejected, 0, 1, 1.0, 0.0, 1.0)


def test_a_pair_by_hand():
    # Sequences of 5 and 6 tokens: 5·6/2 + 6·7/2 tokens attended to.
    reads = reads_of(pair(3, 2, 3), packed=False)
    assert reads == Reads(tokens=11, scored=5, attended=15 + 21)
    forward = 2 * BY_HAND * 11 + 2 * 16 * 50 * 5 + 4 * 2 * 4 * 4 * 36
    assert forward_flops(SHAPE, reads) == forward
    assert step_flops(SHAPE, reads, TrainingConfig()) == 3 * forward


def test_a_packed_pair_reads_its_prompt_once():
    # 2 tokens of the prompt, then its last one with each output: 3 and 4 tokens that attend to those 2 as well.
    assert reads_of(pair(3, 2, 3), packed=True) == Reads(tokens=9, scored=5, attended=3 + (15 - 3) + (21 - 3))


def test_a_training_by_hand():
    rows = [pair(3, 2, 3), pair(4, 4, 4), pair(5, 1, 2)]
    config = TrainConfig(batch_size=2, micro_batch_size=2)
    load = training_load(rows, config, tokens=100, shape=SHAPE, gpu="NVIDIA H100 80GB HBM3", workers=4, reference=True)
    each = [forward_flops(SHAPE, reads_of(row, packed=False)) for row in rows]
    assert load == TrainingLoad(50, 3 * sum(each) / 2, sum(each), 4 * 989e12)
    assert load.mfu(0.4 * 4 * 989e12 * 10, 10) == pytest.approx(0.4)


def test_a_demonstration_reads_its_prompt_and_scores_its_output():
    row = Demonstration("p", [1] * 3, [1] * 4, "text", "given")
    assert reads_of(row, packed=False) == Reads(7, 4, 28)


def test_adapters_spare_the_gradients_of_frozen_weights():
    reads = reads_of(pair(3, 2, 3), packed=False)
    matrices, attention = 2 * BY_HAND * 11 + 2 * 16 * 50 * 5, 4 * 2 * 4 * 4 * 36
    adapters = 6 * SHAPE.lora_parameters(8) * 11
    assert step_flops(SHAPE, reads, TrainingConfig(lora=LoraConfig(rank=8))) == 2 * matrices + 3 * attention + adapters


@pytest.mark.parametrize(
    ("gpu", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("H100", 989),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla V100-SXM2-16GB", None),
        ("gpu", None),
    ],
)
def test_a_gpus_peak_is_the_published_one_or_unknown(gpu: str, peak: float | None):
    assert peak_tflops(gpu) == peak


def test_the_forecast_has_the_same_peaks():
    ours = {name: tflops for name, tflops in PEAK_TFLOPS if name in HARDWARE}
    assert ours and ours == {name: HARDWARE[name].tflops for name in ours}


@pytest.mark.parametrize(("gpu", "shape"), [(None, SHAPE), ("NVIDIA A10G", SHAPE), ("NVIDIA H200", None)])
def test_there_is_no_mfu_on_cpus_unknown_gpus_and_unknown_shapes(gpu: str | None, shape: ModelShape | None):
    load = training_load([pair(3, 2, 3)], TrainConfig(), tokens=11, shape=shape, gpu=gpu, workers=1, reference=True)
    assert load.mfu(1e12, 1.0) is None and load.step_tokens == 11
