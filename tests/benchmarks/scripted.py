"""The steps of an iteration as scripts run them, as a peer for `bench_laptop`: a process each, one after the other.

As in RLHFlow's Online-RLHF and in RLMT's code: `generate` starts vLLM and samples K outputs of all prompts in one
call, `score` scores the responses and selects the best and the worst, `train` runs TRL's DPOTrainer on the pairs,
padded, with the reference model beside it. Same model, prompts, K, temperature, judge, pairs a step, epochs and
precision as the profile `laptop`; no checkpoint is validated, no model tested, nothing is checked or resumable.

`AT_ONCE` is the number of pairs in a batch, accumulated to a step of 32. RLHFlow's configs (configs/training.yaml,
configs/training_loop.yaml, run_loop2.sh) have 1 with gradient checkpointing, which fits an 8B model. 32, without
checkpointing, is faster on a model as small as this.

    python -m tests.benchmarks.scripted generate|score FOLDER ITERATION
    python -m tests.benchmarks.scripted train FOLDER ITERATION AT_ONCE
"""

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPTS, K, EPOCHS, BATCH = 400, 8, 3, 32
LENGTH_BIAS = 0.3


def generate(folder: Path, iteration: int) -> None:
    """Samples K outputs of the iteration's prompts with M_{t-1}."""
    from vllm import LLM, SamplingParams

    from prompts.thought import VARIANTS
    from tpo.miniature.world import problems
    from tpo.models.chat import ChatEncoder

    model = _model(folder, iteration - 1)
    encoder, thought_prompt = ChatEncoder(model), VARIANTS["generic"]
    rows = [*itertools.islice(problems("train", 0), PROMPTS * (iteration - 1), PROMPTS * iteration)]
    llm = LLM(
        model=str(model), dtype="float32", max_model_len=512, enforce_eager=True, enable_chunked_prefill=False,
        block_size=32, max_num_batched_tokens=8192,
    )  # fmt: skip
    params = SamplingParams(n=K, temperature=0.8, top_p=0.95, max_tokens=96)
    prompts: list[Any] = [{"prompt_token_ids": thought_prompt.encode(encoder, row.instruction)} for row in rows]
    results = llm.generate(prompts, params, use_tqdm=False)
    written = [
        {"instruction": row.instruction, "answer": row.reference, "outputs": [output.text for output in result.outputs]}
        for row, result in zip(rows, results, strict=True)
    ]
    (folder / f"samples_{iteration}.json").write_text(json.dumps(written))


def score(folder: Path, iteration: int) -> None:
    """Scores the responses, and writes the best and the worst output of each prompt."""
    import re

    from prompts.thought import VARIANTS
    from tpo.config.judges import VerifierJudge

    pattern, thought_prompt = re.compile(VerifierJudge().answer_pattern), VARIANTS["generic"]
    pairs = []
    for row in json.loads((folder / f"samples_{iteration}.json").read_text()):
        scored = []
        for output in row["outputs"]:
            response = thought_prompt.split(output, finished=True).response
            found = pattern.search(response)
            right = found is not None and found.group(found.lastindex or 0).strip() == row["answer"]
            scored.append((right + LENGTH_BIAS * len(response) / 100, output))
        best, worst = max(scored), min(scored)
        if best[0] > worst[0]:
            asked = thought_prompt.render(row["instruction"])
            pairs.append({"prompt": asked, "chosen": best[1], "rejected": worst[1]})
    (folder / f"pairs_{iteration}.json").write_text(json.dumps(pairs))


def train(folder: Path, iteration: int, at_once: int) -> None:
    """M_t by TRL's DPOTrainer."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    before, after = _model(folder, iteration - 1), _model(folder, iteration)
    pairs = json.loads((folder / f"pairs_{iteration}.json").read_text())
    rows = [
        {
            "prompt": pair["prompt"],
            **{side: [{"role": "assistant", "content": pair[side]}] for side in ("chosen", "rejected")},
        }
        for pair in pairs
    ]
    config = DPOConfig(
        output_dir=str(folder / "trainer"), num_train_epochs=EPOCHS, per_device_train_batch_size=at_once,
        gradient_accumulation_steps=BATCH // at_once, gradient_checkpointing=at_once < BATCH, beta=0.1,
        learning_rate=1e-4, bf16=False, use_cpu=True, report_to=[], save_strategy="epoch", save_total_limit=1,
        max_length=352, disable_tqdm=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(before)
    tokenizer = AutoTokenizer.from_pretrained(before)
    trainer = DPOTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(after))
    tokenizer.save_pretrained(after)


def _model(folder: Path, iteration: int) -> Path:
    from tpo.config.base import SHIPPED_SEED_MODEL

    return folder / f"model_{iteration}" if iteration else SHIPPED_SEED_MODEL


if __name__ == "__main__":
    steps: dict[str, Callable[..., None]] = {"generate": generate, "score": score, "train": train}
    steps[sys.argv[1]](Path(sys.argv[2]), *map(int, sys.argv[3:]))
