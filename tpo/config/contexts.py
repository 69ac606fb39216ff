"""Context length that each generating model needs: one list for preflight, the plan and the engines.

Each model has its own prompts and output lengths, so each needs its own context, which is checked against that model
alone: ThinkPO's writer of short outputs (Qwen2.5-Math-7B, 4,096 positions) needn't fit what the model in training
writes (32,768).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tpo.config.data import PromptConfig, SampleConfig
from tpo.config.hub import local_path
from tpo.config.recipes import PairModels, ThinkPo
from tpo.config.run import RunConfig

Side = Literal["long", "short"]


@dataclass(frozen=True)
class Context:
    """The context that one model needs."""

    folder: Path | None
    """The model's folder; None for M_0 and its successors."""
    tokens: int
    """Maximum length of prompt plus output."""
    keys: str
    """The settings that add up to it."""
    work: str
    """What the model does, in the plan's terms."""
    remedy: str = "lower one of them"
    """What to do if the model's context is shorter."""


@dataclass(frozen=True)
class PairWriter:
    """A model that writes one side of ThinkPO's pairs."""

    side: Side
    """Which side."""
    folder: Path | None
    """Its folder; None for the model that is fine-tuned."""
    prompt: PromptConfig
    """How it is prompted."""
    sample: SampleConfig
    """How its outputs are sampled."""

    @property
    def work(self) -> str:
        """What it does, in the plan's terms."""
        return f"{self.side} sample"


def pair_writers(config: RunConfig) -> list[PairWriter]:
    """The models that write for ThinkPO's pairs, short side first; none in other recipes or with pairs from a file."""
    source = config.recipe.source if isinstance(config.recipe, ThinkPo) else None
    if not isinstance(source, PairModels) or config.sft is None:
        return []
    found = [PairWriter("short", _folder(source.short), source.short_prompt, source.short_sample)]
    if source.long != "demonstrations":
        found.append(PairWriter("long", _folder(source.long), source.long_prompt, source.long_sample))
    return found


def contexts(config: RunConfig) -> list[Context]:
    """The context that each generating model needs; servers have their own limits and are left out."""
    prompt = config.data.max_prompt_tokens
    found = [
        Context(None, prompt + config.sample.max_new_tokens, "data.max_prompt_tokens + sample.max_new_tokens", "sample")
    ]
    for writer in pair_writers(config):
        key = f"data.max_prompt_tokens + recipe.source.{writer.side}_sample.max_new_tokens"
        found.append(Context(writer.folder, prompt + writer.sample.max_new_tokens, key, writer.work))
    for benchmark in config.evaluation.benchmarks:
        longest = benchmark.max_new_tokens or config.sample.max_new_tokens
        key = f"max_prompt_tokens + max_new_tokens of the benchmark {benchmark.title} (evaluation.benchmarks)"
        found.append(Context(None, (benchmark.max_prompt_tokens or prompt) + longest, key, "benchmark sample"))
    settings = config.data.synthetic
    if settings is not None and settings.endpoint is None:
        found.append(
            Context(
                settings.folder,
                settings.max_prompt_tokens + settings.max_new_tokens,
                "data.synthetic.max_prompt_tokens + max_new_tokens",
                "generate",
                "lower one of them, with fewer or shorter examples, or have another model write",
            )
        )
    return found


def context_of(config: RunConfig, work: str = "sample") -> int:
    """Context length of the engines for `work`: enough for everything that their model does."""
    needed = contexts(config)
    folder = next((each.folder for each in needed if each.work == work), None)
    return max(each.tokens for each in needed if each.folder == folder)


def _folder(model: str) -> Path | None:
    return None if model == "seed" else local_path(model)
