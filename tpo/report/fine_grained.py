"""Win rates by kind of instruction: by category and by complexity (2410.10630, §3.4).

Each is the share of prompts of one kind on which a model beats another on the same prompt, ties counting half, with its
interval over prompts. Prompts whose kind isn't known have a row of their own: they are in no category, and in no
complexity. A kind is called ahead or behind only if its interval excludes one half and it has enough prompts: with few,
a bootstrap's interval is too narrow, and with none lost it has no width at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tpo.config.fine_grained import UNKNOWN
from tpo.report.summary import FineGrained, Grouping, Interval, KindRow, Standing
from tpo.report.table import NOTHING, PERCENT, plain_table

PLURALS: Mapping[Grouping, str] = {"category": "categories", "complexity": "complexities"}
MAX_TERMINAL_MODELS = 3
"""Number of models in the terminal's table: M_0 and the last ones."""


def about(fine: FineGrained) -> str:
    """What the win rates are, in sentences."""
    told = [
        f"Share of {_counted(fine.prompts)} that a model wins against {fine.against} (ties count half), by "
        f"{fine.judge}."
    ]
    if fine.rater is not None and fine.rated:
        told.append(f"{' and '.join(PLURALS[each] for each in fine.rated).capitalize()} are rated by {fine.rater}.")
    if given := [PLURALS[each] for each in fine.groupings if each not in fine.rated]:
        told.append(f"{' and '.join(given).capitalize()} are the prompts' own.")
    for grouping in PLURALS:
        reasons = fine.unknown(grouping)
        if reasons and reasons != {"not_given": fine.prompts}:
            why = ", ".join(f"{number} {reason.replace('_', ' ')}" for reason, number in sorted(reasons.items()))
            told.append(f"The {grouping} of {_counted(sum(reasons.values()))} is unknown ({why}).")
    return " ".join(told)


def by_chance(fine: FineGrained) -> str:
    """How many kinds would look clear by chance alone, as a sentence."""
    rates = [found for grouping in fine.groupings for found in fine.rows[-1].by(grouping).values()]
    kinds = sum(found.n >= fine.min_prompts for found in rates)
    return (
        f"These are {kinds} intervals at {100 * fine.confidence:g} %: even without any difference, about "
        f"{kinds * (1 - fine.confidence):.1f} of them would exclude 50 %."
    )


def findings(fine: FineGrained) -> list[str]:
    """Which kinds the last model wins and which it loses, as sentences."""
    if not fine.rows:
        return []
    last, found = fine.rows[-1], list[str]()
    for grouping in fine.groupings:
        kinds, rates = fine.kinds(grouping), last.by(grouping)
        standings = {name: fine.standing(rates.get(name)) for name in kinds}
        parts = [
            f"{standing} in {_named([name for name in names if standings[name] == standing], rates)}"
            for standing, names in (("ahead", kinds), ("behind", kinds[::-1]))
            if standing in standings.values()
        ]
        unclear = sum(each == "not clear" for each in standings.values())
        few = sum(each in ("few prompts", "") for each in standings.values())
        parts += [f"not clearly different in {unclear}"] if unclear else []
        parts += [f"with too few prompts in {few}"] if few else []
        whole = f"{len(kinds)} {PLURALS[grouping]}"
        found.append(f"Of {whole}, {last.model} against {fine.against} is {'; '.join(parts)}.")
    return found


def _named(names: Sequence[str], rates: Mapping[str, Interval]) -> str:
    shown = ", ".join(f"{name} ({PERCENT.number(rates[name].value)} %)" for name in names[:6])
    return f"{shown} and {len(names) - 6} more" if len(names) > 6 else shown


def render_kinds(fine: FineGrained, grouping: Grouping) -> Table:
    """A table for the terminal: one row per kind, one column per model."""
    rows = shown_rows(fine.rows)
    table = plain_table(f"win rate over {fine.against} by {grouping}, %")
    level = f"[{100 * fine.confidence:g} %]"
    for header in (grouping, "prompts", *(f"{row.model}\n{level}" for row in rows), ""):
        table.add_column(Text(header), justify="left" if header in (grouping, "") else "right")
    for line in kind_lines(fine, grouping):
        cells = [PERCENT.interval(found) for found in line.found[-len(rows) :]]
        if len(rows) < len(line.found):
            cells[0] = PERCENT.interval(line.found[0])
        table.add_row(Text(line.name), str(line.prompts), *cells, line.standing)
    return table


