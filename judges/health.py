"""How sound a judge looks, from what it said: computed for every judging, shown in the report, limited by the profile.

In: groups, what was said of them, and the scores. Out: a `Health`, and a `StageError` where a limit is passed.

The decision to question: agreement with references counts pairs of responses to one prompt of which one is right and
one wrong by the exact verifier, and asks whether the right one scores higher; equal scores count a half. It measures
what pair selection needs, an order within a prompt, and not calibration.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from judges.base import Group
from judges.verifier import Verifier
from tpo.config import HealthConfig, JudgeConfig, VerifierJudge, checks_instructions
from tpo.errors import StageError
from tpo.records import Health, Judgment, Score


def measure_health(
    groups: Sequence[Group], judgments: Iterable[Judgment], scores: Iterable[Score], referee: JudgeConfig
) -> Health:
    """The health of a judge that said `judgments` of `groups`; scores of samples that no group holds are left out.

    `referee` says how responses are compared with references, where it is a verifier; else the verifier's defaults do.
    """
    judged = {(group.prompt_id, response.index) for group in groups for response in group.responses}
    values = {(s.prompt_id, s.index): s for s in scores if (s.prompt_id, s.index) in judged}
    asked = [judgment for judgment in judgments if judgment.other_index is not None]
    outcomes = [judgment.outcome for judgment in asked if judgment.outcome is not None]
    decided = [outcome for outcome in outcomes if outcome != 0]
    refused = sum(judgment.outcome is None and "reason" in json.loads(judgment.detail) for judgment in asked)
    right, pairs = _reference_wins(groups, values, referee)
    scored = [score.value for score in values.values() if score.value is not None]
    return Health(
        responses=len(judged),
        unscored=_count(score.unscored for score in values.values() if score.unscored is not None),
        comparisons=len(asked),
        unparsable=len(asked) - len(outcomes) - refused,
        refused=refused,
        ties=len(outcomes) - len(decided),
        first_rate=_share(sum(outcome > 0 for outcome in decided), len(decided)),
        swap_agreement=_swap_agreement(asked),
        length_correlation=_length_correlation(groups, values),
        reference_agreement=_share(right, pairs),
        reference_pairs=pairs,
        score_quantiles=[float(q) for q in np.quantile(scored, np.linspace(0, 1, 11))] if scored else [],
    )


def check_health(health: Health, limits: HealthConfig, stage: str) -> None:
    """Raises `StageError` with every limit that `health` passes."""
    most = [
        ("max_unscored", health.unscored_rate, "of the responses are unscored"),
        ("max_unparsable", health.unparsable_rate, "of the comparisons have no verdict that can be read"),
        ("max_ties", health.tie_rate, "of the comparisons are ties"),
        ("max_first_rate", health.first_rate, "of the decided comparisons go to the response shown first"),
        ("max_length_correlation", health.length_correlation, "is the correlation of score and length"),
    ]
    least = [
        ("min_swap_agreement", health.swap_agreement, "of the pairs are decided alike in both orders"),
        ("min_reference_agreement", health.reference_agreement, "of right–wrong pairs are ordered as the references"),
    ]
    passed = [(*limit, "at most") for limit in most if limit[1] is not None and limit[1] > getattr(limits, limit[0])]
    passed += [(*limit, "at least") for limit in least if limit[1] is not None and limit[1] < getattr(limits, limit[0])]
    if not passed:
        return
    said = "; ".join(
        f"{value:.3f} {what}, and health.{name} allows {bound} {getattr(limits, name)}"
        for name, value, what, bound in passed
    )
    reasons = ", ".join(f"{count} {reason}" for reason, count in health.unscored.items()) or "none"
    raise StageError(
        f"{stage}: the judge does not look sound: {said} (unscored: {reasons}). Nothing was trained on it and what it "
        "said is kept: look at the judgments beside it, choose another judge, or move the limit"
    )


def describe_health(health: Health) -> str:
    """One line for the terminal."""
    said = [f"{health.responses - sum(health.unscored.values())} scored"]
    said += [f"{count} {reason}" for reason, count in health.unscored.items()]
    if health.comparisons:
        said.append(f"{health.comparisons} comparisons")
    for name, value in (
        ("unparsable", health.unparsable_rate),
        ("swap agreement", health.swap_agreement),
        ("first", health.first_rate),
        ("agrees with references", health.reference_agreement),
    ):
        said += [f"{name} {value:.1%}"] if value is not None else []
    return ", ".join(said)


def _swap_agreement(asked: Sequence[Judgment]) -> float | None:
    results = {(j.prompt_id, j.index, j.other_index): j.outcome for j in asked}
    both = [
        (outcome, other)
        for (prompt_id, m, n), outcome in results.items()
        if n is not None and m < n and outcome and (other := results.get((prompt_id, n, m)))
    ]
    return _share(sum((outcome > 0) != (other > 0) for outcome, other in both), len(both))


def _length_correlation(groups: Sequence[Group], values: Mapping[tuple[str, int], Score]) -> float | None:
    """Mean over the groups in which both scores and lengths differ."""
    found = []
    for group in groups:
        scored = [(score.value, score.response_chars) for score in _scores(group, values) if score.value is not None]
        score, length = np.array(scored, dtype=np.float64).reshape(-1, 2).T
        if len(scored) > 1 and np.ptp(score) > 0 and np.ptp(length) > 0:
            found.append(float(np.corrcoef(score, length)[0, 1]))
    return float(np.mean(found)) if found else None


def _reference_wins(
    groups: Sequence[Group], values: Mapping[tuple[str, int], Score], referee: JudgeConfig
) -> tuple[float, int]:
    """Right–wrong pairs that the scores order as the references do, ties half, and the number of such pairs.

    Where the referee checks instructions, a response is right if it follows all of its prompt's.
    """
    verifier = Verifier(referee if isinstance(referee, VerifierJudge) else VerifierJudge())
    checks = checks_instructions(referee)
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
