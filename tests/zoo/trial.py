"""Takes families through the whole product in one process: `python -m tests.zoo.trial <folder> <results> [name …]`.

For each family, with the product's own code: sample four prompts, parse and judge what comes; train one step of DPO on
it, packed if that is exact; save; load what was saved in vLLM and in plain transformers, and compare the log-probs of
the trained outputs with the trainer's; answer one request through the serving layer. One line of JSON a family; a step
that fails is given with its error, and the next ones are left out.

What differs from a run: engine and trainer are in this process and not in Ray's actors, since starting those takes
longer than all else here, and vLLM's server is a shell around the engine that is there already.
"""

import asyncio
import contextlib
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
}

from deploy.serving.layer import ResponsesOnly
from judges.base import groups_of
from judges.verifier import Verifier
from prompts.thought import VARIANTS
from tasks.sample import make_samples
from tests.zoo.families import ZOO, RealFamily
from tpo.config import EngineConfig, PromptConfig, SampleConfig, TrainConfig, TrainerConfig, VerifierJudge
from tpo.engines.chat import ChatEncoder
from tpo.engines.sampler import Engine, Output, Request, request_seed
from tpo.engines.training import make_trainer, write_dataset
from tpo.engines.training_check import check_training
from tpo.errors import InputError
from tpo.records import Pair, Prompt
from tpo.serve_config import SETTINGS, ServeConfig
from tpo.store import folder_artifact

CONTEXT = 512
QUESTIONS = (
    "Say hello.",
    "What is 12 + 30?\nAnswer briefly.",
    "  def f(x):\n    return x\n",
    "日本語で答えて。 Ça va ?",
)
SAMPLE = SampleConfig(max_new_tokens=12)
ENGINE = EngineConfig(threads=1, dtype="float32")
TRAIN = TrainConfig(
    epochs=1, batch_size=4, micro_batch_size=4, max_tokens=CONTEXT, learning_rate=1e-3, packing=True, warmup_share=0
)
TRAINER = TrainerConfig(threads=1)
TOLERANCE = 1e-5
"""How far the log-prob of an output may be off in float32, relative to its size."""


@dataclass
class Result:
    """What became of one family."""

    name: str
    """The family."""
    packed: bool = False
    """Whether it was trained on packed rows."""
    unpacked_because: str = ""
    """Why not, if not."""
    steps: dict[str, str] = field(default_factory=dict)
    """What was done, and `ok` or the error that ended it."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each took."""


