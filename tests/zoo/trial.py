"""Families taken through the whole product: `python -m tests.zoo.trial <folder> <results> [name …]`.

For each family, with the product's own code: check the model; sample four prompts; parse and judge the outputs; train
one DPO step on them, on packed rows if that is exact; save; load the saved folder in vLLM and in plain transformers and
compare the log-probs of the trained outputs with the trainer's; answer one request through the serving layer. Writes
one line of JSON per family. After a step that fails, the rest are skipped.

What differs from a run: engine and trainer are ordinary processes rather than Ray actors, which take longer to start
than everything else here, and vLLM's server is a shell around the engine that already exists. The trainer has its own
process, as in a run, because importing vLLM changes some of transformers' classes (OLMo 2 can't be built afterwards).
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
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
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
from flows.cli.check_model import check_model
from judges.base import groups_of
from judges.verifier import Verifier
from prompts.thought import VARIANTS
from tasks.sample import make_samples
from tests.zoo.families import ZOO, RealFamily
from tpo.config.data import PromptConfig, SampleConfig
from tpo.config.judges import VerifierJudge
from tpo.config.load import load_config
from tpo.config.resources import EngineConfig, TrainerConfig
from tpo.config.serve import SETTINGS, ServeConfig
from tpo.config.training import TrainConfig
from tpo.engines.inference.sampler import Engine, Output, Request, request_seed
from tpo.engines.training.worker import make_trainer, write_dataset
from tpo.models.chat import ChatEncoder
from tpo.records import Pair, Prompt
from tpo.report.model_report import ModelReport
from tpo.storage.store import folder_artifact

PROFILE = Path(__file__).parents[2] / "deploy" / "profiles" / "laptop.toml"
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
    epochs=1, batch_size=4, micro_batch_size=4, max_tokens=CONTEXT, learning_rate=1e-3, packing=True, warmup_ratio=0
)
TRAINER = TrainerConfig(threads=1)
TOLERANCE = 1e-5
"""Maximum difference of an output's log-prob in float32, relative to its size."""


class RefusedError(Exception):
    """The family is refused before any work."""


STEPS = ("check", "sample", "judge", "train", "load", "serve")
"""The steps of a trial, in order."""


@dataclass
class Result:
    """The result of one family."""

    name: str
    """The family."""
    refused: str = ""
    """Why `check-model` refuses it for TPO; the trial then continues with the prompt variant `direct`."""
    packed: bool = False
    """Whether it was trained on packed rows."""
    steps: dict[str, str] = field(default_factory=dict)
    """`ok` or the error, by step."""


