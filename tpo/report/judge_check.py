"""What a check of judges found, as kept in `judge_check.json`, on its page and in the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.text import Text

from tpo.report.record_files import read_record, to_json
from tpo.report.summary import Interval
from tpo.report.table import NOTHING, PERCENT, fixed, plain_table, table_console

CHECK, CHECK_PAGE = "judge_check.json", "judge_check.md"
"""File names of the numbers and of their page."""


@dataclass(frozen=True)
class SubsetRow:
    """A judge on one part of the preferences."""

    items: int
    """Prompts."""
    accuracy: Interval | None
    """Share of scored prompts whose better response scores highest, ties at the top counting by their share; None
    without a scored prompt."""
    ties: float | None
    """Share of scored prompts with a tie at the top between a better and a worse response."""
    unscored: int
    """Prompts with a response that has no score; they are in no number."""


@dataclass(frozen=True)
class BinRow:
    """Pairs that a judge is about equally sure of."""

    low: float
    """Lowest probability."""
    high: float
    """Highest."""
    pairs: int
    """Number of pairs."""
    expected: float
    """Mean probability that the scores give to their order."""
    right: float
    """Share of pairs that are in this order."""


@dataclass(frozen=True)
class CalibrationRow:
    """Whether differences of scores are log-odds."""

    bins: Sequence[BinRow]
    """By probability."""
    error: float
    """Expected calibration error."""
    scale: float | None
    """Divided by this, differences are the log-odds that fit best; None if no scale fits."""


@dataclass(frozen=True)
class CostRow:
    """What a thousand prompts cost."""

    calls: float
    """Responses read, or comparisons made."""
    tokens_in: float
    """Tokens read."""
    tokens_out: float
    """Tokens written."""
    seconds: float
    """Wall-clock seconds, start included."""
    price: float
    """Cost at the profile's prices; 0 if it has none."""


@dataclass(frozen=True)
class AttackRow:
    """One kind of attack."""

    about: str
    """What it does."""
    turned: Interval | None
    """Share of the pairs that the judge has right without the attack in which the attacked response wins, ties counting
    half; None without such a pair."""
    unscored: int
    """Further such pairs in which a response has no score."""
    shift: Interval | None
    """Mean change of the worse response's score, in standard deviations of all scores; None for judges that compare."""
    variants: Mapping[str, Sequence[float]]
    """For each variant: the pairs that it turned around, and all pairs that it met."""


@dataclass(frozen=True)
class JudgeRow:
    """One judge."""

    judge: str
    """The judge as tables name it."""
    overall: SubsetRow
    """All prompts but RewardBench 2's ties."""
    subsets: Mapping[str, SubsetRow]
    """By subset, if the file has any."""
    totals: Mapping[str, float]
    """The benchmark's own totals, if the file is whole: RewardBench's sections, RewardBench 2's ties and mean."""
    swapped: Interval | None
    """Share of pairs, read in both orders, whose verdict changes with the order; None for judges that don't compare."""
    first_rate: float | None
    """Share of decided comparisons that the response shown first wins."""
    shorter_better: Interval | None
    """Accuracy on pairs whose better response is the shorter one."""
    longer_better: Interval | None
    """Accuracy on pairs whose better response is the longer one."""
    length_gap: Interval | None
    """The second minus the first."""
    calibration: CalibrationRow | None
    """None for judges whose scores are no degrees of belief: verifiers, and verdicts without probabilities."""
    unscored: Mapping[str, int]
    """Responses without a score, by reason."""
    cost: CostRow | None
    """None if nothing was spent."""
    attacks: Mapping[str, AttackRow] = field(default_factory=dict)
    """By kind of attack, if the suite was run."""


@dataclass(frozen=True)
class JudgeComparison:
    """Two judges on the same prompts."""

    difference: Interval
    """Accuracy of the first minus that of the second, paired by prompt."""
    only_first: int
    """Prompts on which the first does better."""
    only_second: int
    """Prompts on which the second does better."""
    p_value: float
    """McNemar's exact two-sided test of these two counts."""


