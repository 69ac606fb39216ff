"""Writing tasks with verifiable instructions: seeded, practically unlimited, and scored by a checker.

A task is a form, a topic and sometimes a manner ("Write a diary entry about a lost umbrella. Keep it cheerful."),
followed by one or more of IFEval's 25 types of instructions (2311.07911, Table 1), which a program can check. The
wording and the lists are ours (`writing_tasks.toml`). Contradictory instructions are never combined, and no task asks
for more than `max_words` words.

Splits are disjoint by construction: a hash of the writing task decides which one it belongs to, regardless of the seed
and of the instructions that follow.
"""

import hashlib
import json
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

Split = Literal["train", "validation", "test"]
Item = TypeVar("Item")

_SPLIT_SHARES: tuple[tuple[Split, int], ...] = (("test", 15), ("validation", 10), ("train", 75))
"""Percentages of the writing tasks."""
_MAX_DRAWS_IN_VAIN = 10_000
"""Consecutive draws without a new task after which a stream ends: few types with few arguments have few tasks."""
_MAX_BRIEF_WORDS = 150
"""If `max_words` is at most this, the task itself asks for brevity, since models otherwise write a page."""
_LANGUAGES = {
    "de": "German", "es": "Spanish", "fr": "French", "it": "Italian", "pt": "Portuguese", "nl": "Dutch",
}  # fmt: skip
_FIRST_WORDS = ("however", "later", "meanwhile", "today", "finally", "perhaps", "still", "outside", "slowly", "then")
_END_PHRASES = (
    "That is all for now.", "What do you think?", "Thanks for reading.", "See you soon.", "And so it was.",
    "Is there anything else?", "The rest is history.", "Stay curious.", "Until next time.", "Good night.",
)  # fmt: skip
_MARKERS = ("P.S.", "P.P.S")
_ANSWERS = "'My answer is yes.', 'My answer is no.', 'My answer is maybe.'"


@dataclass(frozen=True)
class Task:
    """One writing task."""

    instruction: str
    """The user's request, instructions included."""
    constraints: str
    """The instructions for the checker: a JSON list of `{"id": …, "kwargs": {…}}`, with IFEval's ids and arguments."""
    category: str
    """Group of its first instruction, such as `keywords`."""
    difficulty: int
    """Number of its instructions."""


@dataclass(frozen=True)
class _Draft:
    """A task under construction, which instructions can refer to."""

    task: str
    """The writing task."""
    words: Sequence[str]
    """Words related to its topic."""
    max_words: int
    """Maximum number of words that may be asked for."""


_Draw = Callable[[np.random.Generator, _Draft], tuple[dict[str, Any], str]]


@dataclass(frozen=True)
class _Type:
    """One type of instruction."""

    id: str
    """IFEval's id."""
    aspects: frozenset[str]
    """The aspects of a response that it determines; types that share one are never combined."""
    draw: _Draw
    """Draws its arguments and words the request."""


def writing_tasks(
    split: Split, seed: int, *, types: Sequence[str] = (), max_instructions: int = 3, max_words: int = 300
) -> Iterator[Task]:
    """Tasks of a split without repeats, in an order that `seed` determines; ends when no new ones are found.

    Args:
        split: One of the three streams.
        seed: The run's seed.
        types: Ids to draw from; empty for all 25.
        max_instructions: Maximum number of instructions per task; each number from 1 is equally likely.
        max_words: Maximum number of words that a task may ask for.
    """
    rng = np.random.default_rng(seed)
    chosen = [kind for kind in _TYPES if not types or kind.id in types]
    seen, in_vain = set[str](), 0
    while in_vain < _MAX_DRAWS_IN_VAIN:
        in_vain += 1
        first = _pick(rng, chosen)
        draft = _draft(rng, first, max_words)
        if _split_of(draft.task) != split:
            continue
        task = _with_instructions(rng, draft, first, chosen, count=_between(rng, 1, max_instructions))
        if task.instruction not in seen:
            seen.add(task.instruction)
            in_vain = 0
            yield task


def _split_of(task: str) -> Split:
    place = int.from_bytes(hashlib.sha256(task.encode()).digest()[:4], "big") % 100
    for split, share in _SPLIT_SHARES:
        if place < share:
            return split
        place -= share
    raise AssertionError("the shares add up to 100")