class Trial:
    """One family's way through the steps."""

    def __init__(self, family: RealFamily, folder: Path, trainer: Executor) -> None:
        self.family = family
        self._trainer = trainer
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
        steps: Mapping[str, Callable[[], None]] = {name: getattr(self, f"_{name}") for name in STEPS}
        for name, step in steps.items():
            began = time.monotonic()
            try:
                step()
                self.result.steps[name] = "ok"
            except Exception as error:  # noqa: BLE001 - the table shows any library's error
                traceback.print_exc()
                kind = "" if isinstance(error, RefusedError) else f"{type(error).__name__}: "
                self.result.steps[name] = f"{kind}{error}"[:2000]
                break
            finally:
                print(f"{self.family.name} {name}: {time.monotonic() - began:.1f} s", file=sys.stderr)
        with contextlib.suppress(Exception):
            self._forget_engine()
        return self.result

    def _check(self) -> None:
        self.family.save(self._model)
        report = self._trainer.submit(checked, self._model).result()
        self._encoder = ChatEncoder(self._model)
        if report.refusals:
            self.result.refused = "; ".join(report.refusals).replace(f"{self._model}/", "")
            raise RefusedError(self.result.refused)
        self.result.packed = report.facts["packing"].startswith("yes")

    def _sample(self) -> None:
        prompt = VARIANTS[self._variant]
        prompt_ids = [prompt.encode(self._encoder, question) for question in QUESTIONS]
        self._requests = [Request(ids, request_seed("zoo", i)) for i, ids in enumerate(prompt_ids)]
        self._loaded(self._model)
        self._outputs = self._engine.generate(self._requests, SAMPLE, 2, 1, lambda *_: True)

    def _judge(self) -> None:
        prompt = VARIANTS[self._variant].for_model(self._encoder)
        prompts = [Prompt(f"p{i}", question, "42") for i, question in enumerate(QUESTIONS)]
        samples = make_samples(prompts, self._requests, self._outputs, prompt, self._encoder.decode)
        judge = Verifier(VerifierJudge())
        groups = groups_of(prompts, samples, with_errors=True)
        judged = [judge.score(group, judgments) for group, judgments in zip(groups, judge.judge(groups), strict=True)]
        _expect([len(scores) for scores in judged] == [2] * len(QUESTIONS), f"{judged} are not two scores a prompt")

    def _train(self) -> None:
        self._pairs = [
            Pair(f"p{i}", "regular", request.prompt_token_ids, first.token_ids, second.token_ids, 0, 1, 1.0, 0.0, 1.0)
            for i, (request, (first, second)) in enumerate(zip(self._requests, self._outputs, strict=True))
        ]
        write_dataset(self._pairs, self._trained / "dataset")
        config = TRAIN.model_copy(update={"packing": self.result.packed})
        self._log_probs = self._trainer.submit(trained_log_probs, self._model, self._trained, config).result()

    def _load(self) -> None:
        saved = self._trained / "epoch_1"
        self._loaded(saved)
        for name, found in (("vLLM", self._of_engine()), ("transformers", self._of_transformers(saved))):
            away = max(abs(its - ours) for its, ours in zip(found, self._log_probs, strict=True))
            print(self.family.name, name, away, found, file=sys.stderr)
            _expect(away <= TOLERANCE * max(map(abs, found)), f"{name} {found}, trainer {self._log_probs}")
        before = self._of_transformers(self._model)
        print(self.family.name, "before", before, file=sys.stderr)
        _expect(before != self._log_probs, "the step changed nothing")

    def _serve(self) -> None:
        config = ServeConfig(
            model=self._trained / "epoch_1",
            name="zoo",
            url="http://here",
            context_tokens=CONTEXT,
            prompt=PromptConfig.model_validate({"variant": self._variant}),
            max_attempts=1,
            temperature=0.8,
            top_p=1.0,
        )
        os.environ[SETTINGS] = config.model_dump_json()
        reply = asyncio.run(_ask(ResponsesOnly(self._completions)))
        _expect(reply.usage.completion_tokens > 0, f"the reply is {reply}")

    def _loaded(self, model: Path) -> None:
        """Loads a folder as a run does: with proof, and in a new engine if the live one can't load it."""
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

    def _of_transformers(self, folder: Path) -> list[float]:
        return self._trainer.submit(log_probs, folder, self._pairs).result()

    async def _completions(self, scope: Any, receive: Any, send: Any) -> None:
        """vLLM's /v1/completions, as far as the layer uses it."""
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


def checked(folder: Path) -> ModelReport:
    """The findings of `check-model` on a folder and its weights."""
    return check_model(str(folder), load_config(PROFILE), profile="laptop", weights=True, probe=False)


def trained_log_probs(model: Path, folder: Path, config: TrainConfig) -> list[float]:
    """Trains one step in this process and returns the trained model's log-probs of the chosen outputs."""
    trainer: Any = make_trainer(model, folder, config=config, trainer=TRAINER, seed=0, on_step=lambda done, total: None)
    trainer.train()
    _expect(trainer.state.global_step == 1, f"{trainer.state.global_step} steps were taken, expected one")
    found: list[float] = trainer._reference_log_probs(lambda: None)[0].tolist()
    return found


def log_probs(folder: Path, pairs: Sequence[Pair]) -> list[float]:
    """Log-probs of the chosen outputs, from plain transformers."""
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
    """Writes a line per family, for all families unless `names` are given."""
    import torch

    torch.set_num_threads(1)
    with results.open("w", encoding="utf-8") as lines, ProcessPoolExecutor(1, get_context("spawn")) as trainer:
        for family in ZOO:
            if not names or family.name in names:
                result = Trial(family, folder / family.name.replace(" ", "-"), trainer).run()
                lines.write(json.dumps(asdict(result)) + "\n")
                lines.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
