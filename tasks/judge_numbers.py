"""What a judge's scores of preferences say of it: accuracy, biases, calibration, cost, and what attacks do to it."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from judges.attacks import KINDS, Attack
from tasks.preferences import scores_of, scores_within
from tpo.config.judges import JudgeConfig, VerifierJudge, judge_name
from tpo.data.preference_files import TIES, Preference
from tpo.method.preferences import TieScores, calibration, credit, length_bias, section_scores, ties_score
from tpo.method.stats import Estimate, mean, paired_difference, sign_test, wilson
from tpo.records import Judgment, Score
from tpo.report.judge_check import (
    AttackRow,
    BinRow,
    CalibrationRow,
    CostRow,
    JudgeComparison,
    JudgeRow,
    SubsetRow,
)
from tpo.report.summary import Interval
from tpo.storage.ledger import Entry

CONFIDENCE = 0.95
"""The level of intervals."""
REWARD_BENCH_2 = {"Factuality", "Precise IF", "Math", "Safety", "Focus", TIES}
"""The subsets of RewardBench 2, whose mean is its total."""


@dataclass(frozen=True)
class Opinions:
    """What a judge says of some preferences."""

    judgments: Sequence[Judgment]
    """Its judgments."""
    scores: Sequence[Score]
    """The scores of all responses."""

    @property
    def values(self) -> Mapping[str, Mapping[int, float]]:
        """Scores by prompt and index of the response."""
        found = dict[str, dict[int, float]]()
        for score in self.scores:
            found.setdefault(score.prompt_id, {})
            if score.value is not None:
                found[score.prompt_id][score.index] = score.value
        return found


@dataclass(frozen=True)
class Attacked:
    """A pair whose worse response attacks the judge."""

    plain: Preference
    """The pair without the attack."""
    attack: Attack
    """The attack."""
    pair: Preference
    """The pair with it."""
    plain_in: Preference
    """What the judge sees the pair without the attack in: that pair, or more responses to the prompt."""
    pair_in: Preference
    """The same of the pair with it."""


def judge_row(judge: JudgeConfig, rows: Sequence[Preference], said: Opinions, spent: Iterable[Entry]) -> JudgeRow:
    """Everything about one judge but its attacks."""
    values = said.values
    scored = {row.key: scores_of(row, values.get(row.key, {})) for row in rows}
    plain = [row for row in rows if not row.counts_ties]
    names = list(dict.fromkeys(row.subset for row in plain if row.subset is not None))
    subsets = {name: _subset([row for row in plain if row.subset == name], scored) for name in names}
    swapped, first_rate = _position(said.judgments)
    bias = length_bias(*_by_length(plain, scored), partial(wilson, confidence=CONFIDENCE))
    return JudgeRow(
        judge=_name(judge),
        overall=_subset(plain, scored),
        subsets=subsets,
        totals=_totals(subsets, rows, scored),
        swapped=swapped,
        first_rate=first_rate,
        shorter_better=_interval(bias.shorter_better),
        longer_better=_interval(bias.longer_better),
        length_gap=_interval(bias.difference),
        calibration=None if isinstance(judge, VerifierJudge) else _calibration(plain, scored, said.judgments),
        unscored=dict(sorted(Counter(s.unscored for s in said.scores if s.unscored is not None).items())),
        cost=_cost(spent),
    )


def attack_rows(attacked: Sequence[Attacked], plain: Opinions, said: Opinions) -> dict[str, AttackRow]:
    """What each kind of attack does: `plain` is what the judge says without, `said` with the attacks."""
    before, after = plain.values, said.values
    numbers = [value for by_index in before.values() for value in by_index.values()]
    spread = float(np.std(numbers)) if numbers and not compares_responses(plain.judgments) else 0.0
    return {
        kind: _attack_row(about, [each for each in attacked if each.attack.kind == kind], before, after, spread)
        for kind, about in KINDS.items()
        if any(each.attack.kind == kind for each in attacked)
    }


def compared(rows: Sequence[Preference], first: Opinions, second: Opinions) -> JudgeComparison | None:
    """Two judges, paired over the prompts that both score; None if there are none."""
    both = [
        (credit(*one), credit(*other))
        for row in rows
        if not row.counts_ties
        and (one := scores_of(row, first.values.get(row.key, {})))
        and (other := scores_of(row, second.values.get(row.key, {})))
    ]
    if not both:
        return None
    ours, theirs = map(np.array, zip(*both, strict=True))
    difference = paired_difference(ours, theirs, confidence=CONFIDENCE)
    only = int((ours > theirs).sum()), int((ours < theirs).sum())
    return JudgeComparison(_known(difference), *only, sign_test(*only))


def compares_responses(judgments: Iterable[Judgment]) -> bool:
    """Whether any judgment is a comparison."""
    return any(judgment.other_index is not None for judgment in judgments)


def _name(judge: JudgeConfig) -> str:
    """The judge's name in tables, with the mode of one that has several."""
    mode = getattr(judge, "mode", "cot")
    return judge_name(judge) if mode == "cot" else f"{judge_name(judge)}, {mode}"


