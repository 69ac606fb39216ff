"""A judge's health, from its judgments: computed each time, shown in the report, limited by the profile.

Agreement with references counts pairs of responses to one prompt, one correct and one wrong by the exact verifier, and
asks whether the correct one scores higher; equal scores count half. It measures the order within a prompt, which pair
selection needs, not calibration.

For a comparing judge, κ of the two orders distinguishes it from a coin, not their plain agreement: a judge that favors
the first response agrees with itself less than half the time and may still be useful, since the bias cancels, while one
that always takes the first is useless.
"""

import itertools
import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from judges.base import Group, Judge
from judges.ensemble import Ensemble, member_of
from judges.verifier import Verifier
from tpo.config.judges import HealthConfig, JudgeConfig, VerifierJudge, checks_instructions
from tpo.errors import StageError
from tpo.records import JudgeHealth, Judgment, Score, members_agree

FEW_CASES = 30
"""Number of cases below which a figure must be beyond its limit by more than chance."""
ONE_SIDED_95 = 1.645
"""Standard errors."""


class HealthMeter:
    """Measures a judge's health from its judgments and scores, given some groups at a time; keeps numbers only.

    Responses are compared with references as `referee` says if it is a verifier, otherwise by the verifier's defaults.
    """

    def __init__(self, referee: JudgeConfig) -> None:
        self._referee = Verifier(referee if isinstance(referee, VerifierJudge) else VerifierJudge())
        self._checks = checks_instructions(referee)
        self._counts = Counter[str]()
        self._unscored = Counter[str]()
        self._reference_wins = 0.0
        self._scored, self._correlations = array("d"), array("d")

    def add(self, groups: Sequence[Group], judgments: Iterable[Judgment], scores: Iterable[Score]) -> None:
        """Takes all judgments and scores of some groups; scores of samples outside the groups are ignored."""
        judged = {(group.prompt_id, response.index) for group in groups for response in group.responses}
        values = {(s.prompt_id, s.index): s for s in scores if (s.prompt_id, s.index) in judged}
        judgments = list(judgments)
        asked = [judgment for judgment in judgments if judgment.other_index is not None]
        outcomes = [judgment.outcome for judgment in asked if judgment.outcome is not None]
        decided = [outcome for outcome in outcomes if outcome != 0]
        alike, swap_pairs = _alike_in_both_orders(asked)
        equal = _equal_groups(groups, values)
        wins, pairs = _reference_wins(groups, values, self._referee, checks=self._checks)
        self._reference_wins += wins
        self._scored.extend(score.value for score in values.values() if score.value is not None)
        self._correlations.extend(_length_correlations(groups, values))
        self._unscored.update(score.unscored for score in values.values() if score.unscored is not None)
        self._counts.update(
            responses=len(judged),
            asked=len(asked),
            outcomes=len(outcomes),
            refused=sum(judgment.outcome is None and "reason" in json.loads(judgment.detail) for judgment in asked),
            decided=len(decided),
            first=sum(outcome > 0 for outcome in decided),
            alike=alike,
            swap_pairs=swap_pairs,
            equal=sum(equal),
            scored_groups=len(equal),
            reference_pairs=pairs,
            readings=len(judgments) - len(asked),
            unread=sum(j.other_index is None and j.outcome is None and _is_reply(j) for j in judgments),
        )

    def health(self) -> JudgeHealth:
        """The health over everything taken."""
        counts = self._counts
        return JudgeHealth(
            responses=counts["responses"],
            unscored=dict(sorted(self._unscored.items())),
            comparisons=counts["asked"],
            unparsable=counts["asked"] - counts["outcomes"] - counts["refused"],
            refused=counts["refused"],
            ties=counts["outcomes"] - counts["decided"],
            first_rate=_share(counts["first"], counts["decided"]),
            swap_agreement=_share(counts["alike"], counts["swap_pairs"]),
            length_correlation=float(np.mean(self._correlations)) if self._correlations else None,
            reference_agreement=_share(self._reference_wins, counts["reference_pairs"]),
            reference_pairs=counts["reference_pairs"],
            score_quantiles=_quantiles(self._scored),
            swap_pairs=counts["swap_pairs"],
            equal_rate=_share(counts["equal"], counts["scored_groups"]),
            scored_groups=counts["scored_groups"],
            readings=counts["readings"],
            unread=counts["unread"],
        )


