"""Reward models behind a server: each response is read as a chat, and the server returns a number.

Responses with equal text are read once. Of a request with several responses that the server refuses, since one of them
is too long, each is asked about again by itself; what is refused then is unscored, and so is a response without a
finite number.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from judges.base import Group, Response, Spend, distinct_responses, scores_by_text, uncounted
from judges.journaled import Asker, ask_once
from judges.unreadable import Cause, FirstAnswers
from prompts.quoting import turns_without_control_tokens, without_control_tokens
from tpo.config.judges import RewardServerJudge
from tpo.engines.inference.chat_client import RefusedChat, Spent
from tpo.engines.inference.reply import Reply, TokenCount
from tpo.engines.inference.reward_client import Conversations, RewardClient
from tpo.records import Judgment, Message, Score, read_turns
from tpo.run_context import run_context
from tpo.storage.journal import Journal


@dataclass(frozen=True)
class ReadResponses:
    """Some responses to one prompt, read in one request."""

    prompt_id: str
    """The prompt."""
    instruction: str
    """The user's request."""
    responses: tuple[Response, ...]
    """The responses."""
    history: str | None = None
    """The turns before the instruction, as `Prompt.history`."""

    @property
    def key(self) -> str:
        """Its key in the journal."""
        return " ".join([self.prompt_id, *(str(response.index) for response in self.responses)])


PLAIN = ReadResponses("plain", "What is 12 + 30?", (Response(0, "12 + 30 is 42."),))
"""A response that any reward model can read."""


class RewardAsker:
    """Asks the server."""

    def __init__(self, config: RewardServerJudge, spent: TokenCount) -> None:
        self._config, self._client = config, RewardClient(config)
        self._spent = Spent(spent.input_tokens, spent.output_tokens)

    @property
    def items_at_once(self) -> int:
        """How many responses go into one request."""
        return min(self._config.items_per_request, self._client.items_at_once or self._config.items_per_request)

    def ask(self, questions: Sequence[ReadResponses]) -> Iterator[tuple[int, Reply | RefusedChat]]:
        """The replies as the server sends them."""
        return self._client.ask_all([self._conversations(each) for each in questions], spent=self._spent)

    def check(self) -> Iterator[str]:
        """Has one plain response read as the judge will; yields a line if it gets no number.

        Raises `InputError` if the server doesn't answer, or not in this protocol.
        """
        reply = self._client.check(self._conversations(PLAIN))
        if (cause := cause_of(reply)) is not None:
            yield f"{self._config.server}: its reply about a plain response {cause.what}: {cause.remedy}"

    @staticmethod
    def _conversations(asked: ReadResponses) -> Conversations:
        turns = [*read_turns(asked.history), Message(role="user", content=asked.instruction)]
        return Conversations(
            turns_without_control_tokens(turns),
            [without_control_tokens(response.text) for response in asked.responses],
        )


class RewardServer:
    """Reads responses through a server, which takes `items_at_once` in one request."""

    def __init__(self, config: RewardServerJudge, asker: "RewardAsker | Asker[ReadResponses]") -> None:
        self._config, self._asker = config, asker
        self._items_at_once = asker.items_at_once if isinstance(asker, RewardAsker) else config.items_per_request
        self._first = FirstAnswers(cause_of, f"the judge {config.model!r}", "score")

    def judge(
        self, groups: Sequence[Group], journal: Journal | None = None, spend: Spend = uncounted
    ) -> Iterator[list[Judgment]]:
        """One reading of each distinct response of each group.

        Replies in `journal` are reused, and new ones are written there as they arrive. Raises `StageError` after the
        first replies if hardly any of them has a score; the journal then forgets those.
        """
        run_context().metrics.expect_replies()
        asked = [self._questions(group) for group in groups]
        found = self._ask([each for of_group in asked for each in of_group], journal, spend)
        again = [
            ReadResponses(each.prompt_id, each.instruction, (response,), each.history)
            for of_group in asked
            for each in of_group
            if isinstance(found[each.key], RefusedChat) and len(each.responses) > 1
            for response in each.responses
        ]
        found |= self._ask(again, journal, spend)
        alone = {each.key: each for each in again}
        for of_group in asked:
            yield [judgment for each in of_group for judgment in self._judgments(each, found, alone)]

    def score(self, group: Group, judgments: Sequence[Judgment]) -> list[Score]:
        """The readings as they are."""
        texts = {response.index: response.text for response in group.responses}
        by_text = {texts[judgment.index]: judgment for judgment in judgments}
        values = {text: judgment.outcome for text, judgment in by_text.items() if judgment.outcome is not None}
        return scores_by_text(group, values, lambda text: _why_unscored(by_text.get(text)))

    def _ask(
        self, questions: Sequence[ReadResponses], journal: Journal | None, spend: Spend
    ) -> dict[str, Reply | RefusedChat]:
        by_key = {each.key: each for each in questions}
        return dict(ask_once(self._asker, by_key, self._first, journal, spend)) if by_key else {}

    def _questions(self, group: Group) -> list[ReadResponses]:
        responses, size = distinct_responses(group, self._config.max_response_chars), self._items_at_once
        return [
            ReadResponses(group.prompt_id, group.instruction, tuple(responses[start : start + size]), group.history)
            for start in range(0, len(responses), size)
        ]

    def _judgments(
        self, asked: ReadResponses, found: dict[str, Reply | RefusedChat], alone: dict[str, ReadResponses]
    ) -> Iterator[Judgment]:
        reply = found[asked.key]
        if isinstance(reply, RefusedChat) and len(asked.responses) > 1:
            for response in asked.responses:
                single = ReadResponses(asked.prompt_id, asked.instruction, (response,), asked.history)
                yield from self._judgments(alone[single.key], found, alone)
            return
        if isinstance(reply, RefusedChat):
            detail = {"unscored": "refused", "reason": reply.reason}
            yield Judgment(asked.prompt_id, asked.responses[0].index, None, None, json.dumps(detail))
            return
        for response, value in zip(asked.responses, json.loads(reply.text), strict=True):
            detail = {} if value is not None else {"unscored": "no_score"}
            yield Judgment(asked.prompt_id, response.index, None, value, json.dumps(detail))


def cause_of(reply: Reply | RefusedChat) -> Cause | None:
    """Why a reply has no score; None if it has one."""
    if isinstance(reply, RefusedChat):
        return Cause(
            f"was refused by the server ({reply.reason[:200]})",
            "lower judge.max_response_chars, or serve the model with a longer context",
        )
    if all(value is None for value in json.loads(reply.text)):
        return Cause("had no finite number", "look at what the server returns for a plain chat")
    return None


def _why_unscored(judgment: Judgment | None) -> str:
    return "too_long" if judgment is None else str(json.loads(judgment.detail)["unscored"])
