"""Questions as chats to a model in our own engines: each is rendered and encoded as a whole.

Questions come grouped by what they have in common, and a shard keeps their order, so the engine's prefix cache computes
the common part about once.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from judges.unreadable import TOO_LONG
from tpo.config.data import SampleConfig
from tpo.config.resources import ClusterConfig, JudgeEngineConfig
from tpo.engines.engines import engines_of_run
from tpo.engines.inference.chat_client import RefusedChat
from tpo.engines.inference.reply import Decoding, Reply
from tpo.engines.inference.sampler import Output, Request, request_seed
from tpo.models.chat import ChatEncoder
from tpo.models.folder import check_model_folder
from tpo.records import Message
from tpo.storage.store import folder_artifact

Question = TypeVar("Question")
SHARD_CHATS = 256
"""Number of chats handed to an engine at a time."""


class EngineChatAsker(Generic[Question]):
    """Asks a model in our own vLLM engines.

    Args:
        folder: The model.
        max_tokens: Maximum length of a chat with its reply; the model's context if that is less.
        decoding: How to reply, given the context in tokens. With a temperature, every reply has its own seed.
        render: A question as a chat.
        engine: The engines' devices and dtype.
        cluster: The Ray cluster.
        seed_of: What a sampled reply's seed is made of.
    """

    def __init__(
        self,
        folder: Path,
        max_tokens: int,
        decoding: Callable[[int], Decoding],
        render: Callable[[Question], list[Message]],
        engine: JudgeEngineConfig,
        cluster: ClusterConfig,
        seed_of: Callable[[Question], str] = repr,
    ) -> None:
        self._model = folder_artifact(folder)
        self._context = min(max_tokens, check_model_folder(folder))
        self._decoding = decoding(self._context)
        self._pool = engines_of_run().sampler_pool(engine, cluster, self._context, cpus=0)
        self._engines = engine.count
        self._encoder, self._render, self._seed_of = ChatEncoder(folder), render, seed_of

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply | RefusedChat]]:
        """The replies shard by shard; questions that are too long are refused."""
        tokens = [self._encoder.encode(self._render(each)) for each in questions]
        longest = self._context - self._decoding.max_new_tokens
        fitting = [i for i, ids in enumerate(tokens) if len(ids) <= longest]
        yield from ((i, RefusedChat(TOO_LONG)) for i in sorted(set(range(len(questions))) - set(fitting)))
        size = max(1, min(SHARD_CHATS, -(-len(fitting) // self._engines)))
        shards = [fitting[start : start + size] for start in range(0, len(fitting), size)]
        chats = [[tokens[i] for i in shard] for shard in shards]
        if self._decoding.temperature > 0:
            yield from self._sample(questions, shards, chats)
            return
        labels = [self._encoder.ids(label, as_text=True) for label in self._decoding.labels]
        for shard, replies in self._pool.reply(self._model, chats, self._decoding, labels):
            yield from zip(shards[shard], replies, strict=True)

    def _sample(
        self, questions: Sequence[Question], shards: Sequence[Sequence[int]], chats: Sequence[Sequence[list[int]]]
    ) -> Iterator[tuple[int, Reply]]:
        requests = [
            [Request(ids, request_seed(self._seed_of(questions[i]))) for i, ids in zip(shard, tokens, strict=True)]
            for shard, tokens in zip(shards, chats, strict=True)
        ]
        decoding = self._decoding
        sample = SampleConfig(
            temperature=decoding.temperature, top_p=decoding.top_p, max_new_tokens=decoding.max_new_tokens
        )
        for shard, outputs in self._pool.generate(self._model, requests, sample, n=1, tries=1, accept=accept_any):
            for i, request, (output,) in zip(shards[shard], requests[shard], outputs, strict=True):
                yield i, Reply(output.text, output.finished, len(request.prompt_token_ids), len(output.token_ids))


def accept_any(_: Output, __: Callable[[Sequence[int]], str]) -> bool:
    """Accepts every output."""
    return True
