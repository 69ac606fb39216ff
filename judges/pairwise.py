"""A language model that compares responses two at a time (the Self-Taught Evaluator, 2408.02666), turned into ratings.

Each comparison is stored with the judge's own words; from them follows one Bradley-Terry rating per response
(2410.10630, "ELO scoring"). With a baseline, all comparisons are with that, and the score is the share of both orders
that the response wins: 1, 0, or one half if the orders contradict each other.

Responses with equal text are compared once and share a rating. An unparsable verdict, or a call that never succeeded,
adds nothing, as a tie does, but is recorded as what it is; a response without any verdict is unscored rather than
average.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from judges.askers import ResponsePair
from judges.base import BASELINE, Group, Response, Spend, distinct_responses, scores_by_text, uncounted
from judges.journaled import Asker, ask_once, to_json
from judges.unreadable import FirstAnswers, cause_of
from prompts.verdict import Verdict, parse_verdict
from tpo.config.judges import PairwiseJudge
from tpo.engines.inference.chat_client import RefusedChat
from tpo.engines.inference.reply import Reply
from tpo.method.ratings import battle_matrix, bradley_terry, soft_battle_matrix
from tpo.method.tournament import FOR_HARD_VERDICTS, Adaptive, AllPairs, Tournament
from tpo.records import Judgment, Score
from tpo.run_context import run_context
from tpo.storage.journal import Journal

_RESULTS: Mapping[Verdict, float] = {Verdict.FIRST: 1.0, Verdict.SECOND: -1.0, Verdict.TIE: 0.0}


class Pairwise:
    """Compares responses and rates them by their wins."""

    def __init__(self, config: PairwiseJudge, asker: Asker[ResponsePair]) -> None:
        self._config = config
        self._asker = asker
        self._first = FirstAnswers(partial(cause_of, config=config), f"the judge {config.model!r}", "verdict")

    def judge(
        self, groups: Sequence[Group], journal: Journal | None = None, spend: Spend = uncounted
    ) -> Iterator[list[Judgment]]:
        """The comparisons of each group.

        Answers in `journal` are reused, and new ones are written there as they arrive. Raises `StageError`
        after the first answers if hardly any of them has a verdict; the journal then forgets those that have none.
        """
        matches = [_Match(group, self._config) for group in groups]
        run_context().metrics.expect_replies()
        while questions := self._next_questions(matches):
            for question, reply in self._ask(questions, journal, spend):
                question.match.record(question, reply)
        for match in matches:
            yield match.judgments()

    def score(self, group: Group, judgments: Sequence[Judgment]) -> list[Score]:
        """The rating of each response in nats, centered to mean 0 over distinct texts; with a baseline, from 0 to 1."""
        outcomes = {(j.index, j.other_index): j.outcome for j in judgments if j.other_index is not None}
        values = self._ratings(group, outcomes) if group.baseline is None else _against_baseline(group, outcomes)
        return scores_by_text(group, values, self._why_unscored)

    def _next_questions(self, matches: Sequence["_Match"]) -> list["_Question"]:
        """The next comparisons of all groups, given those so far; empty when done."""
        tournament = _tournament(self._config)
        questions = {id(match): match.against_baseline() for match in matches}
        for k, level in itertools.groupby(sorted(matches, key=_places), key=_places):
            if k > 1:
                rivals = list(level)
                rounds = tournament.next_rounds(k, [match.results for match in rivals])
                questions |= {id(match): match.questions(pairs) for match, pairs in zip(rivals, rounds, strict=True)}
        return [question for match in matches for question in questions[id(match)]]

    def _ask(
        self, questions: Sequence["_Question"], journal: Journal | None, spend: Spend
    ) -> Iterator[tuple["_Question", Reply | RefusedChat]]:
        """The reply to each comparison, from the journal or the judge, in any order."""
        by_key = {question.key: question for question in questions}
        comparisons = {key: question.comparison for key, question in by_key.items()}
        for key, reply in ask_once(self._asker, comparisons, self._first, journal, spend):
            yield by_key[key], reply

    def _ratings(self, group: Group, outcomes: "_Outcomes") -> dict[str, float]:
        """Bradley-Terry ratings by text, for texts with a verdict; a text without a rival is level with itself."""
        entrants = distinct_responses(group, self._config.max_response_chars)
        if len(entrants) < 2:
            return {entrant.text: 0.0 for entrant in entrants}
        results = np.full((len(entrants), len(entrants)), np.nan)
        for m, first in enumerate(entrants):
            for n, second in enumerate(entrants):
                if (outcome := outcomes.get((first.index, second.index))) is not None:
                    results[m, n] = outcome
        soft = self._config.mode == "probability"
        wins = soft_battle_matrix(results) if soft else battle_matrix(np.nan_to_num(results))
        ratings = bradley_terry(wins, self._config.ridge)
        heard = ~np.isnan(results)
        return {
            entrant.text: float(ratings[i]) for i, entrant in enumerate(entrants) if heard[i].any() or heard[:, i].any()
        }

    def _why_unscored(self, text: str) -> str:
        return "too_long" if len(text) > self._config.max_response_chars else "no_verdict"


_Outcomes: TypeAlias = Mapping[tuple[int, int], float | None]
"""Outcome by index of the response shown first and of the one shown second."""


@dataclass(frozen=True)
class _Question:
    """One comparison to make: which group, which two responses."""

    match: "_Match"
    first: Response
    second: Response

    @property
    def key(self) -> str:
        """Its key in the journal."""
        return f"{self.match.group.prompt_id} {self.first.index} {self.second.index}"

    @property
    def comparison(self) -> ResponsePair:
        """The texts that the judge sees."""
        group = self.match.group
        return ResponsePair(group.instruction, self.first.text, self.second.text, group.history)


class _Match:
    """The state of one group's comparisons."""

    def __init__(self, group: Group, config: PairwiseJudge) -> None:
        self.group = group
        self._config = config
        self._entrants = distinct_responses(group, config.max_response_chars)
        self._places = {entrant.index: place for place, entrant in enumerate(self._entrants)}
        self.results: dict[tuple[int, int], float | None] = {}
        self._judgments: list[Judgment] = []

    @property
    def places(self) -> int:
        """Number of responses in the tournament; 0 if each is compared with a baseline."""
        return len(self._entrants) if self.group.baseline is None else 0

    def questions(self, pairs: Sequence[tuple[int, int]]) -> list[_Question]:
        """Pairs of places as questions."""
        return [_Question(self, self._entrants[m], self._entrants[n]) for m, n in pairs]

    def against_baseline(self) -> list[_Question]:
        """Each response against the baseline in both orders, once; none without a baseline."""
        baseline = self.group.baseline
        if baseline is None or self._judgments:
            return []
        rivals = [entrant for entrant in self._entrants if entrant.text != baseline.text]
        return [_Question(self, *pair) for rival in rivals for pair in ((rival, baseline), (baseline, rival))]

    def record(self, question: _Question, reply: Reply | RefusedChat) -> None:
        """Records the reply to one comparison."""
        outcome = _outcome(reply, self._config.mode)
        detail = json.dumps(to_json(reply), ensure_ascii=False, allow_nan=False)
        first, second = question.first.index, question.second.index
        self._judgments.append(Judgment(self.group.prompt_id, first, second, outcome, detail))
        if self.group.baseline is None:
            self.results[self._places[first], self._places[second]] = outcome

    def judgments(self) -> list[Judgment]:
        """All judgments, by index."""
        return sorted(self._judgments, key=lambda judgment: (judgment.index, judgment.other_index or 0))


