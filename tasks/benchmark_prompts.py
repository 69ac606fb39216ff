"""A benchmark's rows as prompts, and the check that they can be asked as they are."""

import dataclasses
import hashlib
from collections.abc import Iterable

from prompts.thought import load_prompt
from tasks.source import make_prompt
from tpo.config.benchmarks import AlpacaEval, ArenaHard, BenchmarkConfig
from tpo.config.data import PromptConfig
from tpo.config.hub import local_path
from tpo.config.run import RunConfig
from tpo.data.benchmark_files import baseline_outputs, question_ids, read_benchmark, read_difficulties
from tpo.data.prompt_files import PromptRow
from tpo.errors import InputError
from tpo.models.chat import ChatEncoder
from tpo.records import Prompt


def distinct(rows: Iterable[PromptRow]) -> list[Prompt]:
    """The prompts of some rows; one that has occurred before gets its own id."""
    found = dict[str, Prompt]()
    for row in rows:
        prompt = make_prompt(
            row.instruction, row.reference, row.category, row.difficulty, None, row.constraints, row.history, row.rubric
        )
        if prompt.prompt_id in found:
            again = hashlib.sha256(f"{prompt.prompt_id} {len(found)}".encode()).hexdigest()[:16]
            prompt = dataclasses.replace(prompt, prompt_id=again)
        found[prompt.prompt_id] = prompt
    return list(found.values())


def check_benchmark(config: RunConfig, benchmark: BenchmarkConfig, encoder: ChatEncoder) -> None:
    """Raises `InputError` if a benchmark's files can't be used, or if a prompt is too long as the model is asked."""
    rows = read_benchmark(benchmark).rows
    baseline_outputs(benchmark, rows)
    if isinstance(benchmark, ArenaHard):
        question_ids(benchmark)
    if isinstance(benchmark, AlpacaEval) and benchmark.gamed_path is not None:
        read_difficulties(local_path(benchmark.gamed_path))
    limit = benchmark.max_prompt_tokens or config.data.max_prompt_tokens
    for way in dict.fromkeys((config.prompt, PromptConfig(variant="direct"))):
        asked = load_prompt(way).for_model(encoder)
        lengths = [len(asked.encode(encoder, prompt.instruction, prompt.earlier)) for prompt in distinct(rows)]
        if (longest := max(lengths)) > limit:
            long = sum(length > limit for length in lengths)
            raise InputError(
                f"{local_path(benchmark.path)}: {long} of {len(lengths)} prompts are longer than max_prompt_tokens of "
                f"the benchmark {benchmark.title}, {limit}, and the longest has {longest} tokens "
                f"with the {way.variant} prompt: set max_prompt_tokens to {longest} or more, or limit to fewer prompts"
            )
