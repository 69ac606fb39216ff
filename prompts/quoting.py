"""How prompts quote texts that aren't theirs, such as responses and instructions, so that none can pose as the prompt.

A prompt's layout is plain text, so a text in it that quotes the layout could pose as the end of one part and the start
of the next, and one that quotes a label could put words into the mouth of the model that is asked. Such quotes, and
look-alikes, get round brackets before they are shown (`defused`); all other text is shown as it is. Two texts look
alike if their skeletons are equal: what is left without white space, marks and invisible characters, in one case and
one script. A template whose parts aren't separated by words in brackets is refused: nothing could be defused. In a
conversation its headings are defused, too, and those that would number a turn or name its role alone.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from jinja2 import Environment, nodes

from tpo.errors import InputError
from tpo.records import Message

_CONVERSATION = "The question is the last message of a conversation."
_HEADINGS = {
    "system": "[System Message]",
    "user": "[Earlier User Message]",
    "assistant": "[Earlier Assistant Message]",
}
"""What stands above each turn of a conversation, by its role."""
_LAST_HEADING = "[Last User Message]"
LIKE_HEADINGS = tuple(
    f"[{heading}{number}]"
    for number in ("", " 1")
    for role in ("System", "User", "Assistant")
    for heading in (role, f"{role} Message", f"{role} Turn", f"Earlier {role} Message", f"Last {role} Message")
)
"""What could pass for the heading of a turn; a number stands for any."""


def shown_conversation(instruction: str, earlier: Sequence[Message], defuse: Callable[[str], str]) -> str:
    """The last turn of a conversation after the turns `earlier`, each under its heading, sanitized by `defuse`."""
    turns = [*((_HEADINGS[turn["role"]], turn["content"]) for turn in earlier), (_LAST_HEADING, instruction)]
    return "\n\n".join([_CONVERSATION, *(f"{heading}\n{defuse(text)}" for heading, text in turns)])


def without_control_tokens(text: str) -> str:
    """`text` with a space inside anything that a server's tokenizer could read as a control token of any model.

    Only for servers, whose tokenizers read whole chats; our own encoder reads message content as plain text.
    """
    return _CONTROL_TOKEN.sub(r"\g<0> ", text)


def turns_without_control_tokens(turns: Iterable[Message]) -> list[Message]:
    """Turns of a conversation, each `without_control_tokens`."""
    return [Message(role=turn["role"], content=without_control_tokens(turn["content"])) for turn in turns]


_CONTROL_TOKEN = re.compile(
    r"<(?=[|｜][^<>\n]{0,80}[|｜]>)"  # Llama 3, Qwen, ChatML, Phi; DeepSeek has full-width bars
    r"|<(?=/?(?:s|bos|eos|pad|unk|mask|sep|cls|start_of_turn|end_of_turn|start_of_image|endoftext|tool_call|think)>)"
    r"|<(?=</?SYS>>)|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|BOS|EOS|PAD)\])",
    re.I,
)


@dataclass(frozen=True, eq=False)
class Forgeries:
    """Texts that must not occur inside what a prompt quotes."""

    exact: tuple[str, ...]
    """Skeletons of all labels, and of everything in brackets in a template's prose."""
    opening: tuple[str, ...]
    """The characters that one can begin with."""
    pattern: re.Pattern[str]
    """Matches the skeleton of any of them, also with assistant names that the template doesn't use: C, D, 3."""

    @classmethod
    def of(cls, pieces: Sequence[str], beginnings: Sequence[str] = ()) -> "Forgeries":
        """What can be forged in a template with these pieces of prose and labels; `beginnings` are those of labels that
        may end in any way."""
        exact = _bracketed(pieces)
        numbered = [part for part in _bracketed([_NUMBER.sub(_ANY, piece) for piece in pieces]) if _ANY in part]
        choices = [re.escape(part) for part in exact]
        choices += [r"\w{1,2}".join(map(re.escape, part.split(_ANY))) for part in numbered]
        choices += [re.escape(skeleton_of(beginning)) for beginning in beginnings]
        kinds = {part[0] for part in (*exact, *beginnings)}
        opening = tuple(char for char, bracket in _BRACKETS.items() if bracket[0] in kinds)
        return cls(exact, opening, re.compile("|".join(choices)))


def _bracketed(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for text in texts for part in _IN_BRACKETS.findall(skeleton_of(text))))


@lru_cache(maxsize=128)  # A response is shown once for each other of its group, and in either place.
def defused(text: str, forgeries: Forgeries) -> str:
    """`text` without outer white space, and with round brackets in all that is a forgery."""
    text = text.strip()
    # Once is enough for any sane template, but a round bracket can complete another forgery: "[a (b)]" next to "[b]".
    while any(char in text for char in forgeries.opening):
        skeleton = skeleton_of(text)
        if not forgeries.pattern.search(skeleton):
            break
        origin = [i for i, char in enumerate(text) for _ in _SKELETONS[ord(char)] or ""]
        shown = list(text)
        for match in forgeries.pattern.finditer(skeleton):
            for i in range(*match.span()):
                if skeleton[i] in _ROUND:
                    shown[origin[i]] = _ROUND[skeleton[i]]
        text = "".join(shown)
    return text