def _places(match: _Match) -> int:
    return match.places


def _tournament(config: PairwiseJudge) -> Tournament:
    if config.tournament == "all_pairs":
        return AllPairs()
    return Adaptive() if config.mode == "probability" else FOR_HARD_VERDICTS


def _outcome(reply: Reply | RefusedChat, mode: str) -> float | None:
    """1 if the first won, -1 if the second did, 0 for a tie; 2p - 1 for a soft result; None if unparsable."""
    if isinstance(reply, RefusedChat):
        return None
    if mode != "probability":
        verdict = parse_verdict(reply.text, finished=reply.finished)
        return None if verdict is None else _RESULTS[verdict]
    if reply.label_logprobs is None or max(reply.label_logprobs) == -math.inf:
        return None
    first, second = reply.label_logprobs
    return math.tanh((first - second) / 2)


def _against_baseline(group: Group, outcomes: _Outcomes) -> dict[str, float]:
    """The mean result of both orders by text, from 0 to 1; one half for the baseline's own text."""
    assert group.baseline is not None
    values = {}
    for response in group.responses:
        if response.text == group.baseline.text:
            values[response.text] = 0.5
            continue
        shown_first, shown_second = outcomes.get((response.index, BASELINE)), outcomes.get((BASELINE, response.index))
        if shown_first is not None and shown_second is not None:
            values.setdefault(response.text, 0.5 + (shown_first - shown_second) / 4)
    return values