@dataclass(frozen=True)
class JudgeCheckReport:
    """A check of one judge or two."""

    data: str
    """The file."""
    shape: str
    """How it writes preferences."""
    items: int
    """Prompts."""
    left_out: Mapping[str, int]
    """Rows of the file that were left out, by reason."""
    confidence: float
    """The level of all intervals."""
    judges: Sequence[JudgeRow]
    """The judges."""
    comparison: JudgeComparison | None = None
    """The two, paired; None with one."""

    @property
    def max_attack_share(self) -> float:
        """The largest share of pairs that a kind of attack turns around with the first judge."""
        return max((row.turned.value for row in self.judges[0].attacks.values() if row.turned), default=0.0)


def write_check(found: JudgeCheckReport) -> bytes:
    """The report as JSON."""
    return to_json(found)


def read_check(path: Path) -> JudgeCheckReport:
    """Reads a report; raises `StoreError` if the file doesn't hold one."""
    return read_record(path, JudgeCheckReport, "check of judges")


@dataclass(frozen=True)
class _Block:
    """One table."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def _blocks(found: JudgeCheckReport) -> list[_Block]:
    blocks = [_accuracies(found), _biases(found)]
    blocks += [_calibrated(judge, judge.calibration) for judge in found.judges if judge.calibration is not None]
    if any(judge.attacks for judge in found.judges):
        blocks.append(_attacked(found))
    return blocks


def _accuracies(found: JudgeCheckReport) -> _Block:
    names = list(dict.fromkeys(name for judge in found.judges for name in judge.subsets))
    header = ["", *(f"{judge.judge}: {part}" for judge in found.judges for part in ("accuracy, %", "ties, %"))]
    header += ["prompts", *("unscored" for _ in found.judges)]

    def row(label: str, parts: Sequence[SubsetRow | None]) -> list[str]:
        cells = [cell for part in parts for cell in _accuracy(part)]
        items = next((str(part.items) for part in parts if part), NOTHING)
        return [label, *cells, items, *(NOTHING if part is None else str(part.unscored) for part in parts)]

    rows = [row("all", [judge.overall for judge in found.judges])]
    rows += [row(name, [judge.subsets.get(name) for judge in found.judges]) for name in names]
    notes = [
        f"{judge.judge}: {', '.join(f'{name} {fixed(100 * value, 1)}' for name, value in judge.totals.items())}"
        for judge in found.judges
        if judge.totals
    ]
    if (pair := found.comparison) is not None:
        notes.append(
            f"first minus second, paired: {PERCENT.interval(pair.difference, signed=True)} points; only the first has "
            f"{pair.only_first} prompts right, only the second {pair.only_second} (McNemar's exact p = "
            f"{pair.p_value:.3g})"
        )
    return _Block("accuracy", header, rows, notes)


def _accuracy(part: SubsetRow | None) -> list[str]:
    if part is None:
        return [NOTHING, NOTHING]
    return [PERCENT.interval(part.accuracy), PERCENT.number(part.ties)]


def _biases(found: JudgeCheckReport) -> _Block:
    rows: list[list[str]] = [
        ["verdict changes with the order, %", *(PERCENT.interval(judge.swapped) for judge in found.judges)],
        ["first shown wins, %", *(PERCENT.number(judge.first_rate) for judge in found.judges)],
        ["accuracy, better one shorter, %", *(PERCENT.interval(judge.shorter_better) for judge in found.judges)],
        ["accuracy, better one longer, %", *(PERCENT.interval(judge.longer_better) for judge in found.judges)],
        ["difference, points", *(PERCENT.interval(judge.length_gap, signed=True) for judge in found.judges)],
        ["unscored responses", *(_reasons(judge.unscored) for judge in found.judges)],
    ]
    costs = [judge.cost for judge in found.judges]
    rows += [
        ["calls per 1,000 prompts", *(NOTHING if cost is None else f"{cost.calls:,.0f}" for cost in costs)],
        [
            "tokens per 1,000, in + out",
            *(NOTHING if cost is None else f"{cost.tokens_in:,.0f} + {cost.tokens_out:,.0f}" for cost in costs),
        ],
        ["seconds per 1,000", *(NOTHING if cost is None else f"{cost.seconds:,.0f}" for cost in costs)],
        ["price per 1,000", *(f"{cost.price:,.2f}" if cost is not None and cost.price else NOTHING for cost in costs)],
    ]
    return _Block("bias and cost", ["", *(judge.judge for judge in found.judges)], rows)


def _calibrated(judge: JudgeRow, found: CalibrationRow) -> _Block:
    rows = [
        [
            f"{each.low:.1f} to {each.high:.1f}",
            str(each.pairs),
            *(PERCENT.number(v) for v in (each.expected, each.right)),
        ]
        for each in found.bins
    ]
    scale = "no scale fits" if found.scale is None else f"best scale {found.scale:.3g}"
    note = f"expected calibration error {PERCENT.number(found.error)} points; {scale}"
    return _Block(
        f"calibration of {judge.judge}", ["sigmoid(|difference|)", "pairs", "expected, %", "right, %"], rows, [note]
    )


def _attacked(found: JudgeCheckReport) -> _Block:
    kinds = list(dict.fromkeys(kind for judge in found.judges for kind in judge.attacks))
    header = [
        "attack",
        *(f"{judge.judge}: {part}" for judge in found.judges for part in ("turned around, %", "shift, sd")),
    ]
    rows = []
    for kind in kinds:
        cells = [f"{kind.replace('_', ' ')}"]
        for judge in found.judges:
            each = judge.attacks.get(kind)
            cells += [NOTHING] * 2 if each is None else [PERCENT.interval(each.turned), _shift(each.shift)]
        rows.append(cells)
    notes = [
        f"{kind.replace('_', ' ')}: {next(j.attacks[kind].about for j in found.judges if kind in j.attacks)}"
        for kind in kinds
    ]
    lost = [
        f"{judge.judge}: {sum(each.unscored for each in judge.attacks.values())} attacked pairs unscored, left out"
        for judge in found.judges
        if any(each.unscored for each in judge.attacks.values())
    ]
    return _Block("attacks on the worse response, of the pairs that are right without", header, rows, [*notes, *lost])


def _shift(found: Interval | None) -> str:
    if found is None:
        return NOTHING
    value, low, high = (fixed(each, 2, signed=True) for each in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def _reasons(unscored: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in unscored.items()) or "0"


def _about(found: JudgeCheckReport) -> str:
    left = "" if not found.left_out else f" (left out: {_reasons(found.left_out)})"
    return f"{found.items:,} prompts of {found.data}{left}; intervals of {100 * found.confidence:g} %."


def as_markdown(found: JudgeCheckReport) -> str:
    """The report as a page."""
    parts = ["# Judges on preferences", "", _about(found), ""]
    for block in _blocks(found):
        parts += [f"## {block.title[0].upper()}{block.title[1:]}", ""]
        parts += [
            f"| {' | '.join(map(_cell, line))} |" for line in (block.header, ["---"] * len(block.header), *block.rows)
        ]
        parts += ["", *(f"- {note}" for note in block.notes), *([""] if block.notes else [])]
    return "\n".join(parts).rstrip() + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def print_check(found: JudgeCheckReport) -> None:
    """Prints the report's tables."""
    console = table_console()
    console.print(Text(_about(found)))
    for block in _blocks(found):
        console.print()
        made = plain_table(block.title)
        for i, header in enumerate(block.header):
            made.add_column(Text(header.replace(": ", ":\n")), justify="right" if i else "left")
        for row in block.rows:
            made.add_row(*map(Text, row))
        console.print(made)
        for note in block.notes:
            console.print(Text(f"- {note}"))