class Trial:
    """One family on its way."""

    def __init__(self, family: RealFamily, folder: Path) -> None:
        self.family = family
        self.result = Result(family.name)
        self._folder = folder
        self._model, self._trained = folder / "model", folder / "train"
        self._variant = "generic"
        self._engine = Engine(ENGINE, CONTEXT)
        self._requests = list[Request]()
        self._outputs = list[list[Output]]()
        self._log_probs = list[float]()
        self._pairs = list[Pair]()

    def run(self) -> Result:
        """All steps in order, until one fails."""
        steps: Mapping[str, Callable[[], None]] = {
            "make": self._make,
            "sample": self._sample,
            "judge": self._judge,
            "train": self._train,
            "load": self._load,
            "serve": self._serve,
        }
        for name, step in steps.items():
            began = time.monotonic()
            try:
                step()
                self.result.steps[name] = "ok"
            except Exception as error:  # noqa: BLE001 - any library's error is what the table is to tell
                traceback.print_exc()
                self.result.steps[name] = f"{type(error).__name__}: {error}"[:2000]
                break
            finally:
                self.result.seconds[name] = round(time.monotonic() - began, 1)
        with contextlib.suppress(Exception):
            self._forget_engine()
        return self.result

    def _make(self) -> None:
        self.family.save(self._model)
        self._encoder = ChatEncoder(self._model)
        if self._encoder.thinking.always_thinks:
            self._variant = "direct"
        try:
            check_training(self._model, TRAIN, TRAINER)
            self.result.packed = TRAIN.packing
        except InputError as error:
            self.result.unpacked_because = str(error).removeprefix(f"{self._model}: ")

    def _sample(self) -> None:
        prompt = VARIANTS[self._variant]
        chats = [prompt.render(question) for question in QUESTIONS]
        self._requests = [Request(self._encoder.encode(c), request_seed("zoo", i)) for i, c in enumerate(chats)]
        self._loaded(self._model)
        self._outputs = self._engine.generate(self._requests, SAMPLE, 2, 1, lambda text, finished: True)

    def _judge(self) -> None:
        prompt = VARIANTS[self._variant].without_native_thoughts(self._encoder.thinking.tags)
        asked = [Prompt(f"p{i}", question, "42") for i, question in enumerate(QUESTIONS)]
        samples = make_samples(asked, self._requests, self._outputs, prompt)
        judge = Verifier(VerifierJudge())
        groups = groups_of(asked, samples, with_errors=True)
        judged = [judge.score(group, said) for group, said in zip(groups, judge.judge(groups), strict=True)]
        _expect([len(scores) for scores in judged] == [2] * len(QUESTIONS), f"{judged} are not two scores a prompt")

    def _train(self) -> None:
        self._pairs = [
            Pair(f"p{i}", "regular", request.prompt_token_ids, first.token_ids, second.token_ids, 0, 1, 1.0, 0.0, 1.0)
            for i, (request, (first, second)) in enumerate(zip(self._requests, self._outputs, strict=True))
        ]
        write_dataset(self._pairs, self._trained / "dataset")
        config = TRAIN.model_copy(update={"packing": self.result.packed})
        made: Any = make_trainer(
            self._model, self._trained, config=config, trainer=TRAINER, seed=0, on_step=lambda done, total: None
        )
        made.train()
        _expect(made.state.global_step == 1, f"{made.state.global_step} steps were made, expected one")
        self._log_probs = made._reference_log_probs(lambda: None)[0].tolist()

    def _load(self) -> None:
        saved = self._trained / "epoch_1"
        self._loaded(saved)
        for name, found in (("vLLM", self._of_engine()), ("transformers", _of_transformers(saved, self._pairs))):
            away = max(abs(its - ours) for its, ours in zip(found, self._log_probs, strict=True))
            print(self.family.name, name, away, found, file=sys.stderr)
            _expect(away <= TOLERANCE * max(map(abs, found)), f"{name} {found}, trainer {self._log_probs}")
        before = _of_transformers(self._model, self._pairs)
        print(self.family.name, "before", before, file=sys.stderr)
        _expect(before != _of_transformers(saved, self._pairs), "the step changed nothing")

    def _serve(self) -> None:
        config = ServeConfig(
            model=self._trained / "epoch_1",
            name="zoo",
            url="http://here",
            context_tokens=CONTEXT,
            prompt=PromptConfig.model_validate({"variant": self._variant}),
            tries=1,
            temperature=0.8,
            top_p=1.0,
        )
        os.environ[SETTINGS] = config.model_dump_json()
        reply = asyncio.run(_ask(ResponsesOnly(self._completions)))
        _expect(reply.usage.completion_tokens > 0, f"the reply is {reply}")

    def _loaded(self, model: Path) -> None:
        """Loads a folder as a run does: with proof, and in a new engine where the live one cannot take it."""
        if self._engine.load(folder_artifact(model)) is not None:
            self._forget_engine()
            fault = self._engine.load(folder_artifact(model))
            _expect(fault is None, str(fault))

    def _forget_engine(self) -> None:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._engine = Engine(ENGINE, CONTEXT)
        gc.collect()
        cleanup_dist_env_and_memory()

    def _of_engine(self) -> list[float]:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
        prompts = [{"prompt_token_ids": pair.prompt_token_ids + pair.chosen_token_ids} for pair in self._pairs]
        results = self._engine._llm.generate(prompts, params, use_tqdm=False)
        return [
            sum(
                result.prompt_logprobs[len(pair.prompt_token_ids) + i][token].logprob
                for i, token in enumerate(pair.chosen_token_ids)
            )
            for pair, result in zip(self._pairs, results, strict=True)
        ]

    async def _completions(self, scope: Any, receive: Any, send: Any) -> None:
        """vLLM's /v1/completions, as far as the layer asks for it."""
        from vllm import SamplingParams

        body = json.loads((await receive())["body"])
        params = SamplingParams(max_tokens=12, temperature=body["temperature"], seed=0)
        (result,) = self._engine._llm.generate([{"prompt_token_ids": body["prompt"]}], params, use_tqdm=False)
        (output,) = result.outputs
        choice = {"text": output.text, "finish_reason": output.finish_reason}
        line = json.dumps({"choices": [choice], "usage": {"completion_tokens": len(output.token_ids)}})
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": f"data: {line}\n\n".encode()})


def _of_transformers(folder: Path, pairs: Sequence[Pair]) -> list[float]:
    """Log-probs of the chosen outputs, by plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    found = []
    for pair in pairs:
        prompt, output = pair.prompt_token_ids, pair.chosen_token_ids
        with torch.no_grad():
            logits = model(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1]
        found.append(logits.log_softmax(-1)[range(len(output)), output].sum().item())
    return found


async def _ask(layer: Any) -> Any:
    import httpx
    import openai

    http = httpx.AsyncClient(transport=httpx.ASGITransport(app=layer))
    client: Any = openai.AsyncOpenAI(
        base_url="http://here/v1",
        api_key="sk",
        max_retries=0,
        http_client=http,  # type: ignore[arg-type]
    )
    return await client.chat.completions.create(model="zoo", messages=[{"role": "user", "content": "Say hello."}])


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise AssertionError(otherwise)


def main(folder: Path, results: Path, names: Sequence[str]) -> None:
    """Writes a line a family; all of them without `names`."""
    import torch

    torch.set_num_threads(1)
    with results.open("w", encoding="utf-8") as lines:
        for family in ZOO:
            if not names or family.name in names:
                lines.write(json.dumps(asdict(Trial(family, folder / family.name.replace(" ", "-")).run())) + "\n")
                lines.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