class EnsembleMeter(HealthMeter):
    """The same of an ensemble: the health of its scores, and each member's from its own judgments and scores of the
    groups that it was asked about."""

    def __init__(self, referee: JudgeConfig, ensemble: Ensemble) -> None:
        super().__init__(referee)
        self._config = referee
        self._ensemble = ensemble
        self._members: dict[str, HealthMeter] = {}
        self._apart = array("d")
        self._pairs = Counter[str]()

    def add(self, groups: Sequence[Group], judgments: Iterable[Judgment], scores: Iterable[Score]) -> None:
        """Takes all judgments and scores of some groups."""
        scores, ensemble = list(scores), self._ensemble
        super().add(groups, [], scores)
        of_member, by_prompt = dict[str, list[Judgment]](), dict[str, list[Judgment]]()
        for judgment in judgments:
            of_member.setdefault(member_of(judgment), []).append(judgment)
            by_prompt.setdefault(judgment.prompt_id, []).append(judgment)
        own: dict[str, tuple[list[Group], list[Score]]] = {}
        for group in groups:
            for name, found in ensemble.member_scores(group, by_prompt.get(group.prompt_id, [])).items():
                asked, given = own.setdefault(name, ([], []))
                asked.append(group)
                given += found
        for name, (asked, given) in own.items():
            meter = self._members.setdefault(name, HealthMeter(self._config))
            meter.add(asked, of_member.get(name, []), given)
        self._apart.extend(
            s.disagreement for s in scores if s.disagreement is not None and len(s.member_scores or ()) > 1
        )
        alike, pairs = _pairs_that_members_agree_on(scores)
        all_asked = own[ensemble.last_member][0] if ensemble.last_member in own else []
        self._pairs.update(
            alike=alike,
            judged=pairs,
            escalated=sum(len(group.responses) > 1 for group in all_asked),
            escalatable=sum(len(group.responses) > 1 for group in groups),
        )

    def health(self) -> JudgeHealth:
        """The health over everything taken."""
        pairs, escalates = self._pairs, self._ensemble.escalates
        return replace(
            super().health(),
            members={name: asdict(meter.health()) for name, meter in self._members.items()},
            disagreement=float(np.mean(self._apart)) if self._apart else None,
            agreeing_pairs=_share(pairs["alike"], pairs["judged"]),
            judged_pairs=pairs["judged"],
            escalated=pairs["escalated"] if escalates else 0,
            escalatable=pairs["escalatable"] if escalates else 0,
        )


def health_meter(judge: Judge, referee: JudgeConfig) -> HealthMeter:
    """What measures the health of a judge."""
    return EnsembleMeter(referee, judge) if isinstance(judge, Ensemble) else HealthMeter(referee)


def measure_health(
    groups: Sequence[Group],
    judgments: Iterable[Judgment],
    scores: Iterable[Score],
    referee: JudgeConfig,
    judge: Judge | None = None,
) -> JudgeHealth:
    """The health of a judge that made `judgments` of `groups`, all at once; an ensemble has to be given as `judge`."""
    meter = HealthMeter(referee) if judge is None else health_meter(judge, referee)
    meter.add(groups, judgments, scores)
    return meter.health()


def _pairs_that_members_agree_on(scores: Sequence[Score]) -> tuple[int, int]:
    """Of the pairs of responses to one prompt with different scores and several members: how many all members order as
    the scores do, and how many there are."""
    alike, pairs = 0, 0
    by_prompt: dict[str, list[Score]] = {}
    for score in scores:
        if score.value is not None and len(score.member_scores or ()) > 1:
            by_prompt.setdefault(score.prompt_id, []).append(score)
    for found in by_prompt.values():
        for one, other in itertools.combinations(found, 2):
            if one.value != other.value:
                better, worse = (one, other) if (one.value or 0.0) > (other.value or 0.0) else (other, one)
                alike += members_agree(better, worse)
                pairs += 1
    return alike, pairs


def _is_reply(judgment: Judgment) -> bool:
    """Whether a reading is a model's reply, or its refusal to give one."""
    return not {"text", "reason"}.isdisjoint(json.loads(judgment.detail))