def shown_rows(rows: Sequence[KindRow]) -> list[KindRow]:
    """The models that there is room for in the terminal."""
    return [*rows] if len(rows) <= MAX_TERMINAL_MODELS else [rows[0], *rows[1 - MAX_TERMINAL_MODELS :]]


@dataclass(frozen=True)
class KindLine:
    """One kind of instruction as a line of a table."""

    name: str
    """The kind; `unknown` for the prompts without one, `all` for all of them."""
    prompts: int
    """Its prompts that were scored for the last model."""
    found: Sequence[Interval | None]
    """The models' win rates."""
    standing: Standing
    """Whether the last model is ahead or behind; empty for what isn't a kind."""
    is_kind: bool = True
    """Whether it is a kind, rather than all prompts or those without one."""


def kind_lines(fine: FineGrained, grouping: Grouping) -> list[KindLine]:
    """A table's lines: the kinds, then the prompts without one, then all."""
    lines = []
    for name in fine.kinds(grouping):
        found = [row.by(grouping).get(name) for row in fine.rows]
        lines.append(KindLine(name, _prompts(found), found, fine.standing(found[-1])))
    unknown = [row.unknown(grouping) for row in fine.rows]
    if any(unknown):
        lines.append(KindLine(UNKNOWN, _prompts(unknown), unknown, "", is_kind=False))
    overall = [row.overall for row in fine.rows]
    return [*lines, KindLine("all", _prompts(overall), overall, "", is_kind=False)]


def _prompts(found: Sequence[Interval | None]) -> int:
    return found[-1].n if found and found[-1] else 0


@dataclass(frozen=True)
class KindSection:
    """What a page shows of win rates by kind."""

    models: Sequence[str]
    """The models' names."""
    about: str
    """What the win rates are."""
    findings: Sequence[str]
    """What the last model wins and loses."""
    by_chance: str
    """How much of that would be chance."""
    tables: Mapping[Grouping, Sequence[KindLine]]
    """The lines by what they are grouped by."""

    @classmethod
    def of(cls, fine: FineGrained | None) -> "KindSection | None":
        """The section of win rates; None if they weren't measured."""
        if fine is None:
            return None
        tables = {grouping: kind_lines(fine, grouping) for grouping in fine.groupings}
        chance = by_chance(fine) if fine.groupings else ""
        return cls([row.model for row in fine.rows], about(fine), findings(fine), chance, tables)


def as_markdown(fine: FineGrained) -> str:
    """The tables as Markdown."""
    parts = [_escaped(about(fine))]
    for grouping in fine.groupings:
        heads = [grouping, "prompts", *(row.model for row in fine.rows), ""]
        lines = [heads, ["---", *["---:"] * (len(fine.rows) + 1), "---"]]
        lines += [
            [_escaped(line.name), str(line.prompts), *map(_cell, line.found), line.standing]
            for line in kind_lines(fine, grouping)
        ]
        parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    return "\n\n".join([*parts, *([by_chance(fine)] if fine.groupings else [])]) + "\n"


def _cell(found: Interval | None) -> str:
    return NOTHING if found is None else PERCENT.interval(found)


def _escaped(text: str) -> str:
    """Text that stays text in a cell of Markdown."""
    plain = " ".join(text.split())
    return "".join(f"\\{char}" if char in "\\`*_[]<>|#!~" else char for char in plain).replace("&", "&amp;")


def _counted(prompts: int) -> str:
    return f"{prompts:,} prompt{'' if prompts == 1 else 's'}"


def print_kinds(fine: FineGrained, console: Console) -> None:
    """Prints the tables, with the findings below them."""
    for grouping in fine.groupings:
        console.print(render_kinds(fine, grouping))
        console.print()
    for sentence in (about(fine), *findings(fine), *([by_chance(fine)] if fine.groupings else [])):
        console.print(Text(sentence))
    console.print()
