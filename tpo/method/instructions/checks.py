"""Checks of a single verifiable instruction: the 25 types of IFEval (2311.07911, Table 1).

Each type is a function of the response and the instruction's arguments, registered under its id. Verdicts are those of
the official checker, quirks included, since numbers are compared with published ones; docs/judges.md lists the
differences. Responses and arguments are arbitrary text: arguments are matched literally, never as patterns, and every
check takes time linear in the response.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tpo.method.instructions.language import LANGUAGES, detect_language
from tpo.method.instructions.words import capital_words, count_sentences, count_words

MAX_COUNT = 1_000_000
"""Largest count that an argument may ask for."""
MAX_KEYWORD_LENGTH = 200
"""Maximum length of a keyword or marker, in characters."""
MAX_TEXT_LENGTH = 100_000
"""Maximum length of a prompt to repeat or a phrase to end with, in characters."""
MAX_KEYWORDS = 50
"""Maximum number of keywords of one instruction."""
RELATIONS = ("at least", "less than")

Check = Callable[..., bool]


@dataclass(frozen=True)
class Argument:
    """The requirement on an instruction's argument."""

    expected: str
    """The requirement in words, for error messages."""
    accepts: Callable[[Any], bool]
    """Whether a value meets it."""


@dataclass(frozen=True)
class InstructionType:
    """One type of verifiable instruction."""

    id: str
    """Its name in IFEval, such as `keywords:existence`."""
    arguments: Mapping[str, Argument]
    """Its arguments by name; all are required."""
    check: Check
    """Whether a nonblank response follows it, given the arguments."""


