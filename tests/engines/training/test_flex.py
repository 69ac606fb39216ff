"""Claims about packed rows in one call a layer: each sequence gives what it gives alone, in every family.

On GPUs FlexAttention is compiled; on CPUs it has no backward pass, but the operator below it has. So the models here
call that operator, with the masks and scores that the product makes, and are compared with themselves on sequences one
at a time.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters
from torch._higher_order_ops.flex_attention import flex_attention as operator
from torch.nn.attention.flex_attention import flex_attention
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Olmo3Config,
    Qwen3_5TextConfig,
    Qwen3Config,
)

from tpo.engines.training.check import packing_fault
from tpo.engines.training.flex import BLOCK, Compiled, attention_with, block_mask, register_packed_attentions
from tpo.engines.training.head import add_label_head
from tpo.engines.training.packing import PACKED, RowSpans, Spans
from tpo.engines.training.row_inputs import PAIR, output_log_probs, packed_row, padded_row

SIZES: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "pad_token_id": 0,
}  # fmt: skip
BOTH = ["sliding_attention", "full_attention"]
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "mistral, window of 16": lambda: MistralConfig(**SIZES, sliding_window=16),
    "gemma2, capped logits": lambda: Gemma2Config(
        **SIZES, sliding_window=16, attn_logit_softcapping=2.0, final_logit_softcapping=5.0, layer_types=BOTH
    ),
    "gemma3, windows": lambda: Gemma3TextConfig(**SIZES, sliding_window=16, layer_types=BOTH),
    "olmo3, windows": lambda: Olmo3Config(**SIZES, sliding_window=16, layer_types=BOTH),
    "gpt-oss, sinks": lambda: GptOssConfig(
        **SIZES, sliding_window=16, layer_types=BOTH, num_local_experts=4, num_experts_per_tok=2
    ),
}
OPERATOR = "tests_operator"
CALLS: list[tuple[int, ...]] = []


def kernel(
    query: Tensor, key: Tensor, value: Tensor, *, score_mod: Any, block_mask: Any, scale: Any, with_normalizers: bool
) -> tuple[Tensor, Tensor | None]:
    """FlexAttention's operator as autograd calls it, without the check that refuses gradients on CPUs."""
    CALLS.append(tuple(query.shape))
    groups = query.shape[1] // key.shape[1]
    options = dict.fromkeys(("PRESCALE_QK", "ROWS_GUARANTEED_SAFE", "BLOCKS_ARE_CONTIGUOUS", "OUTPUT_MAX"), False)
    found, normalizers, _ = operator(
        query,
        key.repeat_interleave(groups, 1),
        value.repeat_interleave(groups, 1),
        score_mod or (lambda score, *_: score),
        block_mask.as_tuple(),
        scale if scale is not None else query.shape[-1] ** -0.5,
        {**options, "OUTPUT_LOGSUMEXP": True, "WRITE_DQ": True},
    )
    return found, normalizers * math.log(2) if with_normalizers else None  # The operator's are in base 2.


def spans_of(bundles: Sequence[tuple[int, Sequence[int]]]) -> RowSpans:
    spans, end = [], 0

    def following(length: int) -> slice:
        nonlocal end
        end += length
        return slice(end - length, end)

    for shared, rests in bundles:
        spans.append(Spans(following(shared), [following(rest) for rest in rests]))
    return RowSpans(spans)


def slow_mask(spans: RowSpans, window: int | None) -> Tensor:
    """Which tokens attend to which, [queries, keys], sequence by sequence."""
    length = max(rest.stop for bundle in spans for rest in bundle.rests)
    mask = torch.zeros(length, length, dtype=torch.bool)
    for bundle in spans:
        for rest in bundle.rests:
            whole = [*range(length)[bundle.shared], *range(length)[rest]]
            for i, query in enumerate(whole):
                begin = 0 if window is None else max(0, i + 1 - window)
                mask[query, whole[begin : i + 1]] = True
    return mask


BUNDLES = st.lists(
    st.tuples(st.integers(0, 300), st.lists(st.integers(1, 300), min_size=1, max_size=3)), min_size=1, max_size=3
)


