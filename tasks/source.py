"""Where prompts come from (the miniature world, writing tasks or files), and whether a model can take them."""

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prompts.thought import load_prompt
from tasks.handles import prompt_templates
from tpo.config.data import FileSource, InstructionSource, MiniatureSource
from tpo.config.hub import local_path
from tpo.config.run import RunConfig
from tpo.data.conversations import Unusable
from tpo.data.prompt_files import file_of, read_prompt_rows
from tpo.data.writing import writing_tasks
from tpo.errors import InputError
from tpo.miniature import world
from tpo.models.chat import ChatEncoder
from tpo.records import Artifact, External, Prompt, read_turns
from tpo.storage.store import Stage, external_file


def why_unfit(config: RunConfig, encoder: ChatEncoder) -> Callable[[Prompt], str | None]:
    """Returns a function that explains why a prompt can't be used with every prompt variant of the run, or None: it is
    too long, or the chat template refuses or changes it."""
    ways = [load_prompt(way) for way in (config.prompt, config.data.also_fits) if way is not None]

    def why(prompt: Prompt) -> str | None:
        for way in ways:
            try:
                if len(way.encode(encoder, prompt.instruction, prompt.earlier)) > config.data.max_prompt_tokens:
                    return "too_long"
            except InputError:
                return "chat_template"
        return None

    return why


def origin(config: RunConfig, folder: str) -> str:
    """The origin of a set's prompts: two sets of one origin share its rows."""
    source = config.data.source
    if not isinstance(source, FileSource):
        return type(source).__name__
    return str(prompt_file(source, folder))


def read_source(config: RunConfig, folder: str) -> Iterator[Prompt | Unusable]:
    """All prompts of a set's origin, in the order that the seed gives, and why a conversation in it can't be one."""
    source = config.data.source
    if isinstance(source, MiniatureSource):
        return _from_miniature(source, folder, config.seed)
    if isinstance(source, InstructionSource):
        return _from_writing_tasks(source, folder, config.seed)
    return _from_file(source, prompt_file(source, folder), config.seed)


def make_prompt(
    instruction: str,
    reference: str | None,
    category: str | None,
    difficulty: int | None,
    demonstration: str | None = None,
    constraints: str | None = None,
    history: str | None = None,
    rubric: str | None = None,
) -> Prompt:
    """A prompt with the id that its instruction, or its conversation, gives it."""
    return Prompt(
        prompt_id_of(instruction, history),
        instruction,
        reference,
        category,
        difficulty,
        demonstration,
        constraints,
        history,
        rubric,
    )


def question_key(instruction: str, history: str | None = None) -> str:
    """A key that is equal for instructions that differ only in case, white space or Unicode form; of conversations, for
    those of which all turns do.

    Prompts keep the ids of their exact texts; without such differences the two are the same.
    """
    return _id_of(_plain(instruction), [(turn["role"], _plain(turn["content"])) for turn in read_turns(history)])


def prompt_id_of(instruction: str, history: str | None = None) -> str:
    """A prompt's id."""
    return _id_of(instruction, [(turn["role"], turn["content"]) for turn in read_turns(history)])


def _id_of(instruction: str, earlier: Sequence[tuple[str, str]]) -> str:
    content = instruction.encode("utf-8", errors="surrogatepass")
    if earlier:
        # No instruction begins with this byte, so none has the id of a conversation.
        content = b"\xff" + json.dumps([*earlier, ("user", instruction)]).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _plain(text: str) -> str:
    """A text in one case, one Unicode form and with single blanks."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def _split_of(folder: str) -> Literal["train", "validation", "test"]:
    kind = folder.rsplit("/", 1)[-1]
    return "validation" if kind == "validation" else "test" if kind == "test" else "train"


def _from_writing_tasks(source: InstructionSource, folder: str, seed: int) -> Iterator[Prompt]:
    for task in writing_tasks(
        _split_of(folder),
        seed,
        types=source.types,
        max_instructions=source.max_instructions,
        max_words=source.max_words,
    ):
        yield make_prompt(task.instruction, None, task.category, task.difficulty, constraints=task.constraints)


def _from_miniature(source: MiniatureSource, folder: str, seed: int) -> Iterator[Prompt]:
    for problem in world.problems(_split_of(folder), seed, source.categories or None):
        yield make_prompt(problem.instruction, problem.reference, problem.category, problem.difficulty, problem.worked)


def _from_file(source: FileSource, path: Path, seed: int) -> Iterator[Prompt | Unusable]:
    rows = read_prompt_rows(source, path)
    for i in np.random.default_rng(seed).permutation(len(rows)):
        values = {**vars(rows[int(i)])}
        yield values.pop("unusable") or make_prompt(**values)


def source_values(config: RunConfig) -> dict[str, Any]:
    """The source's values as every manifest has them: those of fields that came later only if they are set."""
    values = config.data.source.model_dump(mode="json")
    return {name: value for name, value in values.items() if name != "rubric_column" or value is not None}


def prompts_stage(
    config: RunConfig, folder: str, model: Artifact, earlier: Sequence[Artifact], generations: Artifact | None = None
) -> Stage:
    """Prompts of one iteration, of validation or of test. `earlier` are the sets to be disjoint from; `generations` is
    what prompts are chosen from if a model writes them.

    The seed model is an input because its tokenizer decides which prompts are too long.
    """
    inputs: dict[str, Artifact | External] = {f"prompts {i}": artifact for i, artifact in enumerate(earlier)}
    inputs |= {"model": model, **source_file(config, folder)}
    if config.data.also_fits is not None:
        inputs["other prompt templates"] = prompt_templates(config.data.also_fits, config.model)
    without = {"source", "synthetic", "per_iteration", "validation", "test", "also_fits"}
    data = config.data.model_dump(mode="json", exclude=without)
    if generations is not None and config.data.synthetic is not None:
        inputs["generations"] = generations
        avoided = enumerate(config.data.synthetic.avoid)
        inputs |= {f"avoided {i}": external_file(local_path(file.path)) for i, file in avoided}
        chosen_by = {"max_similarity", "min_words", "without_words"}
        data["synthetic"] = config.data.synthetic.model_dump(mode="json", include=chosen_by)
        data["synthetic"]["avoid"] = [file.instruction_column for file in config.data.synthetic.avoid]
    count: int | Literal["all"] = config.data.per_iteration
    if _split_of(folder) != "train":
        count = config.data.validation if _split_of(folder) == "validation" else config.data.test
    elif config.train.rounds > 1:
        count = config.prompts_per_round
    return Stage(
        config.root,
        folder,
        Prompt,
        inputs=inputs | {"prompt templates": prompt_templates(config.prompt, config.model)},
        config={
            "seed": config.seed,
            "data": {**data, "source": source_values(config), "count": count},
        },
    )


def prompt_file(source: FileSource, folder: str) -> Path:
    """The file that the prompts of a stage's folder come from."""
    place, _, kind = folder.partition("/prompts")
    iteration = int(place.split("/")[0].removeprefix("iter_")) if place.startswith("iter_") else 0
    return file_of(source, kind.removeprefix("/"), iteration)


def source_file(config: RunConfig, folder: str) -> dict[str, External]:
    """The file that a set of prompts comes from, by its role; empty for the miniature world."""
    if not isinstance(config.data.source, FileSource):
        return {}
    path = prompt_file(config.data.source, folder)
    return {"source": external_file(path)} if path.exists() else {}


def is_written(config: RunConfig, folder: str) -> bool:
    """Whether a model writes the prompts of a stage's folder, which it may for those of an iteration."""
    return config.data.synthetic is not None and not folder.endswith(("/validation", "/test"))
