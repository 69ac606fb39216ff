r"""Reads final answers as people and models write them, and settles what needs no algebra.

math-verify reads LaTeX only inside an environment; from bare LaTeX it takes the last number, so that `\frac{3}{2}` and
`\frac{1}{2}` look alike. `read_answer` therefore cuts an answer into its expression (LaTeX, to be put between dollar
signs), its unit, percent sign and number base, or finds that it is words. `settle` compares words, choice letters,
units, bases and plain numbers; expressions are left to a computer algebra system (`judges.math_checker`).

What is lenient, as the usual graders of MATH are: a unit, a percent sign, a base or `x =` that only one side writes is
no difference. What is strict: two units or bases that differ, and brackets, since (1, 2] and [1, 2) are not the same.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 2000
"""Characters of an answer that are read, its last ones: a response without an answer is read whole."""
MAX_DIGITS = 1000
"""Longer numbers aren't read here: Python refuses to read very long ones."""
SAFE_DIGITS = 6
"""Significant digits from which a rounded decimal counts as the number that it rounds."""


@dataclass(frozen=True)
class Answer:
    """One final answer, taken apart."""

    text: str
    """The whole answer without typography and outer punctuation, in one case and without blanks."""
    expression: str
    """Its expression as bare LaTeX; empty if it is words alone."""
    unit: str = ""
    """A canonical unit, such as `cm^2`; empty if there is none or none that is known."""
    percent: bool = False
    """Whether the expression is followed by a percent sign."""
    base: str = ""
    """The base of a number written as `52_8`, whose digits the expression holds."""
    choice: str = ""
    """The letter of a choice, as in `C`, `(C)` or `C) 42`."""
    number: Fraction | None = None
    """The expression's value if it is a plain number."""
    decimals: int | None = None
    """Digits after the point if that number is written as a decimal."""


def read_answer(text: str) -> Answer:
    """An answer taken apart; of several expressions in prose the last one, as graders do."""
    plain = _plain(_last_boxed(text)[-MAX_LENGTH:])
    found = _CHOICE.match(plain.replace(_WORD, ""))
    choice = (found[found.lastindex or 0]).casefold() if found else ""
    expression, unit = _last_expression(plain)
    percent = bool(re.search(r"\\?%$", expression))
    expression = _without_outer(re.sub(r"\\?%$", "", expression))
    based = _BASED.fullmatch(expression)
    if based:
        expression = based[1]
    number, decimals = _number(expression)
    shown = re.sub(r"\s+", "", _without_outer(plain.replace(_WORD, ""))).casefold()
    return Answer(shown, expression, unit, percent, based[2] if based else "", choice, number=number, decimals=decimals)


def settle(answer: Answer, reference: Answer) -> bool | None:
    """Whether two answers are equal; None if that takes algebra."""
    if answer.text == reference.text:
        return True
    if reference.choice and answer.choice and (len(reference.text.strip("()")) == 1):
        return answer.choice == reference.choice
    if not answer.expression or not reference.expression:
        return _words(answer.text) == _words(reference.text)
    if answer.unit and reference.unit and answer.unit != reference.unit:
        return False
    if answer.base or reference.base:
        same = answer.expression.casefold() == reference.expression.casefold()
        return same and (answer.base == reference.base or not (answer.base and reference.base))
    if answer.number is None or reference.number is None:
        return None
    scales = (1, 100) if answer.percent != reference.percent else (1,)
    return any(
        _same_number(answer, answer.number / (scale if answer.percent else 1), reference, reference.number, scale)
        for scale in scales
    )


def to_compare(answer: Answer, reference: Answer) -> list[tuple[str, str]]:
    """Pairs of LaTeX (answer, reference): the answers are equal if the two expressions of any pair are."""
    ours, theirs = answer.expression, reference.expression
    if ("=" in ours) != ("=" in theirs):
        ours, theirs = _right_hand(ours, given=False), _right_hand(theirs, given=True)
        if ("=" in ours) != ("=" in theirs) and "," not in ours + theirs:
            return []  # an equation; math-verify would compare its right-hand side
    if (r"\in " in ours) != (r"\in " in theirs):
        ours, theirs = (re.sub(r"^[A-Za-z]\s*\\in ", "", side) for side in (ours, theirs))
    pairs = [(ours, theirs)]
    if answer.percent and not reference.percent:
        pairs.append((rf"\frac{{{ours}}}{{100}}", theirs))
    if reference.percent and not answer.percent:
        pairs.append((ours, rf"\frac{{{theirs}}}{{100}}"))
    return pairs


