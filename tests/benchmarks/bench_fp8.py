"""What FP8 (`quantization = "fp8_per_channel"`) changes in samples and scores, compared with bfloat16 and float32.

Three parts, each in all three precisions:

1. **Sampling** by vLLM: the miniature's seed model answers test problems, greedily and with the same seeds. Right
   answers with a 95 % interval, the difference to float32 on the same problems, and the share of greedy outputs that
   are the same, token for token.
2. **Judging** by vLLM: the miniature's evaluator compares 4 different answers of a problem in both orders, with an
   explanation or by the probabilities of its verdicts, and rates them. Its ratings are compared with those in float32
   (Spearman's correlation within a problem, best and worst pairs that change) and with the verifier (share of right
   answers rated above wrong ones).
3. **Log-probs** of SmolLM2-135M-Instruct at the tokens that it sampled in float32, over the whole vocabulary, computed
   by transformers: with FP8's arithmetic in its linear layers (`tpo.engines.inference.fp8`), a simulation. vLLM's own
   FP8 engine computes the log-probs of the first outputs, too: what it says is compared with the simulation.

vLLM computes FP8 on a CPU with a reference kernel, so this says what FP8 changes and nothing about its speed; on a GPU
it adds up in another order. Run with `python -m tests.benchmarks.bench_fp8`; takes about half an hour on two cores, and
`--problems 0`, `--judged 0` and `--tasks 0` leave out a part. Part 3 needs the model: make fetch PROFILE=smollm2-135m.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from flows.cli.miniature import group_of
from judges.base import Group
from judges.registry import build_judge
from judges.verifier import Verifier
from prompts.thought import VARIANTS
from tests.benchmarks import measure
from tests.benchmarks.bench_sampling import MODEL, writing_requests
from tests.benchmarks.bench_starts import with_actor
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.data import SampleConfig
from tpo.config.judges import PairwiseJudge, VerifierJudge
from tpo.config.resources import ClusterConfig, EngineConfig, JudgeEngineConfig
from tpo.engines.cluster.room import Room
from tpo.engines.engines import open_engines
from tpo.engines.inference.reply import TokenCount
from tpo.engines.inference.sampler import Engine, Output, Request, SamplerPool, request_seed
from tpo.miniature.seed_model import CONTEXT_TOKENS
from tpo.miniature.world import Problem, problems
from tpo.models.chat import ChatEncoder
from tpo.storage.store import folder_artifact

if TYPE_CHECKING:
    import torch

PRECISIONS: Mapping[str, Mapping[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "FP8": {"dtype": "bfloat16", "quantization": "fp8_per_channel"},
}
"""The engines' settings by name; the first is what the others are compared with."""
Mode = Literal["cot", "probability"]
MODES: tuple[Mode, ...] = ("cot", "probability")
"""How the evaluator judges: it explains itself and decides, or gives the probabilities of both verdicts at once."""
K = 4
"""Responses that are judged together."""
SAMPLED = SampleConfig()
GREEDY = SAMPLED.model_copy(update={"temperature": 0.0})
BY_ENGINE = 4
"""Outputs of part 3 that vLLM's FP8 engine reads, too; it takes most of a minute for each."""
Floats = NDArray[np.float64]


class ReadingEngine(Engine):
    """The product's engine, which also says how probable given tokens are."""

    def log_probs(self, ids: Sequence[int]) -> list[float]:
        """Log-probs of all tokens but the first, each given those before."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)

        def read() -> Any:
            return self._llm.generate([{"prompt_token_ids": [*ids]}], [params], use_tqdm=False)

        (result,) = self._batch.run(read)
        return [found[token].logprob for token, found in zip(ids[1:], result.prompt_logprobs[1:], strict=True)]


@dataclass(frozen=True)
class Rated:
    """The evaluator's ratings in one precision."""

    values: list[Floats]
    """One array a problem: the rating of each response."""
    outcomes: list[float | None]
    """All verdicts."""


def main() -> None:
    """Measures and prints."""
    chosen = measure.options(__doc__, threads=1, problems=600, judged=100, tasks=24)
    print(measure.describe_machine(chosen.threads))
    if chosen.problems:
        _compare_samples(_problems(chosen.problems))
    if chosen.judged:
        _compare_ratings(_problems(chosen.judged))
    if chosen.tasks:
        _compare_log_probs(chosen.tasks)


def _problems(count: int) -> list[Problem]:
    return list(itertools.islice(problems("test", 0), count))


def _compare_samples(asked: Sequence[Problem]) -> None:
    print(f"\nSampling: the miniature's seed model, {len(asked)} test problems")
    greedy, right = {}, {}
    for name in PRECISIONS:
        with _writer(name) as write:
            greedy[name] = [output.token_ids for (output,) in write(asked, GREEDY, 1)]
            right[name] = _right(asked, write(asked, SAMPLED, 1))
        away = right[name] - right["float32"]
        pairs = list(zip(greedy[name], greedy["float32"], strict=True))
        same, tokens = np.mean([a == b for a, b in pairs]), np.mean([_common(a, b) for a, b in pairs])
        print(
            f"{name:9s} right {_interval(right[name])}, less float32 {_interval(away)}; greedy outputs the same "
            f"{same:.3f}, share of tokens before the first other one {tokens:.3f}",
            flush=True,
        )


