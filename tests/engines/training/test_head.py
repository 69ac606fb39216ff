"""Claims about the head in training: on CPUs it computes labelled positions only, and gives what a softmax gives."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Cohere2Config, GPTJConfig, LlamaConfig
from trl.trainer.utils import add_fused_lm_head

from tpo.engines.training import head
from tpo.engines.training.head import NO_LABEL, add_label_head

SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def a_model(**more: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, **more)).eval()


def asked(labels: list[int]) -> dict[str, Any]:
    ids = torch.arange(len(labels))[None] + 3
    return {"input_ids": ids, "shift_labels": torch.tensor([labels]), "use_cache": False, "fused_lm_head": True}


@given(st.lists(st.one_of(st.just(NO_LABEL), st.integers(0, 299)), min_size=1, max_size=40), st.booleans())
@settings(max_examples=10)
def test_labelled_positions_get_the_log_probabilities_and_gradients_of_a_softmax(labels: list[int], tied: bool):
    model = a_model(tie_word_embeddings=tied)
    inputs = asked(labels)
    expected = torch.log_softmax(model(inputs["input_ids"]).logits[0].double(), 1)
    weighed = torch.arange(len(labels)) + 1.0
    kept = [i for i, label in enumerate(labels) if label != NO_LABEL]
    sum_of_all = sum((weighed[i] * expected[i, labels[i]] for i in kept), 0 * expected.sum())
    own = torch.autograd.grad(sum_of_all, list(model.parameters()))
    add_label_head(model)
    found = model(**inputs).log_probs
    other = torch.autograd.grad((found[0] * weighed).sum(), list(model.parameters()))
    for i, label in enumerate(labels):
        assert found[0, i].item() == pytest.approx(expected[i, label].item() if i in kept else 0.0, abs=1e-5)
    whole = torch.stack([gradient.norm() for gradient in own]).norm()
    for mine, its in zip(other, own, strict=True):
        assert (mine - its).norm() <= 1e-5 * whole + 1e-6


@pytest.mark.parametrize("tokens", [1, 7, 5000])
def test_a_vocabulary_is_cut_into_tiles_that_cover_it_once(tokens: int):
    weight = torch.empty(2 * head._MIN_COLUMNS + 17, 4)
    tiles = [tile for tile, _ in head._tiles(torch.empty(tokens, 4), weight)]
    assert [row for tile in tiles for row in range(tile.start, tile.stop)] == list(range(len(weight)))


def test_only_labelled_positions_are_computed():
    model = a_model()
    add_label_head(model)
    inputs = asked([NO_LABEL] * 30 + [5, 6])
    with torch.no_grad(), torch.profiler.profile(record_shapes=True) as seen:
        model(**inputs)
    products = [event.input_shapes for event in seen.events() if event.name == "aten::mm"]
    assert [[2, 32], [32, 300]] in [shapes[:2] for shapes in products]
    assert not any([32, 300] in shapes and [32, 32] in shapes for shapes in products)


def test_padded_rows_keep_trls_numbers_to_the_last_bit():
    """Results of runs without packing, the golden ones among them, don't change."""
    model, trls = a_model(), a_model()
    add_label_head(model)
    add_fused_lm_head(trls, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    ids = torch.arange(40).view(2, 20)
    given_ = {"input_ids": ids, "labels": ids, "use_cache": False, "fused_lm_head": True}
    mine, its = model(**given_).log_probs, trls(**given_).log_probs
    assert (mine == its).all()
    mine.sum().backward()
    its.sum().backward()
    assert all((one.grad == other.grad).all() for one, other in zip(model.parameters(), trls.parameters(), strict=True))


def test_without_labels_a_model_answers_as_before():
    model = a_model()
    ids = torch.arange(12)[None]
    expected = model(ids).logits
    add_label_head(model)
    assert (model(ids).logits == expected).all()
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 15)


@pytest.mark.parametrize(
    "config",
    [
        Cohere2Config(**SIZES, head_dim=8, logit_scale=0.5, sliding_window=64, pad_token_id=0),
        GPTJConfig(vocab_size=300, n_embd=32, n_layer=2, n_head=4, rotary_dim=4),
    ],
    ids=["scaled logits", "a bias"],
)
def test_a_head_that_is_more_than_a_product_is_computed_as_a_whole(config: Any):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    if model.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    inputs = asked([NO_LABEL, 4, 5, NO_LABEL, 7])
    expected = torch.log_softmax(model(inputs["input_ids"]).logits[0], 1)
    add_label_head(model)
    found = model(**inputs).log_probs[0]
    torch.testing.assert_close(found[[1, 2, 4]], expected[[1, 2, 4], [4, 5, 7]], atol=1e-5, rtol=1e-5)
