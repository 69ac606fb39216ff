"""Verdict prompts: show a judge two responses to one instruction, and read which of them it finds better.

The layout is exactly the one that the Self-Taught Evaluator was trained on (2408.02666; its published code).

A conversation takes the instruction's place turn by turn, each under a heading in brackets; the model wasn't trained on
such questions, and neither was any other judge of this layout.

The layout is plain text, so a response that quotes it could pose as the end of one answer and the start of the next,
and one that quotes a label could put words into the judge's mouth. Such quotes, and look-alikes, get round brackets
before they are shown (`defused`); all other text is shown as it is. Two texts look alike if their skeletons are equal:
what is left without white space, marks and invisible characters, in one case and one script. A template whose parts
aren't separated by words in brackets is refused: nothing could be defused. In a conversation, and in responses to one,
its headings are defused, too, and those that would number a turn or name its role alone.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache

from jinja2 import Environment, nodes

from prompts.template import read_template, shipped_template
from tpo.config.judges import PairwiseJudge
from tpo.engines.inference.reply import without_thinking
from tpo.errors import InputError
from tpo.records import Message

SLOTS = ("instruction", "first", "second")
"""The slots of a user template, in this order."""
LABELS = ("[[A]]", "[[B]]")
"""The labels for the response shown first, and for the one shown second."""
TIE_LABEL = "[[C]]"
"""The label that some judges write for a tie, though the prompt doesn't offer it."""
_CONVERSATION = "The question is the last message of a conversation."
_HEADINGS = {
    "system": "[System Message]",
    "user": "[Earlier User Message]",
    "assistant": "[Earlier Assistant Message]",
}
"""What stands above each turn of a conversation, by its role."""
_LAST_HEADING = "[Last User Message]"
_LIKE_HEADINGS = tuple(
    f"[{heading}{number}]"
    for number in ("", " 1")
    for role in ("System", "User", "Assistant")
    for heading in (role, f"{role} Message", f"{role} Turn", f"Earlier {role} Message", f"Last {role} Message")
)
"""What could pass for the heading of a turn; a number stands for any."""


class Verdict(StrEnum):
    """A judge's decision."""

    FIRST = "A"
    """The response shown first is better."""
    SECOND = "B"
    """The response shown second is better."""
    TIE = "C"
    """Neither is; the prompt doesn't offer it, but judges say it."""


@dataclass(frozen=True)
class VerdictPrompt:
    """One way to ask for a verdict."""

    system_template: str
    """The system turn, used verbatim."""
    user_template: str
    """The user turn: text with `{{ instruction }}`, `{{ first }}` and `{{ second }}`, in this order, and nothing else
    of Jinja's."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the templates: equal fingerprints prompt alike."""
        return hashlib.sha256(repr((self.system_template, self.user_template)).encode()).hexdigest()

    def render(self, instruction: str, first: str, second: str, earlier: Sequence[Message] = ()) -> list[Message]:
        """The chat messages that ask which of two responses is better, all texts sanitized; the responses are to an
        instruction, after the turns `earlier` in its conversation."""
        head, between, middle, tail = self._pieces
        responses = [self.defused(text, in_chat=bool(earlier)) for text in (first, second)]
        user = f"{head}{self.shown(instruction, earlier)}{between}{responses[0]}{middle}{responses[1]}{tail}"
        return [Message(role="system", content=self.system_template), Message(role="user", content=user)]

    def shown(self, instruction: str, earlier: Sequence[Message] = ()) -> str:
        """What takes the instruction's place: itself, or its conversation turn by turn, sanitized."""
        if not earlier:
            return self.defused(instruction)
        turns = [*((_HEADINGS[turn["role"]], turn["content"]) for turn in earlier), (_LAST_HEADING, instruction)]
        sections = [f"{heading}\n{self.defused(text, in_chat=True)}" for heading, text in turns]
        return "\n\n".join([_CONVERSATION, *sections])

    def defused(self, text: str, *, in_chat: bool = False) -> str:
        """`text` as this prompt shows it: without outer white space, and with round brackets in whatever could pass for
        a part of the template, for a label or, `in_chat`, for the heading of a conversation's turn."""
        return _defused(text, self._forgeries_in_chat if in_chat else self._forgeries)

    def prose(self) -> list[str]:
        """The constant pieces of text, in order: system turn, then the user turn around its three slots."""
        return [self.system_template, *self._pieces]

    @cached_property
    def _pieces(self) -> tuple[str, str, str, str]:
        return _taken_apart(self.user_template)

    @cached_property
    def _forgeries(self) -> "_Forgeries":
        forgeries = _Forgeries.of(self._pieces)
        _check_fences(self._pieces, forgeries)
        return forgeries

    @cached_property
    def _forgeries_in_chat(self) -> "_Forgeries":
        return _Forgeries.of([*self._pieces, *_LIKE_HEADINGS])


