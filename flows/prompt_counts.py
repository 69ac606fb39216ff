"""How many prompts a run takes from each of its files, compared with how many the files have.

A file's distinct prompts are an upper bound of those that it gives, since some may be too long for the model. So a
reported shortage is certain.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tasks.source import question_key
from tpo.config.data import FileSource
from tpo.config.hub import local_path
from tpo.config.recipes import ThinkPo, Tpo
from tpo.config.run import RunConfig
from tpo.data.prompt_files import file_of, read_prompt_rows
from tpo.records import read_turns

GUESSED_PROMPTS = 10_000
"""The value of "all" if neither the file nor the profile gives one."""
_MAX_FILES = 1000
"""Number of iterations whose files are counted."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts that are taken from one file."""

    name: str
    """What they are for."""
    path: Path
    """The file."""
    count: int | None
    """Number taken, over all sets of this kind; None for all that are left."""


@dataclass(frozen=True)
class FileContent:
    """What a file of prompts holds."""

    distinct: int
    """Its distinct prompts; those with equal `question_key` count once."""
    usable: int
    """Rows with a prompt."""
    earlier_roles: Mapping[tuple[str, ...], int]
    """Of conversations, the number of rows by whose turns stand before the last user turn, in order of appearance."""


def prompt_sets(config: RunConfig, iterations: int) -> list[PromptSet]:
    """What a run to M_T, T = `iterations`, takes from files; empty for other sources."""
    data, source = config.data, config.data.source
    if not isinstance(source, FileSource):
        return []
    test = PromptSet("data.test", file_of(source, "test", 0), data.test)
    if isinstance(config.recipe, ThinkPo) and config.sft is None:
        return [test]
    if not isinstance(config.recipe, Tpo):
        only = None if data.per_iteration == "all" else data.per_iteration
        return [test, PromptSet("data.per_iteration", file_of(source, "", 0), only)]
    found = [test, PromptSet("data.validation", file_of(source, "validation", 0), data.validation)]
    if data.synthetic is not None:
        return found
    if "{iteration}" not in str(source.path):
        return [*found, PromptSet("data.per_iteration", file_of(source, "", 1), data.count * iterations)]
    files = [file_of(source, "", t) for t in range(1, min(iterations, _MAX_FILES) + 1)]
    return found + [PromptSet("data.per_iteration", path, data.count) for path in files if path.exists()]


def too_few_prompts(config: RunConfig, iterations: int) -> Iterator[str]:
    """Each file that has fewer prompts than the run takes, with what to do about it.

    Raises `InputError` if a file can't be read; files that aren't there are passed over.
    """
    sets = prompt_sets(config, iterations)
    for path in dict.fromkeys(each.path for each in sets):
        mine = [each for each in sets if each.path == path]
        if not path.exists():
            continue
        there = count_prompts(config, path)
        left = there - sum(each.count or 0 for each in mine)
        if left < 0 or (left == 0 and any(each.count is None for each in mine)):
            yield _told(config, iterations, path, there, mine)


def count_prompts(config: RunConfig, path: Path) -> int:
    """The distinct prompts of a file; those with equal `question_key` count once."""
    assert isinstance(config.data.source, FileSource)
    return content_of(config.data.source, path).distinct


def content_of(source: FileSource, path: Path) -> FileContent:
    """What a file holds; it is read once until it changes. Raises `InputError` if it can't be read."""
    stat = path.stat()
    return _content(source, path, stat.st_mtime_ns, stat.st_size)


def sized(config: RunConfig, *, counting: bool = True) -> RunConfig:
    """The config with a number for `data.per_iteration = "all"`: what the file has, or, if it isn't there or not to be
    counted, what is expected of it; and with the sizes of benchmarks whose size their kind doesn't tell."""
    if counting:
        config = _with_benchmarks_sized(config)
    if config.data.per_iteration != "all":
        return config
    count = _all(config, counting=counting)
    return config.model_copy(update={"data": config.data.model_copy(update={"per_iteration": count})})


def _with_benchmarks_sized(config: RunConfig) -> RunConfig:
    """The config with a limit for each custom benchmark whose file is here: its rows."""
    if not any(each.known_size == 0 for each in config.evaluation.benchmarks):
        return config
    found = tuple(
        each.model_copy(update={"limit": len(read_prompt_rows(each.columns, path))})
        if each.known_size == 0 and (path := local_path(each.path)).exists()
        else each
        for each in config.evaluation.benchmarks
    )
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"benchmarks": found})})


def _all(config: RunConfig, *, counting: bool) -> int:
    test, *prompts = prompt_sets(config, 1)
    if not counting or not prompts or not prompts[0].path.exists():
        return config.throughput.prompts or GUESSED_PROMPTS
    there = count_prompts(config, prompts[0].path)
    return max(1, there - (config.data.test if test.path == prompts[0].path else 0))


@lru_cache(maxsize=16)
def _content(source: FileSource, path: Path, _changed: int, _bytes: int) -> FileContent:
    rows = [row for row in read_prompt_rows(source, path) if row.instruction.strip()]
    roles = (tuple(dict.fromkeys(turn["role"] for turn in read_turns(row.history))) for row in rows if row.history)
    return FileContent(len({question_key(row.instruction, row.history) for row in rows}), len(rows), Counter(roles))


def _told(config: RunConfig, iterations: int, path: Path, there: int, sets: Sequence[PromptSet]) -> str:
    fixed = sum(each.count or 0 for each in sets if each.name != "data.per_iteration")
    one_set = not isinstance(config.recipe, Tpo)
    asked = [
        f"{each.name} {config.data.per_iteration:,} × {iterations:,} iterations"
        if each.name == "data.per_iteration" and not one_set and each.count != config.data.per_iteration
        else f"{each.name} {'all the rest' if each.count is None else f'{each.count:,}'}"
        for each in sets
    ]
    fault = (
        f"{path} has {there:,} different prompt{'' if there == 1 else 's'}, but the run takes more: {' + '.join(asked)}"
    )
    left = there - fixed
    if left < 1 or all(each.name != "data.per_iteration" for each in sets):
        return f"{fault}: add rows, lower these, or give validation and test their own files"
    if one_set:
        return f'{fault}: set data.per_iteration to "all", or to {left:,} at most, or add rows'
    each = left // max(1, iterations)
    fewer = f"to {each:,} at most, " if each else ""
    steps = left // config.data.count
    stop = f"--to (ITER) to {steps:,} at most, " if 0 < steps < iterations else ""
    return f"{fault}: lower data.per_iteration {fewer}{'or ' if fewer and stop else ''}{stop}or add rows"