def _compare_ratings(asked: Sequence[Problem]) -> None:
    groups, correct = _answers(asked)
    print(f"\nJudging: the miniature's evaluator, {len(groups)} problems with {K} answers, all pairs in both orders")
    for mode in MODES:
        rated = {name: _rated(name, mode, groups) for name in PRECISIONS}
        exact = rated["float32"]
        for name, found in rated.items():
            pairs = list(zip(found.values, exact.values, strict=True))
            ranks = [_spearman(mine, other) for mine, other in pairs]
            changed = [mine.argmax() != other.argmax() or mine.argmin() != other.argmin() for mine, other in pairs]
            away = np.concatenate([mine - other for mine, other in pairs]).std() / np.concatenate(exact.values).std()
            sides = list(zip(found.outcomes, exact.outcomes, strict=True))
            other_verdicts = [(a is None) != (b is None) or np.sign(a or 0) != np.sign(b or 0) for a, b in sides]
            agrees = [
                0.5 + 0.5 * float(np.sign(values[i] - values[j]))
                for values, right in zip(found.values, correct, strict=True)
                for i, j in itertools.permutations(range(len(values)), 2)
                if right[i] and not right[j]
            ]
            print(
                f"{mode:11s} {name:9s} Spearman {np.mean(ranks):.3f}, ratings off by {away:.3f} of their standard "
                f"deviation, best or worst other {_interval(np.array(changed, float))}, verdicts other "
                f"{np.mean(other_verdicts):.3f} of {len(sides)}; right above wrong {_interval(np.array(agrees))}",
                flush=True,
            )


def _compare_log_probs(tasks: int) -> None:
    import torch

    requests = writing_requests(tasks)
    pool = SamplerPool(_config("float32"), ClusterConfig(), 512, room=Room())
    sample = SampleConfig(max_new_tokens=64)
    found = dict(pool.generate(folder_artifact(MODEL), [requests], sample, n=1, tries=1, accept=_accept))
    pool.close()
    rows = [(request.prompt_token_ids, output.token_ids) for request, (output,) in zip(requests, found[0], strict=True)]
    count = sum(len(output) for _, output in rows)
    print(f"\nLog-probs: SmolLM2-135M-Instruct, {count} tokens of {tasks} outputs, by transformers; FP8 is simulated")
    said = {name: _distributions(name, rows) for name in PRECISIONS}
    exact = torch.cat(said["float32"])
    tokens = torch.tensor([token for _, output in rows for token in output])[:, None]
    for name, parts in said.items():
        mine = torch.cat(parts)
        divergence = (exact.exp() * (exact - mine)).sum(-1)
        away = (mine - exact).gather(1, tokens)[:, 0]
        first = (mine.argmax(-1) == exact.argmax(-1)).double()
        print(
            f"{name:9s} KL(float32, it) {float(divergence.mean()):.2e} nats a token (median "
            f"{float(divergence.median()):.2e}, largest {float(divergence.max()):.2e}); most probable token the same "
            f"{_interval(first.numpy())}; log-prob of the sampled token off by {_rms(away):.4f} (root mean square), "
            f"on average by {float(away.mean()):+.4f}",
            flush=True,
        )
    _compare_engine(rows[:BY_ENGINE], said)


def _compare_engine(rows: Sequence[tuple[list[int], list[int]]], said: "Mapping[str, Sequence[torch.Tensor]]") -> None:
    """vLLM's FP8 engine next to the simulation on some outputs."""
    import ray
    import torch

    pool = with_actor(SamplerPool(_config("FP8"), ClusterConfig(), 512, room=Room()), ReadingEngine)
    one = SampleConfig(max_new_tokens=1)
    list(pool.generate(folder_artifact(MODEL), [[Request([1, 9, 300], 0)]], one, n=1, tries=1, accept=_accept))
    (engine,) = pool.actor_pool.actors
    read = [ray.get(engine.log_probs.remote([*prompt, *output]))[-len(output) :] for prompt, output in rows]
    pool.close()
    by_vllm = torch.tensor([value for each in read for value in each])

    def of_tokens(name: str) -> "torch.Tensor":
        parts = zip(said[name], rows, strict=False)
        return torch.cat([part.gather(1, torch.tensor(output)[:, None])[:, 0] for part, (_, output) in parts])

    away = {name: _rms(by_vllm - of_tokens(name)) for name in PRECISIONS}
    print(
        f"vLLM's FP8 engine, {len(by_vllm)} tokens of the first {len(rows)} outputs: off by {away['FP8']:.4f} from the "
        f"simulation, by {away['float32']:.4f} from float32; the simulation by "
        f"{_rms(of_tokens('FP8') - of_tokens('float32')):.4f} from float32"
    )