def _same_number(answer: Answer, a: Fraction, reference: Answer, b: Fraction, scale: int) -> bool:
    b = b / scale if reference.percent else b
    if a == b:
        return True
    if answer.percent != reference.percent and scale != 1:
        return False
    sides = ((a, answer.decimals, b, reference.decimals), (b, reference.decimals, a, answer.decimals))
    return any(_rounds(value, digits, other, others) for value, digits, other, others in sides)


def _rounds(value: Fraction, decimals: int | None, exact: Fraction, others: int | None) -> bool:
    """Whether a decimal is another number cut or rounded at its last place, with enough digits to be sure."""
    if decimals is None or (others is not None and others <= decimals):
        return False
    return len(str(abs(int(value * 10**decimals)))) >= SAFE_DIGITS and abs(value - exact) < Fraction(1, 10**decimals)


def _right_hand(expression: str, *, given: bool) -> str:
    """What an equation says something is, if it does: `x = 5`, `2 + 3 = 5`; for an answer also `a + b = 5`."""
    sides = [side.strip() for side in expression.split("=")]
    if len(sides) < 2 or _RELATION.search(expression):
        return expression
    left, right = sides[0], sides[-1]
    if _NAME.fullmatch(right) and not _NAME.fullmatch(left):
        return left
    if _NAME.fullmatch(left) or not _VARIABLE.search(left):
        return right
    asked = not given and right != "0" and not _VARIABLE.search(right)
    return right if asked or len(sides) > 2 else expression


def _number(expression: str) -> tuple[Fraction | None, int | None]:
    """The value of a plain number, and its digits after the point if it is a decimal."""
    if len(expression) > MAX_DIGITS:
        return None, None
    if found := re.fullmatch(r"([+-]?)\s*(\d+(?:\.\d*)?|\.\d+)", expression):
        value = Fraction(found[2].rstrip(".")) * (-1 if found[1] == "-" else 1)
        _, point, decimals = found[2].partition(".")
        return value, len(decimals) if point else None
    if found := _MIXED.fullmatch(expression):
        sign, whole, top, bottom = found[1], found[2] or "0", found[3] or found[5], found[4] or found[6]
        if not int(bottom):
            return None, None
        value = int(whole) + Fraction(int(top), int(bottom))
        return -value if sign == "-" else value, None
    return None, None