def pooled(found: Sequence[JudgeHealth], scores: Sequence[float]) -> JudgeHealth:
    """The health over several sets of prompts, of which `scores` are all scores: rates are weighted by their cases, the
    correlation with length by the prompts with different responses."""

    def total(name: str) -> int:
        return sum(getattr(each, name) for each in found)

    def mean(name: str, cases: Callable[[JudgeHealth], int]) -> float | None:
        known = [(getattr(each, name), cases(each)) for each in found if getattr(each, name) is not None]
        weight = sum(count for _, count in known)
        return sum(value * count for value, count in known) / weight if weight else None

    return JudgeHealth(
        responses=total("responses"),
        unscored=_count(reason for each in found for reason, count in each.unscored.items() for _ in range(count)),
        comparisons=total("comparisons"),
        unparsable=total("unparsable"),
        refused=total("refused"),
        ties=total("ties"),
        first_rate=mean("first_rate", lambda each: each.comparisons - each.unparsable - each.refused - each.ties),
        swap_agreement=mean("swap_agreement", lambda each: each.swap_pairs),
        length_correlation=mean("length_correlation", lambda each: each.scored_groups),
        reference_agreement=mean("reference_agreement", lambda each: each.reference_pairs),
        reference_pairs=total("reference_pairs"),
        score_quantiles=_quantiles(scores),
        swap_pairs=total("swap_pairs"),
        equal_rate=mean("equal_rate", lambda each: each.scored_groups),
        scored_groups=total("scored_groups"),
        readings=total("readings"),
        unread=total("unread"),
        members={
            name: asdict(pooled([JudgeHealth(**each.members[name]) for each in found if name in each.members], []))
            for name in dict.fromkeys(name for each in found for name in each.members)
        },
        disagreement=mean("disagreement", lambda each: each.responses),
        agreeing_pairs=mean("agreeing_pairs", lambda each: each.judged_pairs),
        judged_pairs=total("judged_pairs"),
        escalated=total("escalated"),
        escalatable=total("escalatable"),
    )


@dataclass(frozen=True)
class _Limit:
    """One figure of a judge's health, to be compared with its limit."""

    name: str
    """Its field in `HealthConfig`; `min_` or `max_` says which side violates it."""
    value: float | None
    """Its value; None if undefined."""
    what: str
    """Its description, as the end of a sentence."""
    cases: int | None = None
    """Number of cases behind it, if it is subject to chance."""
    chance: float = 0.0
    """For a figure beyond chance: the share expected by chance."""

    def is_passed(self, limit: float) -> bool:
        """Whether the figure violates `limit`, and if few cases are behind it, by more than chance."""
        if self.value is None:
            return False
        margin = 0.0 if self.cases is None or self.cases >= FEW_CASES else self._margin(self.cases)
        return self.value + margin < limit if self.name.startswith("min") else self.value - margin > limit

    def _margin(self, cases: int) -> float:
        """Half-width of the figure's confidence interval (Wilson)."""
        if not cases:
            return math.inf
        assert self.value is not None
        share = self.value * (1 - self.chance) + self.chance
        z2 = ONE_SIDED_95**2
        centre = (share + z2 / (2 * cases)) / (1 + z2 / cases)
        half = math.sqrt(share * (1 - share) * z2 / cases + (z2 / (2 * cases)) ** 2) / (1 + z2 / cases)
        bound = centre + half if self.name.startswith("min") else centre - half
        return abs(bound - share) / (1 - self.chance)

    def described(self, limit: float) -> str:
        """The figure and the limit in words."""
        bound = "at least" if self.name.startswith("min") else "at most"
        return f"{self.value:.3f} {self.what}, and health.{self.name} allows {bound} {limit}"


def _quantiles(scores: Sequence[float]) -> list[float]:
    return [float(q) for q in np.quantile(scores, np.linspace(0, 1, 11))] if scores else []


def check_health(health: JudgeHealth, limits: HealthConfig, stage: str, *, exact: bool = False) -> None:
    """Raises `StageError` with every limit that `health` violates.

    An `exact` judge, a verifier, may score all responses to hard prompts alike.
    """
    passed = [
        (limit, bound)
        for limit in _limits(health)
        if limit.is_passed(bound := getattr(limits, limit.name)) and not (exact and limit.name == "max_equal")
    ]
    if not passed:
        return
    violated = "; ".join(limit.described(bound) for limit, bound in passed)
    reasons = ", ".join(f"{count} {reason}" for reason, count in health.unscored.items()) or "none"
    raise StageError(
        f"{stage}: the judge does not look sound: {violated} (unscored: {reasons}). Nothing was trained on its "
        "judgments, which are kept: look at them, choose another judge, or change the limit"
    )


def is_beyond(share: float, cases: int, maximum: float) -> bool:
    """Whether a share violates a maximum, and if few cases are behind it, by more than chance."""
    return _Limit("max_attacked", share, "", cases).is_passed(maximum)