def _config(precision: str) -> EngineConfig:
    return EngineConfig.model_validate({"max_num_seqs": 32} | dict(PRECISIONS[precision]))


Write = Callable[[Sequence[Problem], SampleConfig, int], list[list[Output]]]
"""Samples that many outputs for each problem."""


@contextlib.contextmanager
def _writer(precision: str) -> Iterator[Write]:
    """The seed model in an engine."""
    encoder, prompt = ChatEncoder(SHIPPED_SEED_MODEL), VARIANTS["generic"]
    pool = SamplerPool(_config(precision), ClusterConfig(), CONTEXT_TOKENS, room=Room())
    model = folder_artifact(SHIPPED_SEED_MODEL)

    def write(asked: Sequence[Problem], sample: SampleConfig, n: int) -> list[list[Output]]:
        requests = [Request(prompt.encode(encoder, each.instruction), request_seed(each.instruction)) for each in asked]
        return dict(pool.generate(model, [requests], sample, n=n, tries=1, accept=_accept))[0]

    try:
        yield write
    finally:
        pool.close()


def _right(asked: Sequence[Problem], outputs: Sequence[Sequence[Output]]) -> Floats:
    """1 for a problem whose first output is right, 0 otherwise."""
    texts = [VARIANTS["generic"].split(output.text, finished=output.finished).response for output, *_ in outputs]
    groups = [group_of(problem, text) for problem, text in zip(asked, texts, strict=True)]
    return np.array([judgment.outcome == 1 for (judgment,) in Verifier(VerifierJudge()).judge(groups)], float)


def _answers(asked: Sequence[Problem]) -> tuple[list[Group], list[list[bool]]]:
    """Problems with K different answers of the seed model, sampled in float32, and which of them are right."""
    groups, correct, verifier = [], [], Verifier(VerifierJudge())
    with _writer("float32") as write:
        sampled = write(asked, SAMPLED, 3 * K)
    for problem, outputs in zip(asked, sampled, strict=True):
        parsed = [VARIANTS["generic"].split(output.text, finished=output.finished) for output in outputs]
        texts = list(dict.fromkeys(found.response for found in parsed if found.error is None))[:K]
        if len(texts) == K:
            groups.append(group_of(problem, *texts))
            (judgments,) = verifier.judge(groups[-1:])
            correct.append([judgment.outcome == 1 for judgment in judgments])
    return groups, correct


def _rated(precision: str, mode: Mode, groups: Sequence[Group]) -> Rated:
    engine = JudgeEngineConfig.model_validate({"max_num_seqs": 32} | dict(PRECISIONS[precision]))
    with open_engines():
        judge = build_judge(PairwiseJudge(mode=mode), engine, ClusterConfig(), TokenCount())
        judged = list(judge.judge(groups))
    values = [
        # Rounded, so that ratings which are equal but for the fit's last bits are equal.
        np.array([np.nan if score.value is None else round(score.value, 6) for score in judge.score(group, judgments)])
        for group, judgments in zip(groups, judged, strict=True)
    ]
    return Rated(values, [judgment.outcome for judgments in judged for judgment in judgments])


def _distributions(precision: str, rows: Sequence[tuple[list[int], list[int]]]) -> "list[torch.Tensor]":
    """Log-probs of the whole vocabulary at each token of each output, (tokens, vocabulary)."""
    import torch
    from transformers import AutoModelForCausalLM

    from tpo.engines.inference import fp8

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=getattr(torch, PRECISIONS[precision]["dtype"]))
    how = fp8.linears_of(model) if "quantization" in PRECISIONS[precision] else contextlib.nullcontext()
    with torch.inference_mode(), how:
        found = []
        for prompt, output in rows:
            logits = model(torch.tensor([[*prompt, *output]])).logits[0, len(prompt) - 1 : -1]
            found.append(logits.double().log_softmax(-1))
        return found


def _accept(*_: object) -> bool:
    return True


def _common(first: Sequence[int], second: Sequence[int]) -> float:
    """Share of the longer of two outputs until they differ."""
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    return shared / max(len(first), len(second))


def _spearman(first: Floats, second: Floats) -> float:
    """The rank correlation; equal values share a rank."""
    a, b = ((values[:, None] > values).sum(1) + (values[:, None] >= values).sum(1) for values in (first, second))
    if a.std() and b.std():
        return float(np.corrcoef(a, b)[0, 1])
    return float(a.std() == b.std())


def _interval(values: Floats) -> str:
    """The mean with a 95 % interval, by the normal approximation."""
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.3f} ± {half:.3f}"


def _rms(values: "torch.Tensor") -> float:
    return float(values.double().square().mean().sqrt())


if __name__ == "__main__":
    main()