def load_verdict_prompt(config: PairwiseJudge) -> VerdictPrompt:
    """The prompt for a config, with its template files checked.

    Raises `InputError` if a template is missing, if the user turn isn't text with the three slots, each once, in order
    and fenced by words in brackets, or if neither turn mentions the labels.
    """
    shipped = PROMPTS["cot" if config.mode == "cot" else "label"]
    prompt = VerdictPrompt(
        read_template(config.system_template, "verdict").strip() if config.system_template else shipped.system_template,
        read_template(config.user_template, "verdict") if config.user_template else shipped.user_template,
    )
    try:
        prompt.render("", "", "")
    except InputError as error:
        raise InputError(f"verdict template {config.user_template}: {error}") from error
    unsaid = [label for label in LABELS if not any(label in piece for piece in prompt.prose())]
    if unsaid:
        raise InputError(
            f"the verdict templates never mention {' and '.join(unsaid)}, from which verdicts are read: tell the judge "
            f'in the system or the user turn to finish with "{LABELS[0]}" or "{LABELS[1]}"'
        )
    return prompt


def parse_verdict(text: str, *, finished: bool) -> Verdict | None:
    """The verdict in what a judge wrote; None if there is none, or more than one.

    As published, both labels together are no verdict, and `[[C]]` alone is a tie. A judgment cut by the token limit
    (`finished` is False) has no verdict either, since a label so far may be a quotation. A native thought at its
    beginning is ignored, since it weighs both.
    """
    if not finished:
        return None
    text = without_thinking(text)
    first, second = (label in text for label in LABELS)
    if first and second:
        return None
    if first or second:
        return Verdict.FIRST if first else Verdict.SECOND
    return Verdict.TIE if TIE_LABEL in text else None


def defused(text: str) -> str:
    """`text` as the shipped prompts show it; a custom prompt has its own delimiters, so use its method."""
    return PROMPTS["cot"].defused(text)


def without_control_tokens(text: str) -> str:
    """`text` with a space inside anything that a server's tokenizer could read as a control token of any model.

    Only for servers, whose tokenizers read whole chats; our own encoder reads message content as plain text.
    """
    return _CONTROL_TOKEN.sub(r"\g<0> ", text)


_CONTROL_TOKEN = re.compile(
    r"<(?=[|｜][^<>\n]{0,80}[|｜]>)"  # Llama 3, Qwen, ChatML, Phi; DeepSeek has full-width bars
    r"|<(?=/?(?:s|bos|eos|pad|unk|mask|sep|cls|start_of_turn|end_of_turn|start_of_image|endoftext|tool_call|think)>)"
    r"|<(?=</?SYS>>)|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|BOS|EOS|PAD)\])",
    re.I,
)


