"""The generators of new instructions: our own engines, or a server.

They reply to chats shard by shard, each chat with a seed. A server's replies are requested once and journaled as they
arrive; a server takes no seeds, so they can't be reproduced. Engines lose at most a shard, and reproduce it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from tpo.config.base import Endpoint
from tpo.config.data import SampleConfig, SyntheticConfig
from tpo.config.resources import ClusterConfig, EngineConfig
from tpo.engines.engines import engines_of_run
from tpo.engines.inference.chat_client import ChatClient, RefusedChat, Spent
from tpo.engines.inference.reply import Decoding, Reply, without_thinking
from tpo.engines.inference.sampler import Request
from tpo.errors import InputError
from tpo.models.chat import ChatEncoder
from tpo.records import Artifact, Message
from tpo.storage.journal import Journal

CHARS_PER_TOKEN = 4
"""Estimate for a server's chats, whose tokenizer we don't have."""
SHARD_CALLS = 8
"""Minimum calls per shard, in multiples of a server's concurrency: a shard's end waits for its slowest call."""

ChatResult = Reply | RefusedChat
Spend = Callable[[Sequence[Reply]], None]
"""Receives replies as they come, before they are stored."""


@dataclass(frozen=True)
class GenerationRequest:
    """One chat to reply to."""

    messages: list[Message]
    """The chat."""
    seed: int
    """Seed of the reply, if the generator uses one."""


class Generator(Protocol):
    """Replies to chats."""

    def shard_size(self, prompts: int) -> int:
        """Chats per shard, given the `prompts` per shard of samples."""
        ...

    def fits(self, messages: Sequence[Message]) -> bool:
        """Whether a chat is short enough."""
        ...

    def reply(
        self, shards: Iterable[tuple[Path, Sequence[GenerationRequest]]], spend: Spend
    ) -> Iterator[tuple[int, list[ChatResult]]]:
        """The replies to each shard by its index, in any order; a shard's path is for its journal."""
        ...


class EngineGenerator:
    """Generates with our own vLLM engines."""

    def __init__(
        self, settings: SyntheticConfig, model: Artifact, engine: EngineConfig, cluster: ClusterConfig, context: int
    ) -> None:
        self._longest = settings.max_prompt_tokens
        self._model = model
        self._encoder = ChatEncoder(model.path)
        self._sample = SampleConfig(
            temperature=settings.temperature, top_p=settings.top_p, max_new_tokens=settings.max_new_tokens
        )
        # M_0 runs in the engines that sample; another model has its own engines, which are idle most of the time.
        cpus = 1.0 if settings.folder is None else 0.0
        self._pool = engines_of_run().sampler_pool(engine, cluster, context, cpus=cpus)

    def shard_size(self, prompts: int) -> int:
        """The same."""
        return prompts

    def fits(self, messages: Sequence[Message]) -> bool:
        """Counts its tokens."""
        return len(self._encoder.encode(messages)) <= self._longest

    def reply(
        self, shards: Iterable[tuple[Path, Sequence[GenerationRequest]]], spend: Spend
    ) -> Iterator[tuple[int, list[ChatResult]]]:
        """Replies by seed; a shard is taken when an engine is free."""
        asked = dict[int, list[Request]]()

        def requests() -> Iterator[list[Request]]:
            for position, (_, questions) in enumerate(shards):
                asked[position] = [Request(self._encoder.encode(q.messages), q.seed) for q in questions]
                yield asked[position]

        found = self._pool.generate(self._model, requests(), self._sample, n=1, tries=1, accept=lambda *_: True)
        for position, groups in found:
            replies = [
                Reply(output.text, output.finished, len(request.prompt_token_ids), len(output.token_ids))
                for request, (output,) in zip(asked.pop(position), groups, strict=True)
            ]
            spend(replies)
            yield position, [*replies]


class ApiGenerator:
    """Generates with a server; shards in sequence, each with many concurrent calls.

    Args:
        settings: The model and its settings.
        endpoint: Its address and limits.
        spent: Tokens used so far; counts on.
        clean: Transforms a chat's text before it is sent.
    """

    def __init__(
        self, settings: SyntheticConfig, endpoint: Endpoint, spent: Spent, clean: Callable[[str], str]
    ) -> None:
        self._longest = settings.max_prompt_tokens
        self._calls = endpoint.concurrency
        self._client = ChatClient(endpoint, settings.model)
        self._decoding = Decoding(settings.max_new_tokens, temperature=settings.temperature, top_p=settings.top_p)
        self._spent = spent
        self._clean = clean
        self._server = settings.server

    def shard_size(self, prompts: int) -> int:
        """Enough to keep all calls busy."""
        return max(prompts, SHARD_CALLS * self._calls)

    def fits(self, messages: Sequence[Message]) -> bool:
        """Estimates its tokens."""
        return sum(len(message["content"]) for message in messages) <= CHARS_PER_TOKEN * self._longest

    def reply(
        self, shards: Iterable[tuple[Path, Sequence[GenerationRequest]]], spend: Spend
    ) -> Iterator[tuple[int, list[ChatResult]]]:
        """Replies from the journal, otherwise from the server; raises `StageError` as `ChatClient.ask` does."""
        for position, (path, questions) in enumerate(shards):
            with Journal(path) as journal:
                results = {int(key): _from_json(value) for key, value in journal.answers.items()}
                missing = [i for i in range(len(questions)) if i not in results]
                chats = [self._chat(questions[i].messages) for i in missing]
                for index, result in self._client.ask(chats, self._decoding, spent=self._spent):
                    if isinstance(result, Reply):
                        spend([result])
                    results[missing[index]] = _answer_alone(result)
                    journal.write(str(missing[index]), _to_json(results[missing[index]]))
            yield position, [results[i] for i in range(len(questions))]

    def check(self, messages: Sequence[Message]) -> None:
        """Calls the server as the generator will; raises `InputError` if it doesn't answer with text."""
        reply = self._client.check(self._chat(messages), self._decoding)
        if not without_thinking(reply.text).strip():
            reasoned = reply.reasoning_chars or reply.text.strip()
            raise InputError(
                f"{self._server} returned no text when asked for instructions: "
                + ("it reasoned until it ran out of tokens: raise" if reasoned else "check its chat template, or raise")
                + " data.synthetic.max_new_tokens, or have it reason less with endpoint.extra_body"
            )

    def _chat(self, messages: Sequence[Message]) -> list[Message]:
        return [Message(role=m["role"], content=self._clean(m["content"])) for m in messages]


def _answer_alone(result: ChatResult) -> ChatResult:
    """A reply without its leading thought, in which models draft instructions."""
    return replace(result, text=without_thinking(result.text)) if isinstance(result, Reply) else result


def _to_json(result: ChatResult) -> dict[str, object]:
    return {name: value for name, value in vars(result).items() if name != "label_logprobs"}


def _from_json(values: dict[str, object]) -> ChatResult:
    return RefusedChat(**values) if "reason" in values else Reply(**values)  # type: ignore[arg-type]