def taken_apart(template: str, slots: Sequence[str]) -> list[str]:
    """The text of a user template before, between and after its `slots`; the template is read, never executed.

    Raises `InputError` unless it is text with these slots, each once and in this order.
    """
    named = ", ".join(f"{{{{ {slot} }}}}" for slot in slots)
    try:
        body = _ENVIRONMENT.parse(template).body
    except Exception as error:  # Besides syntax errors: numbers too long to read, nesting too deep.
        raise InputError(f"the user turn does not parse: {error}") from error
    pieces, found = [""], []
    for part in (part for node in body for part in (node.nodes if isinstance(node, nodes.Output) else [node])):
        if isinstance(part, nodes.TemplateData):
            pieces[-1] += part.data
        elif isinstance(part, nodes.Name):
            found.append(part.name)
            pieces.append("")
        else:
            raise InputError(
                f"the user turn has {type(part).__name__} in line {part.lineno}, expected only text and slots: "
                f"write {named} where they belong, without filters, conditions or calls"
            )
    if found != list(slots):
        raise InputError(
            f"the user turn shows {', '.join(found) or 'nothing'}: expected {named}, each once and in this order"
        )
    return pieces


def check_fences(slots: Sequence[str], pieces: Sequence[str], forgeries: Forgeries) -> None:
    """Raises `InputError` unless each slot comes after words in brackets, none of which a slot's text can complete."""
    seen = [skeleton_of(piece) for piece in pieces]
    for slot, piece, before, after in zip(slots, pieces, seen, seen[1:], strict=False):
        if not _IN_BRACKETS.search(before):
            raise InputError(
                f"only {piece.strip()!r} comes before {slot}, and a text there could say the same: write words in "
                f"square or angle brackets there, such as [{slot.title()}]"
            )
        for part in forgeries.exact:
            ends = any(before.endswith(part[:i]) or after.startswith(part[i:]) for i in range(1, len(part)))
            if ends or before in part[1:-1]:
                raise InputError(
                    f"the text in {slot} or next to it could complete {part!r}: put no brackets around slots, and "
                    "more than a label's letter between them"
                )


def skeleton_of(text: str) -> str:
    """What `text` looks like."""
    return text.translate(_SKELETONS)


class _Skeletons(dict[int, str | None]):
    """What each character looks like: letters and signs in one case and script, None for what leaves no trace."""

    def __missing__(self, code: int) -> str | None:
        plain = unicodedata.normalize("NFKD", chr(code).translate(_TWINS)).translate(_TWINS).casefold()
        # Besides separators, marks and controls, what is blank by design. Brackets are those of the table, no others.
        if chr(code) not in _BRACKETS:
            plain = "".join(c for c in plain if unicodedata.category(c)[0] not in "ZMC" and c not in _BLANKS)
        self[code] = plain or None
        return self[code]


_ROUND = {"[": "(", "]": ")", "<": "(", ">": ")"}
_BRACKETS = {
    **dict.fromkeys("[［﹇【〔﹝〖〘❲⟬⦋⦍⦏⦗⁅⸢⹕︹︻︗", "["),
    **dict.fromkeys("]］﹈】〕﹞〗〙❳⟭⦌⦎⦐⦘⁆⸥⹖︺︼︘", "]"),
    **dict.fromkeys("⟦〚⹗", "[["),
    **dict.fromkeys("⟧〛⹘", "]]"),
    **dict.fromkeys("<＜﹤≮‹❬❮❰⟨〈\u2329⧼︿", "<"),
    **dict.fromkeys(">＞﹥≯›❭❯❱⟩〉\u232a⧽﹀", ">"),
}
"""Brackets that look like square or angle ones, and which."""
_BLANKS = "[]<>\u115f\u1160\u2800\u3164\uffa0"
_TWINS = str.maketrans(
    _BRACKETS
    | dict.fromkeys("‘’‚‛′‵ʹʻʼʽˈˊˋ´`＇｀՚ߴߵ❛❜", "'")
    | dict(zip("АВСЕНІЈКМОРЅТУХԚԜаеіјорсухѕһԁԛԝв", "ABCEHIJKMOPSTYXQWaeijopcyxshdqwb", strict=True))  # Cyrillic
    | dict(zip("ΑΒϹΕΖΗΙΚΜΝΟΡΤΥΧϲινορυ", "ABCEZHIKMNOPTYXcivopu", strict=True))  # Greek
    | dict(zip("ᎪᏴᏟꓮꓐꓚⲀⲂⲤᴀʙᴄ🅐🅑🅒🅰🅱🅲🇦🇧🇨", "ABC" * 7, strict=True))  # the labels' letters elsewhere
)
"""Characters that Unicode keeps apart and readers don't: brackets, apostrophes and the commonest letters."""
_SKELETONS = _Skeletons()
_IN_BRACKETS = re.compile(r"\[\[?[^][<>]*\w[^][<>]*\]\]?|<[^][<>]*\w[^][<>]*>")
_NUMBER = re.compile(r"\b[A-Z0-9]\b")
_ANY = "\N{OBJECT REPLACEMENT CHARACTER}"
_ENVIRONMENT = Environment(autoescape=False, keep_trailing_newline=True)