def _last_boxed(text: str) -> str:
    r"""What the last `\boxed` holds, or all of a text that has none."""
    start = max(text.rfind(r"\boxed{"), text.rfind(r"\fbox{"))
    if start < 0:
        return text
    start, depth = text.index("{", start) + 1, 1
    for end in range(start, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return text[start:end]
    return text[start:]


def _plain(text: str) -> str:
    """One typography for one thing; words of text commands are marked as words."""
    text = text.strip().translate(_TYPOGRAPHY)
    for pattern, shown in _SPELLINGS:
        text = pattern.sub(shown, text)
    text = _TEXT.sub(_marked, text)
    text = re.sub(r"\\(?:mathbf|mathit|mathrm|bm|boldsymbol)\s*\{([^{}]*)\}", r"\1", text)
    return _without_thousands(" ".join(text.split()))


def _marked(found: re.Match[str]) -> str:
    words = " ".join(_WORD + word for word in found[1].split())
    power = found[2]
    return f" {words}^{power} " if power and words else f" {words} "


def _without_thousands(text: str) -> str:
    """Without the commas of 1,000,000, which inside of brackets would be those of a tuple."""
    depth, out, at = 0, "", 0
    while at < len(text):
        found = _THOUSANDS.match(text, at) if depth == 0 and (not at or text[at - 1] not in "0123456789.,") else None
        if found:
            out, at = out + found[0].replace(",", ""), found.end()
            continue
        depth = max(0, depth + (text[at] in "([{") - (text[at] in ")]}"))
        out, at = out + text[at], at + 1
    return out


def _last_expression(plain: str) -> tuple[str, str]:
    """The last expression of an answer, and the unit that follows it."""
    environments = [found for found in _ENVIRONMENT.finditer(plain) if not _has_words(_inside(found))]
    if not environments:
        pieces = _pieces(re.sub(r"\$", f" {_WORD}dollar " if "$" in plain else " ", plain))
    else:
        pieces, at = [], 0
        for found in environments:
            pieces += [("word", word) for word in re.findall(r"[^\s]+", plain[at : found.start()])]
            pieces += _pieces(_inside(found))
            at = found.end()
        pieces += [("word", word) for word in re.findall(r"[^\s]+", plain[at:])]
    return _last_of(_without_empty(pieces))


_Pieces = list[tuple[str, str]]


def _pieces(text: str) -> _Pieces:
    """An answer without environments as words and the expressions between them."""
    pieces: _Pieces = []
    at = 0
    words = [found for found in _RUN.finditer(text) if _is_word(text, found)]
    # In prose `a` and `I` are words; in an expression they are names.
    prose = any(len(found[0].lstrip(_WORD)) > 1 and found[0].lstrip(_WORD).lower() not in UNITS for found in words)
    for found in _RUN.finditer(text):
        article = prose and found[0] in ("a", "A", "I") and _alone(text, found)
        if article or _is_word(text, found):
            pieces += [("math", text[at : found.start()]), ("word", found[0].lstrip(_WORD))]
            at = found.end()
    return [*pieces, ("math", text[at:])]


def _without_empty(pieces: _Pieces) -> _Pieces:
    kept = [(kind, _without_outer(piece) if kind == "math" else piece.strip(".,;:!?*\"'")) for kind, piece in pieces]
    return [(kind, piece) for kind, piece in kept if re.search(r"\w|\\[a-z{%]|\^", piece)]


def _last_of(pieces: _Pieces) -> tuple[str, str]:
    """The last expression, with those that `and`, `or` or a comma join to it, and its unit."""
    places = [i for i, (kind, _) in enumerate(pieces) if kind == "math"]
    if not places:
        return "", ""
    last = places[-1]
    joined, at = [pieces[last][1]], last
    while at > 1 and pieces[at - 1][1].lower() in ("and", "or") and pieces[at - 2][0] == "math":
        at -= 2
        joined.insert(0, pieces[at][1])
    after = [piece for kind, piece in pieces[last + 1 :] if kind == "word"]
    before = ["dollar"] if at > 0 and pieces[at - 1][1] == "dollar" else []
    expression = ",".join(joined)
    degrees = re.search(r"\^\s*\{?\s*\\circ\s*\}?|\\degree", expression)
    expression = re.sub(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree)\s*", " ", expression).strip()
    return expression, _unit(after or before) or ("degree" if degrees else "")


def _unit(words: list[str]) -> str:
    """The canonical unit that words name; empty if it is unknown."""
    power, name = "", ""
    for each in words:
        word, _, written = each.lower().partition("^")
        if word in ("square", "sq", "cubic", "cu"):
            power = "^3" if word.startswith("cu") else "^2"
        elif word in UNITS and not name:
            name, power = UNITS[word], f"^{written.strip('{}')}" if written else power
        elif word not in ("units", "unit"):
            return ""
    return name + power if name else ""


def _has_words(text: str) -> bool:
    """Whether text between two dollar signs is prose, and the signs are money."""
    return any(_is_word(text, found) and not found[0].startswith(_WORD) for found in _RUN.finditer(text))


def _is_word(text: str, found: re.Match[str]) -> bool:
    run = found[0].partition("^")[0]
    if run.startswith(_WORD):
        return True
    if text[: found.start()].endswith("\\") or run.lower() in FUNCTIONS or len(run) == 1:
        return False
    if re.search(r"\\(?:begin|end|operatorname|mathbb|mathcal)\s*\*?\{$", text[: found.start()]):
        return False
    after_number = bool(re.search(r"\d\s*$", text[: found.start()])) and run.lower() in UNITS
    return len(run) > 3 or after_number or _alone(text, found)


def _alone(text: str, found: re.Match[str]) -> bool:
    before, after = text[: found.start()][-1:], text[found.end() :][:1]
    return (not before or before in " (*,.;:") and (not after or after in " )*,.;:!?")


def _inside(found: re.Match[str]) -> str:
    return next(group for group in found.groups() if group is not None)


def _without_outer(text: str) -> str:
    """Without outer blanks and punctuation that says nothing; brackets, signs and factorials do."""
    return re.sub(r"^[\s#*,;:=`\"'“”‘’]+|(?:[\s#*.,;:`\"'“”‘’?]|(?<!\d)!)+$", "", text)


def _words(text: str) -> str:
    return re.sub(r"^(?:the|an|a)(?=\w{3})", "", re.sub(r"[^\w]", "", text))


_WORD = "\ue000"
"""Marks a word that a text command holds, which may be a single letter."""
FUNCTIONS = frozenset(
    ("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln", "exp",
     "sqrt", "pi", "max", "min", "gcd", "lcm", "lim", "det", "theta", "alpha", "beta", "gamma", "phi", "infty", "mod",
     "frac", "cdot", "times")
)  # fmt: skip
"""Runs of letters that are mathematics."""
_UNIT_NAMES = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "km": "kilometer kilometre",
    "inch": "in inches", "ft": "foot feet", "yd": "yard", "mi": "mile", "mg": "milligram", "g": "gram gm",
    "kg": "kilogram", "lb": "pound", "oz": "ounce", "ml": "milliliter millilitre", "l": "liter litre",
    "s": "second sec", "min": "minute mins", "h": "hour hr hrs", "day": "", "week": "", "month": "", "year": "yr",
    "degree": "deg", "radian": "rad", "dollar": "usd", "cent": "", "euro": "", "mph": "", "kmh": "kph",
}  # fmt: skip
UNITS = {
    spelling + plural: unit
    for unit, others in _UNIT_NAMES.items()
    for spelling in (unit, *others.split())
    for plural in ("", "s")
}
"""The units that are distinguished, by their spellings."""
_TYPOGRAPHY = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ",
     "°": r"^\circ ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
     "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ",
     "θ": r"\theta ", "²": "^2", "³": "^3", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
     "\u00a0": " ", "\u2009": " ", "\u202f": " ", "€": f" {_WORD}euro "}
)  # fmt: skip
_SPELLINGS = [
    (re.compile(pattern), shown)
    for pattern, shown in (
        (r",\s*\\!\s*", ","),
        (r"(?<!\\)\\\$", f" {_WORD}dollar "),
        (r"\\left(?![a-z])|\\right(?![a-z])|\\[bB]igg?[lr]?(?![a-z])|\\displaystyle|\\limits|\\!", ""),
        (r"(?<!\\)\\[,;: ]|(?<!\\)~|\\q?quad(?![a-z])|\\(?:h|v)space\{[^{}]*\}", " "),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\lbrace(?![a-z])", r"\\{"),
        (r"\\rbrace(?![a-z])", r"\\}"),
        (r"\\(leq|geq|neq)(?:slant)?(?![a-z])", lambda found: "\\" + found[1][:2]),
        (r"\\in(?![a-z])\s*", r"\\in "),
        (r"(?<![\\a-zA-Z])√\s*(\d+|\w)", r"\\sqrt{\1}"),
        (r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\a-zA-Z])(sqrt|pi|sin|cos|tan|cot|sec|csc|log|ln|theta)(?![a-zA-Z])", r"\\\1 "),
        (r"(?i)(?<![\\a-zA-Z])(?:infinity|inf)(?![a-zA-Z])", r"\\infty "),
        (r"\*\*(?=[\d({a-z-])(?<=[\w)}]\*\*)", "^"),
        (r"(?<=[\w)])\s?\*\s?(?=[\w(\\])", r"\\cdot "),
        (r"\^\s*(-?\d{2,})", r"^{\1}"),
        (r"(?<![\d.}])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])", r"\1\\frac{\2}{\3}"),
        (r"\s+(?:per\s?cent|percent)(?![a-z])", r"\\%"),
    )
]
_TEXT = re.compile(
    r"\\(?:text|mbox|textbf|textit|textrm|textsf|texttt|emph|hbox|mathrm(?=\{\s*[a-zA-Z]{2}))\s*\{([^{}]*)\}"
    r"(?:\s*\^\s*\{?([23])\}?)?"
)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?![\d])")
_ENVIRONMENT = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\\\[(.+?)(?<!\\)\\\]|(?<!\\)\\\((.+?)(?<!\\)\\\)|\$([^$]+)\$", re.S)
_RUN = re.compile(rf"{_WORD}[^\s]+|[A-Za-z]+(?:'s)?(?:(?<=[a-z][a-z])\^\{{?[23]\}}?)?")
_CHOICE = re.compile(r"\s*\(?([A-Za-z])\)?\s*$|\s*\(([A-Z])\)|\s*([A-Z])[).:]\s")
_BASED = re.compile(r"([0-9A-Fa-f]*\d[0-9A-Fa-f]*)\s*_\s*\{?\s*(\d{1,2})\s*\}?")
_MIXED = re.compile(
    r"([+-]?)\s*(?:(\d+)\s*(?=\\frac))?(?:\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d+)\s*/\s*(\d+))"
)
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|lt|gt|approx)(?![a-z])|,")
_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?'*(?:\s*\(\s*\\?[a-z]+\s*\))?|\|?[A-Z]{1,3}\|?")
_VARIABLE = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z]*\{)")