def _with_instructions(
    rng: np.random.Generator, draft: _Draft, first: _Type, types: Sequence[_Type], *, count: int
) -> Task:
    """A draft with up to `count` compatible instructions, `first` among them."""
    picked = [first]
    while len(picked) < count:
        taken = frozenset[str]().union(*(kind.aspects for kind in picked))
        left = [kind for kind in types if not (kind.aspects & taken or "alone" in taken | kind.aspects)]
        if not left:
            break
        picked.append(_pick(rng, left))
    drawn = [(kind.id, *kind.draw(rng, draft)) for kind in picked]
    constraints = [{"id": name, "kwargs": kwargs} for name, kwargs, _ in drawn]
    return Task(
        instruction=" ".join([draft.task, *(sentence for _, _, sentence in drawn)]),
        constraints=json.dumps(constraints, ensure_ascii=False),
        category=first.id.partition(":")[0],
        difficulty=len(picked),
    )


def _draft(rng: np.random.Generator, first: _Type, max_words: int) -> _Draft:
    lists = _lists()
    if first.id == "detectable_format:constrained_response":
        return _Draft(f"Do you agree that {_pick(rng, lists['statements'])}?", (), max_words)
    topic = _pick(rng, list(lists["topics"]))
    words = [str(word) for word in rng.permutation(lists["topics"][topic])]
    length = f", in {max_words} words or fewer" if max_words <= _MAX_BRIEF_WORDS else ""
    task = f"Write {_pick(rng, lists['forms'])} about {topic}{length}."
    if rng.random() < 0.5:
        task = f"{task} {_pick(rng, lists['manners'])}"
    return _Draft(task, words, max_words)


@cache
def _lists() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("writing_tasks.toml").read_text(encoding="utf-8"))


def _pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    return items[int(rng.integers(len(items)))]


def _between(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, max(low, high) + 1))


def _relation(rng: np.random.Generator) -> str:
    return _pick(rng, ("at least", "less than"))


def _counted(relation: str, count: int, noun: str) -> str:
    """As in "at least 1 time" and "fewer than 3 words"; IFEval calls the latter relation "less than"."""
    return f"{'fewer than' if relation == 'less than' else relation} {count} {noun}{'' if count == 1 else 's'}"


# One function per type: draws its arguments and words the request. What a seed makes depends on the order of draws.


