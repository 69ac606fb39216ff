"""FP8 arithmetic as vLLM does it with `fp8_per_channel`, in torch: what its engines are compared with.

Every linear layer but the head multiplies 8-bit floats (e4m3: 4 bits of exponent, 3 of mantissa) and adds up in
float32. A weight's row has one scale, computed from the file when it is loaded; a token's activations have one each
time. Embeddings, norms, attention and the head stay in the engine's dtype. A row's codes depend on nothing but that
row, however vLLM fuses matrices or splits them over GPUs, so rows of an engine can be looked up among the file's.

The numbers are vLLM's own, bit for bit (`vllm/model_executor/layers/quantization/online/fp8.py` for weights,
`input_quant_fp8.py` for activations), on CPUs; a GPU's kernels may round an activation that lies in the middle between
two codes the other way.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch

CODE = torch.float8_e4m3fn
"""The 8-bit floats."""
MAX = 448.0
"""Largest number of e4m3."""
MIN_SCALE = 1 / (MAX * 512)
"""Smallest scale, which rows of zeros have, too."""


def row_scales(matrix: torch.Tensor) -> torch.Tensor:
    """The scale of each row of a matrix (…, rows, columns), as float32 of shape (…, rows, 1)."""
    # A tensor as divisor: torch multiplies by the reciprocal of a number, which rounds differently.
    return (matrix.abs().amax(-1, keepdim=True).float() / torch.tensor(MAX)).clamp(min=MIN_SCALE)


def codes(matrix: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The e4m3 numbers of a weight's rows or of some of their columns."""
    return (matrix / scales).clamp(-MAX, MAX).to(CODE)


def token_codes(activations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The e4m3 numbers of activations (…, hidden), and the scale of each token (…, 1)."""
    scales = row_scales(activations)
    return (activations.float() * scales.reciprocal()).clamp(-MAX, MAX).to(CODE), scales


def linear(activations: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A linear layer with an unquantized weight (out, in), in FP8; the result has the activations' dtype."""
    scales = row_scales(weight)
    inputs, input_scales = token_codes(activations)
    found = inputs.float() @ codes(weight, scales).float().T * input_scales * scales.T
    return (found if bias is None else found + bias).to(activations.dtype)


@contextlib.contextmanager
def linears_of(model: Any) -> Iterator[None]:
    """Has a model of transformers compute its linear layers in FP8, except the head."""
    head = model.get_output_embeddings()
    changed: list[Any] = [
        module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head
    ]
    for module in changed:
        module.forward = functools.partial(_forward, module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _forward(module: torch.nn.Linear, activations: torch.Tensor) -> torch.Tensor:
    return linear(activations, module.weight, module.bias)