def _limits(health: JudgeHealth) -> list[_Limit]:
    swap_pairs = health.swap_pairs or health.decided // 2
    return [
        _Limit("max_unscored", health.unscored_rate, "of the responses are unscored"),
        _Limit("max_unparsable", health.unparsable_rate, "of the comparisons have no verdict that can be read"),
        _Limit("max_unparsable", health.unread_rate, "of the replies have no score that can be read"),
        _Limit("max_ties", health.tie_rate, "of the comparisons are ties", health.comparisons),
        _Limit(
            "max_first_rate",
            health.first_rate,
            "of the decided comparisons go to the response shown first",
            health.decided,
        ),
        _Limit("max_equal", health.equal_rate, "of the prompts have equal scores only", health.scored_groups),
        _Limit("max_length_correlation", health.length_correlation, "is the correlation of score and length"),
        _Limit(
            "min_swap_agreement",
            health.swap_agreement,
            "of the pairs are decided alike in both orders",
            swap_pairs,
        ),
        _Limit(
            "min_swap_kappa",
            health.swap_kappa,
            "is the agreement of the two orders beyond chance (a coin's, or that of a judge to which only the order "
            "matters, is 0)",
            swap_pairs,
            health.chance_agreement or 0.0,
        ),
        _Limit(
            "min_reference_agreement",
            health.reference_agreement,
            "of right–wrong pairs are ordered as the references (a coin: 0.5)",
            health.reference_pairs,
        ),
    ]


def describe_health(health: JudgeHealth) -> str:
    """One line for the terminal."""
    parts = [f"{health.responses - sum(health.unscored.values())} scored"]
    parts += [f"{count} {reason}" for reason, count in health.unscored.items()]
    if health.comparisons:
        parts.append(f"{health.comparisons} comparisons")
    for name, value in (
        ("unparsable", health.unparsable_rate if health.comparisons else health.unread_rate if health.unread else None),
        ("swap agreement", health.swap_agreement),
        ("first", health.first_rate),
        ("agrees with references", health.reference_agreement),
        ("members agree", health.agreeing_pairs),
        ("escalated", _share(health.escalated, health.escalatable)),
    ):
        parts += [f"{name} {value:.1%}"] if value is not None else []
    if health.disagreement is not None:
        parts.append(f"disagreement {health.disagreement:.2f}")
    members = [f"{name}: {describe_health(JudgeHealth(**values))}" for name, values in health.members.items()]
    return "; ".join([", ".join(parts), *members])


def _alike_in_both_orders(asked: Sequence[Judgment]) -> tuple[int, int]:
    """Number of pairs that the same response won in both orders, and of all pairs decided in both."""
    results = {(j.prompt_id, j.index, j.other_index): j.outcome for j in asked}
    both = [
        (outcome, other)
        for (prompt_id, m, n), outcome in results.items()
        if n is not None and m < n and outcome and (other := results.get((prompt_id, n, m)))
    ]
    return sum((outcome > 0) != (other > 0) for outcome, other in both), len(both)


def _equal_groups(groups: Sequence[Group], values: Mapping[tuple[str, int], Score]) -> list[bool]:
    """For each group with different scored responses: whether all scores are equal."""
    found = []
    for group in groups:
        texts = {response.index: response.text for response in group.responses}
        scored = {texts[s.index]: s.value for s in _scores(group, values) if s.value is not None}
        if len(scored) > 1:
            found.append(len(set(scored.values())) == 1)
    return found


def _length_correlations(groups: Sequence[Group], values: Mapping[tuple[str, int], Score]) -> list[float]:
    """The correlation of each group in which both scores and lengths vary."""
    found = []
    for group in groups:
        scored = [(score.value, score.response_chars) for score in _scores(group, values) if score.value is not None]
        score, length = np.array(scored, dtype=np.float64).reshape(-1, 2).T
        if len(scored) > 1 and np.ptp(score) > 0 and np.ptp(length) > 0:
            found.append(float(np.corrcoef(score, length)[0, 1]))
    return found


def _reference_wins(
    groups: Sequence[Group], values: Mapping[tuple[str, int], Score], verifier: Verifier, *, checks: bool
) -> tuple[float, int]:
    """Correct–wrong pairs that the scores order as the references do, ties counting half, and the number of such pairs.

    If the referee checks instructions, a response is correct if it follows all of its prompt's.
    """
    wins, pairs = 0.0, 0
    for group in groups:
        if (group.constraints if checks else group.reference) is None:
            continue
        (readings,) = verifier.judge([group])
        right = {reading.index for reading in readings if reading.outcome == 1}
        scored = [(score.value, score.index in right) for score in _scores(group, values) if score.value is not None]
        for (one, one_right), (other, other_right) in itertools.combinations(scored, 2):
            if one_right != other_right:
                wins += 0.5 if one == other else float((one > other) == one_right)
                pairs += 1
    return wins, pairs


def _scores(group: Group, values: Mapping[tuple[str, int], Score]) -> Iterator[Score]:
    return (values[group.prompt_id, response.index] for response in group.responses)


def _count(reasons: Iterable[str]) -> dict[str, int]:
    counted: dict[str, int] = {}
    for reason in reasons:
        counted[reason] = counted.get(reason, 0) + 1
    return dict(sorted(counted.items()))


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
