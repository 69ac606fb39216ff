"""A client for reward models behind servers, with the retries, limits and errors of `ServerClient`.

Four protocols. vLLM's `/classify` and `/pooling` read one chat per request, rendered by the server with the model's own
chat template; `/score` reads one text and several others, without one. All three are asked for raw outputs: by default,
vLLM applies an activation to them (a softmax or a sigmoid), which would squash the scores. `json` is ours, for any
other server: `{"model": …, "items": [{"messages": […]}, …]}` to the address itself, answered by `{"scores": […]}` with
a number for each item, or null for one that it can't score.

The text of a reply is its scores, as a JSON list.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, NonNegativeInt, ValidationError

from tpo.config.judges import RewardProtocol, RewardServerJudge
from tpo.engines.inference.chat_client import Failure, Outcome, RefusedChat, ServerClient, estimated_tokens
from tpo.engines.inference.reply import Reply
from tpo.records import Message

if TYPE_CHECKING:
    import openai

_PATHS: Mapping[RewardProtocol, str] = {
    "vllm_classify": "/classify",
    "vllm_pooling": "/pooling",
    "vllm_score": "/score",
}
"""Paths of vLLM's protocols, below the server and not below `/v1`."""


@dataclass(frozen=True)
class Conversations:
    """One conversation with several responses to its end."""

    turns: Sequence[Message]
    """The conversation, which ends with the user's turn."""
    responses: Sequence[str]
    """The responses, each of which continues it."""


class RewardClient(ServerClient[Conversations]):
    """A client of one reward model at one server."""

    def __init__(self, judge: RewardServerJudge) -> None:
        super().__init__(judge.endpoint, judge.model)
        self._protocol, self._label = judge.protocol, judge.label

    @property
    def items_at_once(self) -> int | None:
        """How many responses one request may have; None for any number."""
        return 1 if self._protocol in ("vllm_classify", "vllm_pooling") else None

    def check(self, asked: Conversations) -> Reply:
        """Makes one call, as `ask_all` would; raises `InputError` if there is no reply."""
        return self._check(asked, self._endpoint.timeout_seconds)

    async def _attempt(self, client: "openai.AsyncOpenAI", asked: Conversations, seconds: float) -> Outcome:
        answer = await self._post(client, self._address, self._body(asked), seconds)
        if isinstance(answer, RefusedChat | Failure):
            return answer
        try:
            found = _Answer.model_validate_json(answer.content)
        except ValidationError:
            return self._unreadable(f"what {self._protocol} returns", answer.text, client.api_key)
        scores = self._scores(found, answer.text, client.api_key)
        if isinstance(scores, Failure):
            return scores
        if len(scores) != len(asked.responses):
            what = f"the answer has {len(scores)} scores for {len(asked.responses)} responses"
            return Failure(what, error="no_completion")
        read = found.usage.prompt_tokens if found.usage is not None else None
        texts = [*(turn["content"] for turn in asked.turns), *asked.responses]
        return Reply(json.dumps(scores), True, read or estimated_tokens(*texts), 0)

    @property
    def _address(self) -> str:
        base = self._endpoint.base_url.rstrip("/")
        if self._protocol == "json":
            return self._endpoint.base_url
        return base.removesuffix("/v1") + _PATHS[self._protocol]

    def _body(self, asked: Conversations) -> dict[str, Any]:
        chats = [[*asked.turns, Message(role="assistant", content=text)] for text in asked.responses]
        body: dict[str, Any] = {"model": self._model}
        if self._protocol == "json":
            body["items"] = [{"messages": chat} for chat in chats]
        elif self._protocol == "vllm_score":
            question = asked.turns[0]["content"] if len(asked.turns) == 1 else _as_text(asked.turns)
            body |= {"text_1": question, "text_2": list(asked.responses), "use_activation": False}
        else:
            body |= {"messages": chats[0], "use_activation": False}
        return body | dict(self._endpoint.extra_body)

    def _scores(self, answer: "_Answer", text: str, key: str) -> list[float | None] | Failure:
        """The score of each response, in order."""
        if self._protocol == "json":
            found = [None if each is None else [each] for each in answer.scores or ()]
        else:
            found = [each.values for each in sorted(answer.data or (), key=lambda each: each.index)]
        if any(values is not None and not values for values in found):
            return self._unreadable(f"what {self._protocol} returns", text, key)
        outputs = max((len(values) for values in found if values is not None), default=1)
        if outputs > 1 and self._label is None:
            return Failure(
                f"the model has {outputs} outputs: set judge.label to the one that is the score, from 0, or serve a "
                "model with one",
                error="no_completion",
            )
        if self._label is not None and self._label >= outputs:
            what = f"judge.label is {self._label}, and the model has {outputs} outputs, numbered from 0"
            return Failure(what, error="no_completion")
        chosen = [None if values is None else values[self._label or 0] for values in found]
        return [value if value is not None and math.isfinite(value) else None for value in chosen]

    def _remedy(self, failure: Failure) -> str:
        if failure.status == 404:
            return "name a model that is served there, or correct endpoint.base_url and judge.protocol"
        if failure.status in (400, 422) or failure.error == "no_completion":
            return (
                "check that judge.protocol is what the server speaks, and that it serves a reward model (vLLM: "
                "--runner pooling)"
            )
        return super()._remedy(failure)


class _Datum(BaseModel):
    index: int = 0
    probs: list[float] | None = None
    data: list[float] | list[list[float]] | None = None
    score: float | None = None

    @property
    def values(self) -> list[float]:
        """The outputs, under whatever name; those of the last token if there is a list of them for each."""
        if self.probs is not None:
            return self.probs
        if self.score is not None:
            return [self.score]
        if self.data and isinstance(self.data[-1], list):
            return self.data[-1]
        return [value for value in self.data or () if isinstance(value, float)]


class _Usage(BaseModel):
    prompt_tokens: NonNegativeInt | None = None


class _Answer(BaseModel):
    """The parts of an answer that we need, in any protocol."""

    scores: list[float | None] | None = None
    data: list[_Datum] | None = None
    usage: _Usage | None = None


def _as_text(turns: Sequence[Message]) -> str:
    """A conversation as one text, for a protocol without chats."""
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