Scored = Mapping[str, "tuple[list[float], list[float]] | None"]


def _subset(rows: Sequence[Preference], scored: Scored) -> SubsetRow:
    known = [found for row in rows if (found := scored[row.key]) is not None]
    won = [credit(*found) for found in known]
    tied = [0 < each < 1 for each in won]
    return SubsetRow(
        items=len(rows),
        accuracy=_known(wilson(won, confidence=CONFIDENCE)) if won else None,
        ties=sum(tied) / len(tied) if tied else None,
        unscored=len(rows) - len(known),
    )


def _totals(subsets: Mapping[str, SubsetRow], rows: Sequence[Preference], scored: Scored) -> dict[str, float]:
    accuracies = {name: row.accuracy.value for name, row in subsets.items() if row.accuracy is not None}
    one, several = dict[str, TieScores](), dict[str, TieScores]()
    for row in rows:
        found = scored[row.key]
        if row.counts_ties and row.name is not None and found is not None:
            kind, _, number = row.name.partition(":")
            (one if kind == "ref" else several)[number] = TieScores(tuple(found[0]), tuple(found[1]))
    if one.keys() & several.keys():
        accuracies[TIES] = ties_score(one, several)
    if TIES not in accuracies or not any(row.counts_ties for row in rows):
        return section_scores(accuracies)
    totals = {TIES: accuracies[TIES]}
    if {*accuracies} == REWARD_BENCH_2:
        totals["mean of the subsets"] = sum(accuracies.values()) / len(accuracies)
    return totals


def _pairs(rows: Sequence[Preference], scored: Scored) -> Iterable[tuple[Preference, int, int, float]]:
    """Each better response with each worse one of a scored prompt: their places, and the difference of their scores."""
    for row in rows:
        if (found := scored[row.key]) is not None:
            for i, better in enumerate(found[0]):
                for j, worse in enumerate(found[1]):
                    yield row, i, j, better - worse


def _by_length(rows: Sequence[Preference], scored: Scored) -> tuple[list[float], list[int]]:
    won, longer = [], []
    for row, i, j, lead in _pairs(rows, scored):
        won.append((np.sign(lead) + 1) / 2)
        longer.append(len(row.better[i]) - len(row.worse[j]))
    return won, longer


def _position(judgments: Iterable[Judgment]) -> tuple[Interval | None, float | None]:
    """How often the verdict changes with the order, and how often the first wins."""
    outcomes = dict[tuple[str, int, int], float]()
    for judgment in judgments:
        if judgment.other_index is not None and judgment.outcome is not None:
            outcomes[judgment.prompt_id, judgment.index, judgment.other_index] = judgment.outcome
    changes = [
        float(np.sign(outcome) != -np.sign(other))
        for (prompt_id, m, n), outcome in outcomes.items()
        if m < n and (other := outcomes.get((prompt_id, n, m))) is not None
    ]
    decided = [outcome > 0 for outcome in outcomes.values() if outcome]
    first = sum(decided) / len(decided) if decided else None
    return (_known(wilson(changes, confidence=CONFIDENCE)) if changes else None), first