def _is_count(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_COUNT


def _is_text(most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and bool(value.strip()) and len(value) <= most


def _are_keywords(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MAX_KEYWORDS and all(map(_is_text(MAX_KEYWORD_LENGTH), value))


_COUNT = Argument(f"a whole number from 0 to {MAX_COUNT:,}", _is_count(0))
_POSITION = Argument(f"a whole number from 1 to {MAX_COUNT:,}", _is_count(1))
_RELATION = Argument('"at least" or "less than"', lambda value: value in RELATIONS)
_KEYWORD = Argument(f"text of 1 to {MAX_KEYWORD_LENGTH:,} characters", _is_text(MAX_KEYWORD_LENGTH))
_KEYWORDS = Argument(f"a list of 1 to {MAX_KEYWORDS} texts of up to {MAX_KEYWORD_LENGTH:,} characters", _are_keywords)
_TEXT = Argument(f"text of 1 to {MAX_TEXT_LENGTH:,} characters", _is_text(MAX_TEXT_LENGTH))
_CHARACTER = Argument("one character", lambda value: isinstance(value, str) and len(value) == 1 and not value.isspace())
_LANGUAGE = Argument(
    f"the code of a language that langdetect knows: {', '.join(sorted(LANGUAGES))}",
    lambda value: isinstance(value, str) and value in LANGUAGES,
)

INSTRUCTION_TYPES: dict[str, InstructionType] = {}
"""The types by id."""


def _register(type_id: str, **arguments: Argument) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        INSTRUCTION_TYPES[type_id] = InstructionType(type_id, arguments, check)
        return check

    return register


def _compare(count: int, relation: str, threshold: int) -> bool:
    return count < threshold if relation == "less than" else count >= threshold


@_register("keywords:existence", keywords=_KEYWORDS)
def has_keywords(response: str, keywords: list[str]) -> bool:
    """Every keyword occurs, ignoring case; a part of a longer word counts."""
    text = response.lower()
    return all(keyword.lower() in text for keyword in keywords)


@_register("keywords:frequency", keyword=_KEYWORD, frequency=_COUNT, relation=_RELATION)
def has_keyword_often(response: str, keyword: str, frequency: int, relation: str) -> bool:
    """A keyword occurs at least, or less than, `frequency` times; parts of longer words count."""
    return _compare(response.lower().count(keyword.strip().lower()), relation, frequency)


@_register("keywords:forbidden_words", forbidden_words=_KEYWORDS)
def lacks_words(response: str, forbidden_words: list[str]) -> bool:
    """None of the words occurs as a whole word, ignoring case."""
    return not any(re.search(_whole_word(word), response, re.IGNORECASE) for word in forbidden_words)


def _whole_word(word: str) -> str:
    """A pattern of a word without letters or digits adjacent to its own: in `C++`, only the `C` needs a boundary."""
    before = r"\b" if re.match(r"\w", word) else ""
    after = r"\b" if re.search(r"\w\Z", word) else ""
    return before + re.escape(word) + after


@_register("keywords:letter_frequency", letter=_CHARACTER, let_frequency=_COUNT, let_relation=_RELATION)
def has_letter_often(response: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    """A letter, or another character, occurs at least, or less than, `let_frequency` times, ignoring case."""
    return _compare(response.lower().count(letter.lower()), let_relation, let_frequency)


@_register("language:response_language", language=_LANGUAGE)
def is_in_language(response: str, language: str) -> bool:
    """The response is in a language; one whose language can't be identified passes."""
    return detect_language(response) in (language, None)


@_register("length_constraints:number_sentences", num_sentences=_COUNT, relation=_RELATION)
def has_sentences(response: str, num_sentences: int, relation: str) -> bool:
    """The number of sentences is at least, or less than, `num_sentences`."""
    return _compare(count_sentences(response), relation, num_sentences)


@_register("length_constraints:number_paragraphs", num_paragraphs=_COUNT)
def has_paragraphs(response: str, num_paragraphs: int) -> bool:
    """Exactly `num_paragraphs` paragraphs, separated by `***`; one in the middle may not be blank."""
    paragraphs = response.split("***")
    inner = paragraphs[1:-1]
    written = [paragraph for paragraph in paragraphs if paragraph.strip()]
    return all(paragraph.strip() for paragraph in inner) and len(written) == num_paragraphs


@_register("length_constraints:number_words", num_words=_COUNT, relation=_RELATION)
def has_words(response: str, num_words: int, relation: str) -> bool:
    """The number of words is at least, or less than, `num_words`."""
    return _compare(count_words(response), relation, num_words)


@_register(
    "length_constraints:nth_paragraph_first_word",
    num_paragraphs=_POSITION,
    nth_paragraph=_POSITION,
    first_word=_KEYWORD,
)
def has_first_word(response: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Exactly `num_paragraphs` paragraphs, split at blank lines, the nth of which begins with a word, ignoring case.

    As in the official checker, blank paragraphs don't count toward the number but do count toward the position.
    """
    paragraphs = response.split("\n\n")
    written = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if written != num_paragraphs or nth_paragraph > written or not paragraphs[nth_paragraph - 1].strip():
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"""[.,?!'"]""", word)[0].lower() == first_word.lower()


@_register("detectable_content:number_placeholders", num_placeholders=_COUNT)
def has_placeholders(response: str, num_placeholders: int) -> bool:
    """At least `num_placeholders` placeholders in square brackets, none spanning lines."""
    count = 0
    for line in response.split("\n"):
        end = -1
        while (start := line.find("[", end + 1)) >= 0 and (end := line.find("]", start)) >= 0:
            count += 1
    return count >= num_placeholders


@_register("detectable_content:postscript", postscript_marker=_KEYWORD)
def has_postscript(response: str, postscript_marker: str) -> bool:
    """The marker of a postscript occurs, ignoring case; `P.S.` and `P.P.S` may have spaces inside."""
    marker = postscript_marker.strip()
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(patterns.get(marker, re.escape(marker.lower())), response.lower()) is not None


@_register("detectable_format:number_bullet_lists", num_bullets=_COUNT)
def has_bullets(response: str, num_bullets: int) -> bool:
    """Exactly `num_bullets` lines that begin with `*`, but not `**`, or with `-`.

    As in the official checker, a `*` alone on its line absorbs the next line, though a `-` there still counts.
    """
    stars = dashes = 0
    taken = False
    lines = response.split("\n")
    for number, line in enumerate(lines):
        text = line.lstrip()
        dashes += text.startswith("-")
        if taken:
            taken = False
        elif text == "*" and number + 1 < len(lines):
            stars, taken = stars + 1, True
        elif text.startswith("*") and text[1:2] not in ("", "*"):
            stars += 1
    return stars + dashes == num_bullets


@_register("detectable_format:constrained_response")
def is_constrained(response: str) -> bool:
    """One of IFEval's three answers occurs."""
    return any(f"My answer is {answer}." in response for answer in ("yes", "no", "maybe"))


@_register("detectable_format:number_highlighted_sections", num_highlights=_COUNT)
def has_highlights(response: str, num_highlights: int) -> bool:
    """At least `num_highlights` highlights, `*text*` or `**text**`, none spanning lines.

    As in the official checker, the two forms are counted separately and added up.
    """
    single = re.findall(r"\*[^\n*]*+\*", response)
    double = re.findall(r"\*\*[^\n*]*+\*\*", response)
    return sum(bool(found.strip("*").strip()) for found in single + double) >= num_highlights


@_register("detectable_format:multiple_sections", section_spliter=_KEYWORD, num_sections=_COUNT)
def has_sections(response: str, section_spliter: str, num_sections: int) -> bool:
    """At least `num_sections` headings: the given word and a number."""
    return len(re.findall(re.escape(section_spliter.strip()) + r"\s?\d+", response)) >= num_sections


@_register("detectable_format:json_format")
def is_json(response: str) -> bool:
    """The whole response is JSON, with or without a Markdown fence around it."""
    text = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


@_register("detectable_format:title")
def has_title(response: str) -> bool:
    """A line contains `<<title>>`, and the title isn't blank."""
    for line in response.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end - 2 and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


@_register("combination:two_responses")
def has_two_responses(response: str) -> bool:
    """Two different responses, separated by `******`."""
    parts = [part.strip() for part in response.split("******")]
    written = [part for part in parts if part]
    return all(parts[1:-1]) and len(written) == 2 and written[0] != written[1]


@_register("combination:repeat_prompt", prompt_to_repeat=_TEXT)
def repeats_prompt(response: str, prompt_to_repeat: str) -> bool:
    """The response begins with the prompt, ignoring case."""
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


@_register("startend:end_checker", end_phrase=_TEXT)
def ends_with_phrase(response: str, end_phrase: str) -> bool:
    """The response ends with a phrase, ignoring case and quotation marks around the response."""
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@_register("startend:quotation")
def is_quoted(response: str) -> bool:
    """The whole response is in double quotation marks."""
    text = response.strip()
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


@_register("change_case:capital_word_frequency", capital_frequency=_COUNT, capital_relation=_RELATION)
def has_capital_words(response: str, capital_frequency: int, capital_relation: str) -> bool:
    """The number of words in capitals alone is at least, or less than, `capital_frequency`."""
    return _compare(len(capital_words(response)), capital_relation, capital_frequency)


@_register("change_case:english_capital")
def is_english_capital(response: str) -> bool:
    """English without lowercase letters."""
    return response.isupper() and detect_language(response) in ("en", None)


@_register("change_case:english_lowercase")
def is_english_lowercase(response: str) -> bool:
    """English without capital letters."""
    return response.islower() and detect_language(response) in ("en", None)


@_register("punctuation:no_comma")
def has_no_comma(response: str) -> bool:
    """No comma."""
    return "," not in response