@given(BUNDLES, st.sampled_from([None, 1, 16, 200]))
@settings(max_examples=8)
def test_a_block_mask_says_what_a_slow_one_says(bundles: list[tuple[int, list[int]]], window: int | None):
    spans = spans_of(bundles)
    expected = slow_mask(spans, window)
    found = block_mask(spans, window=window, device="cpu")
    length = len(expected)
    index = torch.arange(length)
    allowed = found.mask_mod(torch.zeros(()), torch.zeros(()), index[:, None], index[None, :])
    assert (allowed == expected).all()
    some, all_ = listed(found.kv_num_blocks, found.kv_indices), listed(found.full_kv_num_blocks, found.full_kv_indices)
    for i in range(len(some)):
        for j in range(len(some)):
            block = expected[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
            assert some[i, j] or all_[i, j] or not block.any(), "a block is skipped that is needed"
            assert not (some[i, j] and all_[i, j])
            assert not all_[i, j] or block.all(), "a block is taken whole that isn't"


def listed(numbers: Any, indices: Any) -> Tensor:
    blocks = torch.zeros(indices.shape[-2:], dtype=torch.bool)
    for i, number in enumerate(numbers[0, 0].tolist()):
        blocks[i, indices[0, 0, i, :number].long()] = True
    return blocks


def listed_number(mask: Any) -> int:
    """Blocks that are taken whole."""
    return int(mask.full_kv_num_blocks.sum())


def test_what_needs_no_look_is_not_looked_at():
    """In a row of long sequences most blocks are skipped, and most of the others aren't masked."""
    found = block_mask(spans_of([(1000, [2000, 3000])] * 4), window=None, device="cpu")
    blocks = -(-24_000 // BLOCK)
    partial, full = int(found.kv_num_blocks.sum()), listed_number(found)
    assert partial < 0.3 * full < 0.3 * 0.1 * blocks**2
    near = block_mask(spans_of([(1000, [2000, 3000])] * 4), window=256, device="cpu")
    assert int(near.kv_num_blocks.sum()) + listed_number(near) < 7 * blocks


def a_model(name: str, attention: str | None = None) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[name](), attn_implementation="eager").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else None
    add_label_head(model)
    if attention:
        model.set_attn_implementation(attention)
    return model


def some_pairs(lengths: Sequence[tuple[int, int, int]]) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(0)
    names = ("prompt_ids", *PAIR)
    return [
        {name: torch.randint(3, 80, (n,), generator=generator).tolist() for name, n in zip(names, each, strict=True)}
        for each in lengths
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_sequence_gives_the_log_probabilities_and_gradients_that_it_gives_alone(name: str):
    pairs = some_pairs([(30, 50, 21), (5, 3, 40), (1, 9, 2)])
    alone = a_model(name)
    apart = torch.cat([output_log_probs(alone, padded_row([pair], PAIR, 0)).sums() for pair in pairs], 1)
    # Experts that no token took have no gradient.
    own: Sequence[Tensor | None] = torch.autograd.grad(
        (apart[0] - 2 * apart[1]).sum(), list(alone.parameters()), allow_unused=True
    )
    AttentionInterface.register(OPERATOR, attention_with(kernel))
    model = a_model(name, OPERATOR)
    CALLS.clear()
    packed = output_log_probs(model, packed_row(pairs, PAIR)).sums()
    assert len(CALLS) == model.config.num_hidden_layers, "one call a layer"
    other: Sequence[Tensor | None] = torch.autograd.grad(
        (packed[0] - 2 * packed[1]).sum(), list(model.parameters()), allow_unused=True
    )
    torch.testing.assert_close(packed, apart, atol=1e-4, rtol=1e-5)
    whole = torch.stack([gradient.norm() for gradient in own if gradient is not None]).norm()
    for mine, its in zip(other, own, strict=True):
        assert (mine is None) == (its is None)
        assert mine is None or its is None or (mine - its).norm() <= 1e-4 * whole


def test_it_is_the_operator_that_flex_attention_calls():
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 150, 8), torch.randn(1, 2, 150, 8), torch.randn(1, 2, 150, 8)
    mask = block_mask(spans_of([(20, [30, 40]), (0, [60])]), window=None, device="cpu")
    found, _ = kernel(query, key, value, score_mod=None, block_mask=mask, scale=None, with_normalizers=False)
    expected = flex_attention(query, key, value, block_mask=mask, enable_gqa=True)
    torch.testing.assert_close(found, expected)


def test_rows_of_any_length_share_one_compilation():
    """Traced as for a GPU; the code itself is made on GPUs only."""
    torch._dynamo.reset()
    counters.clear()
    compiled = Compiled(backend="eager")
    with torch.no_grad():
        for lengths in ([(20, [30, 40])], [(5, [7])], [(100, [80, 90]), (9, [200])], [(0, [129]), (40, [1, 2, 3])]):
            spans = spans_of(lengths)
            length = int(slow_mask(spans, None).shape[0])
            query = torch.randn(1, 4, length, 8)
            for window in (None, 16):
                mask = block_mask(spans, window=window, device="cpu")
                found, normalizers = compiled(
                    query, query, query, score_mod=None, block_mask=mask, scale=0.3, with_normalizers=True
                )
                scores = (0.3 * query @ query.mT).masked_fill(~slow_mask(spans, window), -math.inf)
                torch.testing.assert_close(found, scores.softmax(-1) @ query, atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(normalizers, scores.logsumexp(-1), atol=1e-5, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] <= 2, counters["stats"]


def test_a_mask_is_made_once_a_row_and_window():
    made: list[str] = []
    spans = spans_of([(3, [4])])
    for name in ("a", "b", "a"):
        spans.derived(name, functools.partial(made.append, name))
    assert made == ["a", "b"]


def on_meta(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", FAMILIES)
def test_workers_on_gpus_pack_families_that_workers_on_cpus_refuse(name: str):
    model = on_meta(FAMILIES[name]())
    assert packing_fault(model, 60, device="gpu") is None
    fault = packing_fault(model, 60, device="cpu")
    if name in ("llama", "qwen3"):
        assert fault is None
    else:
        assert fault is not None and fault.endswith("(which workers on GPUs can pack)")


def test_recurrent_layers_are_refused_on_gpus_too():
    """They would carry their state from one sequence to the next: Qwen3.5 has three in four layers of that kind."""
    mamba = MambaConfig(vocab_size=90, hidden_size=32, num_hidden_layers=2, state_size=4)
    linear = Qwen3_5TextConfig(
        **SIZES, layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2, linear_num_value_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8,
    )  # fmt: skip
    assert "0 of its 2 layers" in str(packing_fault(on_meta(mamba), 60, device="gpu"))
    assert "1 of its 2 layers" in str(packing_fault(on_meta(linear), 60, device="gpu"))


def test_cpus_keep_the_attention_span_by_span_and_gpus_fall_back_to_it():
    assert register_packed_attentions("cpu") == [PACKED]
    assert register_packed_attentions("cuda")[-1] == PACKED


@pytest.mark.gpu
@pytest.mark.parametrize("name", FAMILIES)
def test_a_gpus_kernel_gives_what_sequences_give_alone(name: str):
    pairs = some_pairs([(30, 50, 21), (5, 3, 40), (1, 9, 200)])
    model = a_model(name).cuda()

    def gradients(rows: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        model.zero_grad()
        sums = torch.cat(
            [output_log_probs(model, {k: v.cuda() if torch.is_tensor(v) else v for k, v in row.items()}).sums()
             for row in rows], 1
        )  # fmt: skip
        (sums[0] - 2 * sums[1]).sum().backward()
        return sums.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    apart, own = gradients([dict(padded_row([pair], PAIR, 0)) for pair in pairs])
    model.set_attn_implementation(register_packed_attentions("cuda")[0])
    packed, other = gradients([dict(packed_row(pairs, PAIR))])
    torch.testing.assert_close(packed, apart, atol=2e-2, rtol=1e-3)
    assert (own - other).norm() <= 1e-2 * own.norm()