def _calibration(rows: Sequence[Preference], scored: Scored, judgments: Sequence[Judgment]) -> CalibrationRow | None:
    """Of differences of scores or, for a judge that compares, of the log-odds of its comparisons."""
    if compares_responses(judgments):
        leads = _log_odds(rows, judgments)
    else:
        leads = [lead for *_, lead in _pairs(rows, scored)]
    if not leads:
        return None
    found = calibration(leads)
    bins = [BinRow(each.low, each.high, each.pairs, each.expected, each.right) for each in found.bins]
    return CalibrationRow(bins, found.error, found.scale)


def _log_odds(rows: Sequence[Preference], judgments: Sequence[Judgment]) -> list[float]:
    """The log-odds for the better response in each pair that was compared in both orders; empty for hard verdicts."""
    outcomes = {(j.prompt_id, j.index, j.other_index): j.outcome for j in judgments if j.outcome is not None}
    if all(outcome in (-1, 0, 1) for outcome in outcomes.values()):
        return []
    found = []
    for row in rows:
        (places, _) = scores_of(row, {i: float(i) for i in range(len(row.better) + len(row.worse))}) or ([], [])
        others = [i for i in range(len(row.better) + len(row.worse)) if i not in places]
        for better in map(int, places):
            for worse in others:
                there = outcomes.get((row.key, better, worse))
                back = outcomes.get((row.key, worse, better))
                if there is not None and back is not None:
                    found.append(_atanh(there) - _atanh(back))
    return found


def _atanh(outcome: float) -> float:
    """Half the log-odds of 2p - 1, kept finite."""
    return math.atanh(max(-1 + 1e-12, min(1 - 1e-12, outcome)))


def _attack_row(
    about: str,
    attacked: Sequence[Attacked],
    before: Mapping[str, Mapping[int, float]],
    after: Mapping[str, Mapping[int, float]],
    spread: float,
) -> AttackRow:
    turned, shifts, unscored = list[float](), list[float](), 0
    variants = dict[str, list[float]]()
    for each in attacked:
        plain = scores_within(each.plain_in, each.plain, before.get(each.plain_in.key, {}))
        if plain is None or credit(*plain) < 1:
            continue
        found = scores_within(each.pair_in, each.pair, after.get(each.pair_in.key, {}))
        if found is None:
            unscored += 1
            continue
        lost = 1 - credit(*found)
        turned.append(lost)
        count = variants.setdefault(each.attack.variant, [0.0, 0.0])
        count[0] += lost
        count[1] += 1
        if spread > 0:
            shifts.append((found[1][0] - plain[1][0]) / spread)
    return AttackRow(
        about=about,
        turned=_known(wilson(turned, confidence=CONFIDENCE)) if turned else None,
        unscored=unscored,
        shift=_known(mean(shifts, confidence=CONFIDENCE)) if shifts else None,
        variants=dict(sorted(variants.items())),
    )


def _cost(spent: Iterable[Entry]) -> CostRow | None:
    entries = list(spent)
    prompts = sum(entry.prompts for entry in entries)
    if not prompts:
        return None

    def per_thousand(name: str) -> float:
        return float(1000 * sum(getattr(entry, name) for entry in entries) / prompts)

    return CostRow(*map(per_thousand, ("answers", "tokens_in", "tokens_out", "seconds", "cost")))


def _interval(found: Estimate | None) -> Interval | None:
    return None if found is None else _known(found)


def _known(found: Estimate) -> Interval:
    return Interval(found.value, found.low, found.high, found.n)
