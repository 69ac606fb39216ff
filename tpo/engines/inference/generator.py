"""Who writes when new instructions are asked for: engines of our own, or a server.

In: chats, shard by shard, each with a seed. Out: for each shard its replies, as shards are done.

What a server says is written to a journal as it comes and asked for once; it takes no seeds, so what it wrote cannot be
made again. Engines lose a shard at most, and write the same again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from tpo.config.base import Endpoint
from tpo.config.data import SampleConfig, SyntheticConfig
from tpo.config.resources import ClusterConfig, EngineConfig
from tpo.engines.inference.chat_client import ChatClient, Refused, Spent
from tpo.engines.inference.reply import Decoding, Reply, without_thinking
from tpo.engines.inference.sampler import Request, sampler_pool
from tpo.errors import InputError
from tpo.models.chat import ChatEncoder
from tpo.records import Artifact, Message
from tpo.storage.journal import Journal

LETTERS_A_TOKEN = 4
"""What a server's chat is guessed to hold, whose tokenizer we do not have."""
SHARD_CALLS = 8
"""Times that each of a server's calls under way can end within a shard: at a shard's end they wait for the last."""

Told = Reply | Refused
Spend = Callable[[Sequence[Reply]], None]
"""Is told of replies as they come, before they are kept."""


@dataclass(frozen=True)
class Question:
    """One chat to reply to."""

    messages: list[Message]
    """The chat."""
    seed: int
    """Seed of the reply, where the generator takes one."""


class Generator(Protocol):
    """Replies to chats."""

    def shard_size(self, prompts: int) -> int:
        """Chats of a shard, where a shard of samples has `prompts` prompts."""
        ...

    def fits(self, messages: Sequence[Message]) -> bool:
        """Whether a chat is short enough."""
        ...

    def reply(
        self, shards: Iterable[tuple[Path, Sequence[Question]]], spend: Spend
    ) -> Iterator[tuple[int, list[Told]]]:
        """The replies to each shard by its position, in any order; a shard's path is where its journal may stand."""
        ...


class EngineGenerator:
    """Asks vLLM engines of our own."""

    def __init__(
        self, settings: SyntheticConfig, model: Artifact, engine: EngineConfig, cluster: ClusterConfig, context: int
    ) -> None:
        self._longest = settings.max_prompt_tokens
        self._model = model
        self._encoder = ChatEncoder(model.path)
        self._sample = SampleConfig(
            temperature=settings.temperature, top_p=settings.top_p, max_new_tokens=settings.max_new_tokens
        )
        # M_0 is asked by the engines that sample; a model of its own has engines that lie idle for most of the time.
        self._pool = sampler_pool(engine, cluster, context, cpus=1.0 if settings.folder is None else 0.0)

    def shard_size(self, prompts: int) -> int:
        """As many as are sampled for at a time."""
        return prompts

    def fits(self, messages: Sequence[Message]) -> bool:
        """Counts its tokens."""
        return len(self._encoder.encode(messages)) <= self._longest

    def reply(
        self, shards: Iterable[tuple[Path, Sequence[Question]]], spend: Spend
    ) -> Iterator[tuple[int, list[Told]]]:
        """Replies by seed; a shard is asked for when an engine is free."""
        asked = dict[int, list[Request]]()

        def requests() -> Iterator[list[Request]]:
            for position, (_, questions) in enumerate(shards):
                asked[position] = [Request(self._encoder.encode(q.messages), q.seed) for q in questions]
                yield asked[position]

        found = self._pool.generate(
            self._model, requests(), self._sample, n=1, tries=1, accept=lambda text, finished: True
        )
        for position, groups in found:
            replies = [
                Reply(output.text, output.finished, len(request.prompt_token_ids), len(output.token_ids))
                for request, (output,) in zip(asked.pop(position), groups, strict=True)
            ]
            spend(replies)
            yield position, [*replies]


class ApiGenerator:
    """Asks a server; shards one after the other, each of many calls at once.

    Args:
        settings: Which model, and how.
        endpoint: Where it is.
        spent: What servers were used for before; counted on here.
        clean: What a chat's text becomes before it is sent.
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
        """Enough for calls not to wait for one another."""
        return max(prompts, SHARD_CALLS * self._calls)

    def fits(self, messages: Sequence[Message]) -> bool:
        """Guesses its tokens."""
        return sum(len(message["content"]) for message in messages) <= LETTERS_A_TOKEN * self._longest

    def reply(
        self, shards: Iterable[tuple[Path, Sequence[Question]]], spend: Spend
    ) -> Iterator[tuple[int, list[Told]]]:
        """Replies from the journal, or else by asking; raises `StageError` as `ChatClient.ask` does."""
        for position, (path, questions) in enumerate(shards):
            with Journal(path) as journal:
                told = {int(key): _from_json(value) for key, value in journal.answers.items()}
                open_ = [i for i in range(len(questions)) if i not in told]
                chats = [self._chat(questions[i].messages) for i in open_]
                for place, said in self._client.ask(chats, self._decoding, spent=self._spent):
                    if isinstance(said, Reply):
                        spend([said])
                    told[open_[place]] = _answer_alone(said)
                    journal.write(str(open_[place]), _to_json(told[open_[place]]))
            yield position, [told[i] for i in range(len(questions))]

    def check(self, messages: Sequence[Message]) -> None:
        """Asks as the generator will; raises `InputError` if the server does not answer with text."""
        reply = self._client.check(self._chat(messages), self._decoding)
        if not without_thinking(reply.text).strip():
            reasoned = reply.reasoning_chars or reply.text.strip()
            raise InputError(
                f"{self._server} wrote nothing when it was asked for instructions: "
                + (
                    "it reasoned until its tokens were spent: raise"
                    if reasoned
                    else "look at its chat template, or raise"
                )
                + " data.synthetic.max_new_tokens, or have it reason less with endpoint.extra_body"
            )

    def _chat(self, messages: Sequence[Message]) -> list[Message]:
        return [Message(role=m["role"], content=self._clean(m["content"])) for m in messages]


def _answer_alone(said: Told) -> Told:
    """A reply without the thinking that it begins with, where a model tries instructions out."""
    return replace(said, text=without_thinking(said.text)) if isinstance(said, Reply) else said


def _to_json(said: Told) -> dict[str, object]:
    return {name: value for name, value in vars(said).items() if name != "label_logprobs"}


def _from_json(values: dict[str, object]) -> Told:
    return Refused(**values) if "reason" in values else Reply(**values)  # type: ignore[arg-type]
