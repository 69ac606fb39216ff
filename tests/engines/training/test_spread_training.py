"""Claims about weights sharded over workers (FSDP): every trainable weight is trained, and a killed worker's training
resumes.

The real trainer on the shipped seed model, two forked workers in a gloo group. test_many_workers.py and
test_sft_trainer.py compare the steps with one worker's.
"""

import functools
import itertools
import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests.engines.training.test_resume import some_pairs
from tests.engines.training.test_sft_trainer import some_demonstrations
from tests.engines.training.worker_group import end_of_workers, run_workers
from tests.sampling import sampled
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.resources import TrainerConfig
from tpo.config.training import LoraConfig, SftConfig, TrainConfig, TrainingConfig
from tpo.engines.training.distributed import rank
from tpo.engines.training.weights import check_optimizer, load_for_training, spread
from tpo.engines.training.worker import train_from_checkpoint, write_dataset
from tpo.errors import StageError
from tpo.records import Demonstration, Pair

SPREAD = TrainerConfig.model_construct(threads=1, workers=2, strategy="fsdp", checkpoint_share=1e9)
SFT = SftConfig(epochs=2, batch_size=8, micro_batch_size=4, learning_rate=1e-3)
DPO = TrainConfig(epochs=2, batch_size=8, micro_batch_size=4, learning_rate=1e-3)
STEPS = 6


def work(folder: Path, config: TrainingConfig, dies_at: int | None) -> None:
    def on_step(done: int, total: int) -> None:
        if total and done == dies_at and rank() == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    train_from_checkpoint(SHIPPED_SEED_MODEL, folder, config=config, trainer=SPREAD, seed=7, on_step=on_step)


TRAININGS: Mapping[str, tuple[TrainingConfig, Sequence[Demonstration | Pair]]] = {
    "sft": (SFT, some_demonstrations(21)),
    "dpo": (DPO, some_pairs(21)),
}
LORAS = {"full": None, "lora": LoraConfig(rank=4)}


@pytest.mark.parametrize(("training", "what"), sampled("spread", list(itertools.product(TRAININGS, LORAS)), 1))
def test_packed_and_sharded_every_trainable_weight_is_trained_and_a_killed_training_resumes(
    tmp_path: Path, training: str, what: str
):
    (config, rows), lora = TRAININGS[training], LORAS[what]
    config = config.model_copy(update={"packing": True, "lora": lora})
    write_dataset(rows, tmp_path / "dataset")
    ends = end_of_workers(2, functools.partial(work, tmp_path, config, 4))
    assert ends[0] == -signal.SIGKILL and all(ends), ends
    assert [path.name for path in (tmp_path / "trainer").glob("*.seal.json")] == ["checkpoint-3.seal.json"]
    run_workers(2, functools.partial(work, tmp_path, config, None))
    assert len((tmp_path / "steps.jsonl").read_text().splitlines()) == STEPS
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["step"] == STEPS
    before = load_file(SHIPPED_SEED_MODEL / "model.safetensors")
    after = load_file(tmp_path / "epoch_2" / "model.safetensors")
    still = {name for name, weight in after.items() if torch.equal(weight.float(), before[name].float())}
    adapted = {name for name in before if name.endswith("_proj.weight")}
    assert still == (before.keys() - adapted if lora else set())


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_weights_read_by_the_first_worker_reach_all_workers(tmp_path: Path, tied: bool):
    config = LlamaConfig(
        vocab_size=67, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path)

    def load() -> None:
        model = load_for_training(tmp_path, DPO, spread=True)
        assert {weight.is_meta for weight in model.parameters()} == {rank() > 0}
        spread(model, device="cpu", precision="float32")
        whole = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        weights = dict(model.named_parameters())
        assert weights.keys() == dict(whole.named_parameters()).keys()
        for name, expected in whole.named_parameters():
            found = weights[name]
            assert isinstance(found, DTensor) and 0 < found.to_local().numel() < expected.numel(), name
            assert torch.equal(found.full_tensor(), expected), name
        for name, expected in whole.named_buffers():
            assert torch.equal(dict(model.named_buffers())[name], expected), name
        assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
        ids = torch.arange(9)[None]
        torch.testing.assert_close(model(ids).logits, whole(ids).logits)

    run_workers(2, load)


def test_an_optimizer_that_would_not_train_a_weight_is_refused_with_its_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    check_optimizer(model, torch.optim.AdamW(model.parameters()), spread=False)
    with pytest.raises(StageError, match=r"4 of 4 trainable weights as they are trained, .* not train 0.bias, 0.weig"):
        check_optimizer(model, torch.optim.AdamW(model.parameters()), spread=True)
    with pytest.raises(StageError, match=r"2 of 4 trainable weights .* not train 1.bias, 1.weight"):
        check_optimizer(model, torch.optim.AdamW(model[0].parameters()), spread=False)
    model[1].requires_grad_(requires_grad=False)
    check_optimizer(model, torch.optim.AdamW(model[0].parameters()), spread=False)
