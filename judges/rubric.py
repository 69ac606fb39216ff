"""A language model that grades each response by itself, by a rubric.

Its own reply ends with a score, or with a sum of points (Self-Rewarding Language Models, 2401.10020); of several
sampled replies the mean counts. With `expected_score` it replies with the score alone, and the score is the expectation
over the probabilities of all scores, which has finer steps than any single reply (as in G-Eval, 2303.16634).

Every reply is stored in the judge's own words. One without a readable score, or one that spreads less than half of its
probability on scores, gives none; a response without any score is unscored rather than average. Responses with equal
text are graded once.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from judges.base import Group, Response, Spend, distinct_responses, scores_by_text, uncounted
from judges.chat_askers import EngineChatAsker
from judges.journaled import Asker, ask_once, to_json
from judges.unreadable import TOO_LONG, Cause, FirstAnswers
from prompts.quoting import turns_without_control_tokens, without_control_tokens
from prompts.rubric import (
    SCORE_BEGINS,
    RubricPrompt,
    Unread,
    expected_score,
    labels_of,
    load_rubric_prompt,
    read_score,
)
from tpo.config.base import Endpoint
from tpo.config.judges import RubricJudge
from tpo.config.resources import ClusterConfig, JudgeEngineConfig
from tpo.engines.inference.chat_client import ChatClient, RefusedChat, Spent
from tpo.engines.inference.reply import Decoding, Reply, TokenCount
from tpo.errors import InputError
from tpo.records import Judgment, Message, Score, read_turns
from tpo.run_context import run_context
from tpo.storage.journal import Journal

MAX_NEW_TOKENS = 2048
"""Default for the maximum length of a reply that explains itself."""
LABEL_TOKENS = 8
"""Tokens for a score alone."""
MIN_LABEL_MASS = 0.5
"""Probability on all scores together below which a reply isn't one: the mean of what is left would be invented."""


@dataclass(frozen=True)
class GradedResponse:
    """A response to be graded."""

    prompt_id: str
    """The prompt."""
    instruction: str
    """The user's request."""
    response: Response
    """The response."""
    rubric: str | None = None
    """The prompt's own rubric, if it has one."""
    history: str | None = None
    """The turns before the instruction, as `Prompt.history`."""
    sample: int = 0
    """0, 1, … of the replies about it."""

    @property
    def key(self) -> str:
        """Its key in the journal, and what its reply's seed is made of."""
        return f"{self.prompt_id} {self.response.index} {self.sample}"


PLAIN = GradedResponse("plain", "What is 12 + 30?", Response(0, "12 + 30 is 42."))
"""A response that any judge can grade."""


class ServerRubricAsker:
    """Uses an OpenAI-compatible server."""

    def __init__(self, config: RubricJudge, endpoint: Endpoint, prompt: RubricPrompt, spent: TokenCount) -> None:
        self._config, self._prompt = config, prompt
        self._client = ChatClient(endpoint, config.model)
        self._decoding = decoding_of(config, config.max_tokens)
        self._spent = Spent(spent.input_tokens, spent.output_tokens)

    def ask(self, questions: Sequence[GradedResponse]) -> Iterator[tuple[int, Reply | RefusedChat]]:
        """The replies as the server sends them."""
        return self._client.ask(list(map(self._chat, questions)), self._decoding, spent=self._spent)

    def check(self) -> Iterator[str]:
        """Asks for one score as the judge will ask; yields a line if it can't be read.

        Raises `InputError` if the server doesn't answer, or its answer shows a fault that all replies would have: no
        text, or no log-probabilities for `expected_score`.
        """
        reply = self._client.check(self._chat(PLAIN), self._decoding)
        cause = cause_of(reply, self._config)
        if cause is None:
            return
        message = f"{self._config.server}: its reply about a plain response {cause.what}: {cause.remedy}"
        if not reply.text.strip() or cause.remedy == _NO_LOGPROBS:
            raise InputError(message)
        yield message

    def _chat(self, asked: GradedResponse) -> list[Message]:
        earlier = turns_without_control_tokens(read_turns(asked.history))
        rubric = None if asked.rubric is None else without_control_tokens(asked.rubric)
        instruction, response = map(without_control_tokens, (asked.instruction, asked.response.text))
        return self._prompt.render(instruction, response, rubric, earlier)


class Rubric:
    """Grades responses one by one."""

    def __init__(self, config: RubricJudge, asker: Asker[GradedResponse]) -> None:
        self._config, self._asker = config, asker
        self._first = FirstAnswers(lambda reply: cause_of(reply, config), f"the judge {config.model!r}", "score")

    def judge(
        self, groups: Sequence[Group], journal: Journal | None = None, spend: Spend = uncounted
    ) -> Iterator[list[Judgment]]:
        """The scores that replies gave, `samples` for each distinct response of each group.

        Replies in `journal` are reused, and new ones are written there as they arrive. Raises `StageError` after the
        first replies if hardly any of them can be read; the journal then forgets those.
        """
        run_context().metrics.expect_replies()
        asked = [self._questions(group) for group in groups]
        questions = {each.key: each for of_group in asked for each in of_group}
        replies = dict(ask_once(self._asker, questions, self._first, journal, spend))
        for of_group in asked:
            yield [self._judgment(each, replies[each.key]) for each in of_group]

    def score(self, group: Group, judgments: Sequence[Judgment]) -> list[Score]:
        """The mean score of each response's readable replies; if there are none, why: `too_long`, `refused` by the
        server, or `no_score`."""
        texts = {response.index: response.text for response in group.responses}
        found: dict[str, list[float]] = {}
        reasons: dict[str, str] = {}
        for judgment in judgments:
            if judgment.outcome is not None:
                found.setdefault(texts[judgment.index], []).append(judgment.outcome)
            else:
                reasons[texts[judgment.index]] = _why_unread(judgment)
        values = {text: math.fsum(scores) / len(scores) for text, scores in found.items()}
        return scores_by_text(group, values, lambda text: reasons.get(text, TOO_LONG))

    def _questions(self, group: Group) -> list[GradedResponse]:
        return [
            GradedResponse(group.prompt_id, group.instruction, response, group.rubric, group.history, sample)
            for response in distinct_responses(group, self._config.max_response_chars)
            for sample in range(self._config.samples)
        ]

    def _judgment(self, asked: GradedResponse, reply: Reply | RefusedChat) -> Judgment:
        detail = json.dumps(to_json(reply), ensure_ascii=False, allow_nan=False)
        found = score_of(reply, self._config)
        outcome = None if isinstance(found, Cause) else found
        return Judgment(asked.prompt_id, asked.response.index, None, outcome, detail)