@dataclass(frozen=True, eq=False)
class _Forgeries:
    """Texts that must not occur inside a prompt."""

    exact: tuple[str, ...]
    """Skeletons of all labels, and of everything in brackets in a template's prose."""
    opening: tuple[str, ...]
    """The characters that one can begin with."""
    pattern: re.Pattern[str]
    """Matches the skeleton of any of them, also with assistant names that the template doesn't use: C, D, 3."""

    @classmethod
    def of(cls, pieces: Sequence[str]) -> "_Forgeries":
        """What can be forged in a template with these pieces of prose."""
        exact = _bracketed([*LABELS, TIE_LABEL, *pieces])
        numbered = [part for part in _bracketed([_NUMBER.sub(_ANY, piece) for piece in pieces]) if _ANY in part]
        choices = [re.escape(part) for part in exact]
        choices += [r"\w{1,2}".join(map(re.escape, part.split(_ANY))) for part in numbered]
        kinds = {part[0] for part in exact}
        opening = tuple(char for char, bracket in _BRACKETS.items() if bracket[0] in kinds)
        return cls(exact, opening, re.compile("|".join(choices)))


def _bracketed(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for text in texts for part in _IN_BRACKETS.findall(_skeleton(text))))


@lru_cache(maxsize=128)  # A response is shown once for each other of its group, and in either place.
def _defused(text: str, forgeries: _Forgeries) -> str:
    text = text.strip()
    # Once is enough for any sane template, but a round bracket can complete another forgery: "[a (b)]" next to "[b]".
    while any(char in text for char in forgeries.opening):
        skeleton = _skeleton(text)
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


def _taken_apart(template: str) -> tuple[str, str, str, str]:
    """The text of a user template before, between and after its slots; the template is read, never executed."""
    try:
        body = _ENVIRONMENT.parse(template).body
    except Exception as error:  # Besides syntax errors: numbers too long to read, nesting too deep.
        raise InputError(f"the user turn does not parse: {error}") from error
    pieces, slots = [""], []
    for part in (part for node in body for part in (node.nodes if isinstance(node, nodes.Output) else [node])):
        if isinstance(part, nodes.TemplateData):
            pieces[-1] += part.data
        elif isinstance(part, nodes.Name):
            slots.append(part.name)
            pieces.append("")
        else:
            raise InputError(
                f"the user turn has {type(part).__name__} in line {part.lineno}, expected only text and slots: "
                f"write {_ALL_SLOTS} where they belong, without filters, conditions or calls"
            )
    if tuple(slots) != SLOTS:
        raise InputError(
            f"the user turn shows {', '.join(slots) or 'nothing'}: expected {_ALL_SLOTS}, each once and in this order"
        )
    head, between, middle, tail = pieces
    return head, between, middle, tail


def _check_fences(pieces: Sequence[str], forgeries: _Forgeries) -> None:
    """Raises `InputError` unless each slot comes after words in brackets, none of which a slot's text can complete."""
    seen = [_skeleton(piece) for piece in pieces]
    for slot, piece, before, after in zip(SLOTS, pieces, seen, seen[1:], strict=False):
        if not _IN_BRACKETS.search(before):
            raise InputError(
                f"only {piece.strip()!r} comes before {slot}, and a response could say the same: write words in "
                f"square or angle brackets there, such as [{slot.title()}]"
            )
        for part in forgeries.exact:
            ends = any(before.endswith(part[:i]) or after.startswith(part[i:]) for i in range(1, len(part)))
            if ends or before in part[1:-1]:
                raise InputError(
                    f"the text in {slot} or next to it could complete {part!r}: put no brackets around slots, and "
                    "more than a label's letter between them"
                )


def _skeleton(text: str) -> str:
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
_ALL_SLOTS = ", ".join(f"{{{{ {slot} }}}}" for slot in SLOTS)
_ENVIRONMENT = Environment(autoescape=False, keep_trailing_newline=True)
PROMPTS: Mapping[str, VerdictPrompt] = {
    "cot": VerdictPrompt(shipped_template("verdict_cot.system").strip(), shipped_template("verdict.user")),
    "label": VerdictPrompt(shipped_template("verdict_label.system").strip(), shipped_template("verdict.user")),
}
"""The shipped prompts: explain first, or give the verdict alone."""
