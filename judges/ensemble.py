"""Several judges as one: each member scores a prompt's responses, the scores are standardized within the prompt and
combined.

A response has a score if every member that was asked about its prompt scored it; otherwise it is unscored, with the
member's reason, since a mean over other members isn't comparable. A member that scores all of a prompt's responses
alike adds nothing there.

With `escalate_below`, the first member decides alone where its best response leads clearly, and the others are asked
about the rest. A single response, as in validation and test, has no spread within its prompt and can't be escalated:
its score is the weighted mean of all members' scores in points (`EnsembleMember.unit`), whatever `combine` says, and
members that only compare responses are left out unless all do.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from judges.base import Group, Judge, Spend, uncounted
from tpo.config.judges import EnsembleJudge, EnsembleMember, compares
from tpo.method.ensembles import combined, disagreement, lead, standardized
from tpo.records import Judgment, Score
from tpo.storage.journal import Journal, JournalPart

OpenMeter: TypeAlias = Callable[[EnsembleMember, Sequence[Group]], AbstractContextManager[Spend]]
"""Opens the meter of a member's work on some groups; returns what receives the tokens of its replies."""
_TAG = "member"


class Ensemble:
    """Several judges as one.

    Args:
        config: The ensemble.
        judges: The members' judges, in their order.
    """

    def __init__(self, config: EnsembleJudge, judges: Sequence[Judge]) -> None:
        self._config = config
        self._judges = {member.name: judge for member, judge in zip(config.members, judges, strict=True)}
        self._open_meter: OpenMeter | None = None

    def book_with(self, open_meter: OpenMeter) -> None:
        """Has each member's work booked on a meter of its own, since members differ in devices and prices."""
        self._open_meter = open_meter

    @property
    def escalates(self) -> bool:
        """Whether some members are asked about close prompts only."""
        return self._config.escalate_below is not None

    @property
    def last_member(self) -> str:
        """The name of the last member: all are asked about a prompt that it is asked about."""
        return self._config.members[-1].name

    def judge(
        self, groups: Sequence[Group], journal: Journal | None = None, spend: Spend = uncounted
    ) -> Iterator[list[Judgment]]:
        """The judgments of all members about each group, member by member, with the member's name in their details.

        Raises what a member raises.
        """
        found: list[list[Judgment]] = [[] for _ in groups]
        for member in self._config.members:
            asked = [i for i, group in enumerate(groups) if self._is_asked(member, group, found[i])]
            part = None if journal is None else JournalPart(journal, member.name)
            chosen = [groups[i] for i in asked]
            with self._meter(member, chosen, spend) as counted:
                judged = self._judges[member.name].judge(chosen, part, counted) if chosen else iter(())
                for i, judgments in zip(asked, judged, strict=True):
                    found[i] += [_tagged(judgment, member.name) for judgment in judgments]
        yield from found

    def score(self, group: Group, judgments: Sequence[Judgment]) -> list[Score]:
        """The combined score of each response: in standard deviations within the prompt, or, of a single response, in
        points."""
        scored = self.member_scores(group, judgments)
        by_member = [scored[member.name] for member in self._members_of(scored)]
        base = by_member[0]
        reasons = [_first_reason(scored, place) for place in range(len(base))]
        valid = [place for place, reason in enumerate(reasons) if reason is None]
        raw = np.array([[scores[place].value for place in valid] for scores in by_member], dtype=np.float64)
        values, each = self._combined(group, raw, self._members_of(scored)) if valid else (np.array([]), raw)
        apart = disagreement(each)
        found = dict(zip(valid, range(len(valid)), strict=True))
        return [
            replace(
                score,
                value=float(values[found[place]]) if place in found else None,
                unscored=reasons[place],
                correct=next((s[place].correct for s in by_member if s[place].correct is not None), None),
                member_scores=[float(value) for value in each[:, found[place]]] if place in found else None,
                disagreement=float(apart[found[place]]) if place in found and len(group.responses) > 1 else None,
            )
            for place, score in enumerate(base)
        ]

    def member_scores(self, group: Group, judgments: Sequence[Judgment]) -> dict[str, list[Score]]:
        """The scores by each member that was asked about a group, by its name, in the members' order."""
        found: dict[str, list[Score]] = {}
        for member in self._config.members:
            if self._is_asked(member, group, judgments):
                own = [judgment for judgment in judgments if member_of(judgment) == member.name]
                found[member.name] = self._judges[member.name].score(group, own)
        return found

    def _is_asked(self, member: EnsembleMember, group: Group, judgments: Sequence[Judgment]) -> bool:
        """Whether a member is asked about a group, given at least the first member's judgments unless it is that."""
        if len(group.responses) == 1:
            return compares(self._config) or not compares(member.judge)
        first = self._config.members[0]
        if member is first or self._config.escalate_below is None:
            return True
        own = [judgment for judgment in judgments if member_of(judgment) == first.name]
        scores = self._judges[first.name].score(group, own)
        texts = {response.index: response.text for response in group.responses}
        known = [(score.value, texts[score.index]) for score in scores if score.value is not None]
        ahead = lead([value for value, _ in known], [text for _, text in known])
        return ahead is not None and ahead < self._config.escalate_below

    def _combined(
        self, group: Group, raw: "np.typing.NDArray[np.float64]", members: Sequence[EnsembleMember]
    ) -> "tuple[np.typing.NDArray[np.float64], np.typing.NDArray[np.float64]]":
        """The combined scores, (K,), and the members' own that were combined, (M, K)."""
        weights = [member.weight for member in members]
        if len(group.responses) == 1:
            units = [1.0 if compares(self._config) else member.unit for member in members]
            points = raw / np.array(units)[:, None]
            return combined(points, weights, "mean"), points
        z = standardized(raw)
        limits = np.array([-np.inf if member.veto_below is None else member.veto_below for member in members])
        return combined(z, weights, self._config.combine, np.any(raw < limits[:, None], axis=0)), z

    def _members_of(self, scored: Mapping[str, object]) -> list[EnsembleMember]:
        return [member for member in self._config.members if member.name in scored]

    def _meter(self, member: EnsembleMember, groups: Sequence[Group], spend: Spend) -> "AbstractContextManager[Spend]":
        return nullcontext(spend) if self._open_meter is None else self._open_meter(member, groups)


def member_of(judgment: Judgment) -> str:
    """The member of an ensemble that a judgment is by."""
    name: str = json.loads(judgment.detail)[_TAG]
    return name


def _tagged(judgment: Judgment, name: str) -> Judgment:
    detail = {_TAG: name, **json.loads(judgment.detail)}
    return replace(judgment, detail=json.dumps(detail, ensure_ascii=False, allow_nan=False))


def _first_reason(scored: Mapping[str, Sequence[Score]], place: int) -> str | None:
    """Why the first member that didn't score the response at a place left it unscored."""
    return next(
        (f"{name}: {scores[place].unscored}" for name, scores in scored.items() if scores[place].value is None), None
    )