def build_rubric(config: RubricJudge, engine: JudgeEngineConfig, cluster: ClusterConfig, spent: TokenCount) -> Rubric:
    """The judge for a config; its engines start with its first call.

    `spent` is the usage of the run's judging so far, which an endpoint's limits count.
    """
    prompt = load_rubric_prompt(config)
    if config.endpoint is not None:
        return Rubric(config, ServerRubricAsker(config, config.endpoint, prompt, spent))
    assert config.folder is not None
    return Rubric(
        config,
        EngineChatAsker(
            config.folder,
            config.max_tokens,
            lambda context: decoding_of(config, context),
            lambda asked: prompt.render(
                asked.instruction, asked.response.text, asked.rubric, read_turns(asked.history)
            ),
            engine,
            cluster,
            seed_of=lambda asked: asked.key,
        ),
    )


def _why_unread(judgment: Judgment) -> str:
    reason = json.loads(judgment.detail).get("reason")
    return "no_score" if reason is None else TOO_LONG if reason == TOO_LONG else "refused"


def decoding_of(config: RubricJudge, context: int) -> Decoding:
    """Decoding settings of a config, for a model with a context of this many tokens."""
    if config.expected_score:
        return Decoding(config.max_new_tokens or LABEL_TOKENS, labels_of(config), probabilities=True)
    longest = config.max_new_tokens or min(MAX_NEW_TOKENS, context // 4)
    return Decoding(longest, temperature=config.temperature)


def score_of(reply: Reply | RefusedChat, config: RubricJudge) -> float | Cause:
    """The score that a reply gives, or why it gives none."""
    if isinstance(reply, RefusedChat):
        return Cause(f"was refused by the server ({re.sub(r'[0-9]+', 'N', reply.reason)[:200]})", _REFUSED)
    if config.expected_score:
        return _expected(reply, config)
    found = read_score(reply.text, config, finished=reply.finished)
    if not isinstance(found, Unread):
        return found
    match found:
        case Unread.CUT:
            return _cut(reply)
        case Unread.EMPTY:
            return Cause("was empty or reasoning alone", _LONGER)
        case Unread.OUT_OF_RANGE:
            return Cause(f"gave a score that isn't from {config.min_score} to {config.highest}", _RANGE)
        case Unread.NO_SCORE:
            return Cause(f"had no score of the form {_form(config)}", _FOLLOWS)


def cause_of(reply: Reply | RefusedChat, config: RubricJudge) -> Cause | None:
    """Why a reply has no readable score; None if it has one."""
    found = score_of(reply, config)
    return found if isinstance(found, Cause) else None


def _expected(reply: Reply, config: RubricJudge) -> float | Cause:
    begins = _DIGIT.match(reply.text)
    is_score = begins is not None and begins[1] in labels_of(config)
    if is_score and reply.label_logprobs is not None:
        mean, mass = expected_score(reply.label_logprobs, config)
        if mass >= MIN_LABEL_MASS:
            return mean
        return Cause(f"had less than {MIN_LABEL_MASS:.0%} of its probability on scores", _ALONE)
    if not reply.text.strip():
        return Cause("was empty or reasoning alone", _LONGER)
    if is_score:
        return Cause("came without log-probabilities of the scores", _NO_LOGPROBS)
    return Cause(f"did not begin with a score from {config.min_score} to {config.highest}", _ALONE)


def _cut(reply: Reply) -> Cause:
    if reply.ended_by in ("content_filter", "safety"):
        return Cause("was held back by the server's content filter", _REFUSED)
    if reply.ended_by in ("tool_calls", "function_call"):
        return Cause("was a tool call", "serve the judge without tools")
    return Cause("was cut by length before its end", _LONGER)


def _form(config: RubricJudge) -> str:
    if config.score_pattern is not None:
        return "that judge.score_pattern describes"
    return f"{SCORE_BEGINS} number]]" if config.template == "score" else '"Score: number"'


_DIGIT = re.compile(r"\s*(\d+)(?![.,]?\d)")
_LONGER = (
    "raise judge.max_new_tokens, or have it reason less (with a server, endpoint.extra_body = "
    '{ reasoning_effort = "low" } or { chat_template_kwargs = { enable_thinking = false } })'
)
_FOLLOWS = "take a judge that follows the rubric prompt, or say how it writes scores in judge.score_pattern"
_RANGE = "set judge.min_score and max_score to the range that the rubric names, or take a judge that keeps to it"
_ALONE = "take a judge that replies with a digit alone, or set judge.expected_score to false"
_NO_LOGPROBS = (
    "this server returns none: set judge.expected_score to false (judge.samples averages several replies instead), or "
    "serve the judge with vLLM"
)
_REFUSED = "lower judge.max_response_chars, or take a judge with a longer context or without such a filter"
