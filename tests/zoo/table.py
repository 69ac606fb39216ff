"""Writes docs/models.md from what checks say of each family in the zoo: `python -m tests.zoo.table`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from flows.preflight import QUESTIONS
from prompts.thought import VARIANTS
from tests.zoo.families import ZOO, RealFamily
from tpo.engines.template_check import ANSWER, check_asked, check_thinking
from tpo.engines.thinking_template import ThinkingTemplate, thinking_template
from tpo.errors import InputError

TABLE = Path(__file__).parents[2] / "docs" / "models.md"
HEAD = """# Which families of models work

Made by `python -m tests.zoo.table` from `tests/zoo`, which takes each family's published tokenizer and chat template
through the checks that a run makes before work, with the prompt variants `generic` and `direct`; a test fails if this
page is not what they say. That vLLM samples a family and our trainer trains it is another matter, which `python -m
tests.zoo.trial` tries. Qwen3.5 and 3.6 are refused on machines without torchvision, which vLLM's code for them imports:
the CPU set leaves it out. Where no package holds a family's own tokenizer or template, the last column says what is
taken instead.

Thinking is what the model's own template does: `none`; `hybrid`, the model opens a thought itself; `prefilled`, the
prompt opens it; `channels`, a thought is a message of its own. If a variable switches it off, it is off in every
prompt, also for `direct`.

| family | architecture | thinking | checks for TPO | system turn | tokenizer and template |
|---|---|---|---|---|---|
"""


def row(family: RealFamily, room: Path) -> str:
    """The family's line; `room` is an empty folder for its files."""
    folder = family.save_tokenizer(room / family.name.replace(" ", "-"))
    plain = [VARIANTS[name].render(question) for name in ("generic", "direct") for question in QUESTIONS]
    cells = (
        family.name,
        f"`{family.architecture}`",
        _thinking(folder),
        said(folder, lambda: check_thinking(folder) + check_asked(folder, plain, [ANSWER])),
        said(folder, lambda: check_asked(folder, [VARIANTS["system"].render(QUESTIONS[0])], [ANSWER]) and []),
        family.nearest or "its own",
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def said(folder: Path, check: Callable[[], Sequence[str]]) -> str:
    """What a check says: works, with notes or without, or why it does not."""
    try:
        notes = check()
    except InputError as error:
        return f"refused: {_brief(folder, str(error))}"
    return "; ".join(["works", *(_brief(folder, note) for note in notes)])


def table() -> str:
    """The page."""
    with TemporaryDirectory() as room:
        return HEAD + "".join(row(family, Path(room)) for family in ZOO)


def _thinking(folder: Path) -> str:
    from transformers import AutoTokenizer

    found: ThinkingTemplate = thinking_template(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    switch = f", off by `{found.switch}`" if found.switch else ""
    return found.kind + switch + (f" (`{found.opening}`)" if found.opening else "")


def _brief(folder: Path, message: str) -> str:
    """A message without the folder's path, up to its remedy."""
    return message.replace(f"{folder}/", "").partition(": ")[0]


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
    print(f"{len(ZOO)} families in {TABLE}")
