"""Claims about top-p on CPUs: it masks the tokens that vLLM's own sort does, and each request keeps its own p."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

from tpo.engines.inference.sampler import TOP_P
from tpo.engines.inference.top_p import LARGEST, TopP, mask_top_p

P = (0.05, 0.5, 0.9, 0.95, 0.999, 1.0)


def by_vllm(logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = apply_top_k_top_p_pytorch(logits.clone(), None, top_p, allow_cpu_sync=True)
    return found


@pytest.mark.parametrize("vocabulary", [5, LARGEST[0], LARGEST[0] + 1, 504, 4096, 49152])
@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("rounded", [False, True], ids=["float32", "bfloat16"])
def test_the_same_tokens_are_masked_as_by_vllm(vocabulary: int, scale: float, rounded: bool):
    """Flat, usual and peaked distributions; in bfloat16 many logits are equal."""
    random = torch.Generator().manual_seed(vocabulary)
    logits = scale * torch.randn(24, vocabulary, generator=random)
    if rounded:
        logits = logits.bfloat16().float()
    top_p = torch.tensor([P[i % len(P)] for i in range(24)])
    assert torch.equal(mask_top_p(logits.clone(), top_p), by_vllm(logits, top_p))


@given(st.lists(st.sampled_from([-torch.inf, -3.0, 0.0, 0.5, 1.0, 9.0]), min_size=1, max_size=9), st.sampled_from(P))
def test_few_equal_and_forbidden_logits_are_masked_alike(few: list[float], p: float):
    logits = torch.full((2, 200), -torch.inf)
    logits[0, 50 : 50 + len(few)] = torch.tensor(few)
    logits[0, 7], logits[1, 3] = 2.0, 0.0
    top_p = torch.tensor([p, p])
    assert torch.equal(mask_top_p(logits.clone(), top_p), by_vllm(logits, top_p))


def test_a_sum_that_rounding_decides_is_left_to_vllm():
    """Ten tokens of probability 0.1, and p at each of their sums."""
    logits = torch.full((10, 200), -torch.inf)
    logits[:, ::20] = 0.0
    top_p = torch.arange(1, 11) / 10
    assert torch.equal(mask_top_p(logits.clone(), top_p), by_vllm(logits, top_p))


def asks(p: float | None) -> SamplingParams:
    return SamplingParams(extra_args=None if p is None else {TOP_P: p})


def test_each_request_keeps_its_own_p_when_rows_move():
    processor = TopP(None, torch.device("cpu"), False)
    logits = torch.randn(3, 504, generator=torch.Generator().manual_seed(0))
    assert processor.apply(logits.clone()).isfinite().all(), "nobody asks for it"
    added: list[Any] = [(0, asks(0.5), None, []), (1, asks(None), None, []), (2, asks(0.9), None, [])]
    processor.update_state(BatchUpdate(batch_size=3, removed=[], added=added, moved=[]))
    expected = by_vllm(logits, torch.tensor([0.5, 1.0, 0.9]))
    expected[1] = logits[1]
    assert torch.equal(processor.apply(logits.clone()), expected)
    swap = [(0, 2, MoveDirectionality.SWAP)]
    processor.update_state(BatchUpdate(batch_size=3, removed=[1], added=[], moved=swap))
    both = by_vllm(logits, torch.tensor([0.9, 1.0, 0.5]))
    both[1] = logits[1]
    assert torch.equal(processor.apply(logits.clone()), both)
    processor.update_state(
        BatchUpdate(batch_size=1, removed=[0], added=[], moved=[(2, 0, MoveDirectionality.UNIDIRECTIONAL)])
    )
    assert torch.equal(processor.apply(logits[:1].clone()), by_vllm(logits[:1], torch.tensor([0.5])))


class SortedRows(TorchDispatchMode):
    """Counts the rows that are sorted."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().startswith("aten::sort"):
            self.rows += len(args[0])
        return func(*args, **(kwargs or {}))


def test_only_rows_in_doubt_are_sorted():
    logits = torch.randn(8, 4096, generator=torch.Generator().manual_seed(0))
    logits[:, :40] += 14.0
    logits[3] = 0.001 * logits[3]  # flat: its nucleus is most of the vocabulary
    logits[5, :40] = 14.0
    with SortedRows() as found:
        mask_top_p(logits, torch.full((8,), 0.95))
    assert found.rows == 2