def _existence(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    words = list(draft.words[: _between(rng, 1, 2)])
    quoted = " and ".join(f'"{word}"' for word in words)
    which = "word" if len(words) == 1 else "words"
    return {"keywords": words}, _pick(rng, (f"Use the {which} {quoted}.", f"Include the {which} {quoted}."))


def _frequency(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    relation, word = _relation(rng), draft.words[0]
    count = _between(rng, 2, 3)
    return (
        {"relation": relation, "keyword": word, "frequency": count},
        f'The word "{word}" should appear {_counted(relation, count, "time")}.',
    )


def _forbidden(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    words = list(draft.words[-_between(rng, 1, 2) :])
    quoted = " or ".join(f'"{word}"' for word in words)
    which = "word" if len(words) == 1 else "words"
    return (
        {"forbidden_words": words},
        _pick(rng, (f"Do not use the {which} {quoted}.", f"Avoid the {which} {quoted}.")),
    )


def _letter(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    relation = _relation(rng)
    letter = _pick(rng, "abcdfghlmopuw" if relation == "at least" else "bfgjkpqvwxyz")
    count = _between(rng, 3, 8)
    return (
        {"letter": letter, "let_relation": relation, "let_frequency": count},
        f'The letter "{letter}" should appear {_counted(relation, count, "time")}.',
    )


def _language(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    code = _pick(rng, list(_LANGUAGES))
    return {"language": code}, f"Write the whole response in {_LANGUAGES[code]}; no other language is allowed."


def _sentences(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    relation = _relation(rng)
    count = _between(rng, 2, 5) if relation == "at least" else _between(rng, 3, 6)
    count = min(count, max(2, draft.max_words // 10))
    return (
        {"relation": relation, "num_sentences": count},
        f"The response should have {_counted(relation, count, 'sentence')}.",
    )


def _paragraphs(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    count = _between(rng, 2, 4)
    return (
        {"num_paragraphs": count},
        f"Write exactly {count} paragraphs and separate them with the markdown divider: ***",
    )


def _words(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    relation = _relation(rng)
    low = max(10, draft.max_words // 5)
    count = _between(rng, low, draft.max_words) // 5 * 5
    return (
        {"relation": relation, "num_words": count},
        f"Answer with {_counted(relation, count, 'word')}.",
    )


def _nth_paragraph(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    count, word = _between(rng, 2, 4), _pick(rng, _FIRST_WORDS)
    nth = _between(rng, 1, count)
    return (
        {"num_paragraphs": count, "nth_paragraph": nth, "first_word": word},
        f"Write exactly {count} paragraphs, separated from each other by a blank line and nothing else. Paragraph "
        f'{nth} must begin with the word "{word}".',
    )


def _placeholders(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    count = _between(rng, 1, 3)
    return (
        {"num_placeholders": count},
        f"Leave {_counted('at least', count, 'placeholder')} in square brackets, such as [name].",
    )


def _postscript(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    marker = _pick(rng, _MARKERS)
    return {"postscript_marker": marker}, f"Add a postscript at the end that starts with {marker}"


def _bullets(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    count = _between(rng, 2, 5)
    return (
        {"num_bullets": count},
        f"The response must hold exactly {count} bullet points in markdown, such as: * This is a point.",
    )


def _constrained(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    return {}, f"Answer with one of these options: {_ANSWERS}"


def _highlights(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    count = _between(rng, 1, 3)
    return (
        {"num_highlights": count},
        f"Highlight {_counted('at least', count, 'passage')} with markdown, such as *highlighted passage*.",
    )


def _sections(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    count, name = _between(rng, 2, 3), _pick(rng, ("Section", "Part", "Day", "SECTION"))
    return (
        {"section_spliter": name, "num_sections": count},
        f"Divide the response into {count} parts and begin each with its number, as in: {name} 1",
    )


def _json_format(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    return {}, _pick(rng, ("Give the whole response as JSON.", "The entire output should be valid JSON."))


def _title(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    return {}, "Give it a title in double angular brackets, such as <<a quiet morning>>."


def _two_responses(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    return {}, "Give two different responses, separated by six asterisks: ******"


def _repeat(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    return (
        {"prompt_to_repeat": draft.task},
        "First repeat the request above word for word, without this sentence and the next, and then answer it. Write "
        "nothing before the repeated request.",
    )


def _end(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    phrase = _pick(rng, _END_PHRASES)
    return {"end_phrase": phrase}, f'End with exactly this phrase and nothing after it: "{phrase}"'


def _capital_words(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    relation = _relation(rng)
    count = _between(rng, 1, 4) if relation == "at least" else _between(rng, 2, 5)
    return (
        {"capital_relation": relation, "capital_frequency": count},
        f"Write {_counted(relation, count, 'word')} in capital letters only.",
    )


def _capital(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    return {}, "Write in English and in capital letters only."


def _lowercase(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    return {}, _pick(
        rng, ("Write in English and in lowercase letters only.", "Use no capital letters; write in English.")
    )


def _no_comma(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    return {}, _pick(rng, ("Do not use any commas.", "Write without a single comma."))


def _quotation(rng: np.random.Generator, draft: _Draft) -> tuple[dict[str, Any], str]:
    return {}, "Put the whole response in double quotation marks."


_TYPES = tuple(
    _Type(name, frozenset(aspects.split()), draw)
    for name, aspects, draw in (
        ("keywords:existence", "used", _existence),
        ("keywords:frequency", "used", _frequency),
        ("keywords:forbidden_words", "unused", _forbidden),
        ("keywords:letter_frequency", "letters", _letter),
        ("language:response_language", "alone", _language),
        ("length_constraints:number_sentences", "length", _sentences),
        ("length_constraints:number_paragraphs", "layout", _paragraphs),
        ("length_constraints:number_words", "length", _words),
        ("length_constraints:nth_paragraph_first_word", "layout", _nth_paragraph),
        ("detectable_content:number_placeholders", "placeholders", _placeholders),
        ("detectable_content:postscript", "end", _postscript),
        ("detectable_format:number_bullet_lists", "layout", _bullets),
        ("detectable_format:constrained_response", "alone", _constrained),
        ("detectable_format:number_highlighted_sections", "highlights", _highlights),
        ("detectable_format:multiple_sections", "layout", _sections),
        ("detectable_format:json_format", "alone", _json_format),
        ("detectable_format:title", "title", _title),
        ("combination:two_responses", "alone", _two_responses),
        ("combination:repeat_prompt", "alone", _repeat),
        ("startend:end_checker", "end", _end),
        ("change_case:capital_word_frequency", "case", _capital_words),
        ("change_case:english_capital", "case end layout", _capital),
        ("change_case:english_lowercase", "case end layout", _lowercase),
        ("punctuation:no_comma", "commas", _no_comma),
        ("startend:quotation", "end title", _quotation),
    )
)
TYPES = tuple(kind.id for kind in _TYPES)
"""Ids of all types of instructions, IFEval's 25."""
