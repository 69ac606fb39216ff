"""Sources of verdicts: our own engines, or a server.

Replies come in any order. Engines get comparisons sorted by prefix: the shared part (the question, the first answer)
comes first, and comparisons that share it follow one another, so that the engine's prefix cache computes it once.

A comparison's tokens are joined from pieces that are encoded once per response: encoding every comparison as a whole
takes longer than everything else we do. A tokenizer may merge letters across a seam, so one comparison of each group is
also encoded as a whole, and if the two differ, the whole group is.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from judges.unreadable import TOO_LONG, cause_of
from prompts.quoting import turns_without_control_tokens, without_control_tokens
from prompts.verdict import LABELS, VerdictPrompt
from tpo.config.base import Endpoint
from tpo.config.judges import PairwiseJudge
from tpo.config.resources import ClusterConfig, JudgeEngineConfig
from tpo.engines.engines import engines_of_run
from tpo.engines.inference.chat_client import ChatClient, RefusedChat, Spent
from tpo.engines.inference.reply import Decoding, Reply, TokenCount
from tpo.errors import InputError
from tpo.models.chat import ChatEncoder, Piece
from tpo.models.folder import check_model_folder
from tpo.records import Message, read_turns
from tpo.storage.store import folder_artifact

SHARD_COMPARISONS = 512
"""Approximate number of comparisons handed to an engine at a time; more if a group has more."""
PUBLISHED_NEW_TOKENS = 2048
"""Maximum length of the Self-Taught Evaluator's judgments, in tokens."""
TEXTS_HELD = 4096
"""Number of texts whose tokens are cached, for each slot of a comparison."""
LABEL_TOKENS = 8
"""Tokens for a verdict alone."""


@dataclass(frozen=True)
class ResponsePair:
    """Two responses to one instruction."""

    instruction: str
    """The user's request."""
    first: str
    """The response shown first."""
    second: str
    """The response shown second."""
    history: str | None = None
    """The turns before the instruction, as `Prompt.history`."""

    @property
    def question(self) -> "Question":
        """What both respond to."""
        return self.instruction, self.history

    @property
    def texts(self) -> tuple[str, str, str]:
        """Instruction and responses, in this order."""
        return self.instruction, self.first, self.second


Question: TypeAlias = tuple[str, str | None]
"""An instruction, and the turns before it as `Prompt.history`."""
PLAIN = ResponsePair("What is 12 + 30?", "12 + 30 is 42.", "12 + 30 is 43.")
"""A comparison that any judge can decide."""


class EngineAsker:
    """Uses our own vLLM engines."""

    def __init__(
        self, config: PairwiseJudge, prompt: VerdictPrompt, engine: JudgeEngineConfig, cluster: ClusterConfig
    ) -> None:
        assert config.folder is not None
        self._model = folder_artifact(config.folder)
        self._context = min(config.max_tokens, check_model_folder(config.folder))
        self._decoding = decoding_of(config, self._context)
        self._engines = engine.count
        self._pool = engines_of_run().sampler_pool(engine, cluster, self._context, cpus=0)
        self._encoder = ComparisonEncoder(prompt, ChatEncoder(config.folder))

    def ask(self, comparisons: Sequence[ResponsePair]) -> Iterator[tuple[int, Reply | RefusedChat]]:
        """The replies shard by shard; comparisons of one instruction stay on one engine, too long ones are refused."""
        prompts = self._encoder.encode(comparisons)
        longest = self._context - self._decoding.max_new_tokens
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) <= longest]
        yield from ((i, RefusedChat(TOO_LONG)) for i in sorted(set(range(len(prompts))) - set(fitting)))
        shards = shards_of(comparisons, fitting, self._engines)
        tokens = [[prompts[i] for i in shard] for shard in shards]
        labels = self._encoder.labels if self._decoding.labels else []
        for shard, replies in self._pool.reply(self._model, tokens, self._decoding, labels):
            yield from zip(shards[shard], replies, strict=True)


class ServerAsker:
    """Uses an OpenAI-compatible server."""

    def __init__(self, config: PairwiseJudge, endpoint: Endpoint, prompt: VerdictPrompt, spent: TokenCount) -> None:
        self._config = config
        self._client = ChatClient(endpoint, config.model)
        self._decoding = decoding_of(config, config.max_tokens)
        self._prompt = prompt
        self._spent = Spent(spent.input_tokens, spent.output_tokens)

    def ask(self, comparisons: Sequence[ResponsePair]) -> Iterator[tuple[int, Reply | RefusedChat]]:
        """The replies as the server sends them."""
        return self._client.ask(list(map(self._chat, comparisons)), self._decoding, spent=self._spent)

    def check(self) -> Iterator[str]:
        """Asks for one verdict as the judge will ask; yields a line if it can't be read.

        Raises `InputError` if the server doesn't answer, or its answer shows a fault that all comparisons would have.
        """
        reply = self._client.check(self._chat(PLAIN), self._decoding)
        cause = cause_of(reply, self._config)
        if cause is None:
            return
        message = f"{self._config.server}: its reply to a plain comparison {cause.what}: {cause.remedy}"
        without_logprobs = self._config.mode == "probability" and reply.text.lstrip().startswith(LABELS)
        if not reply.text.strip() or without_logprobs:
            raise InputError(message)
        yield message

    def _chat(self, asked: ResponsePair) -> list[Message]:
        earlier = turns_without_control_tokens(read_turns(asked.history))
        instruction, first, second = map(without_control_tokens, asked.texts)
        return self._prompt.render(instruction, first, second, earlier)


class ComparisonEncoder:
    """Token ids of comparisons, from pieces that are encoded once."""

    def __init__(self, prompt: VerdictPrompt, encoder: ChatEncoder) -> None:
        self._prompt = prompt
        self._encoder = encoder
        self.labels = [encoder.ids(label, as_text=True) for label in LABELS]
        system, *user = prompt.prose()
        before, between, after = encoder.structure(("system", "user"))
        self._before = [Piece(before, True), Piece(system), Piece(between, True), Piece(user[0])]
        self._between, self._middle, self._end = Piece(user[1]), Piece(user[2]), [Piece(user[3]), Piece(after, True)]
        if not encoder.keeps_outer_space:
            self._end[0] = Piece(user[3].rstrip())
        # A tournament in rounds returns to the same texts repeatedly.
        held = lru_cache(maxsize=TEXTS_HELD)
        self._head = held(self._encode_head)
        self._first, self._second = held(self._encode_first), held(self._encode_second)
        self._seams: dict[Question, bool] = {}

    def encode(self, comparisons: Sequence[ResponsePair]) -> list[list[int]]:
        """Token ids of each comparison, with the generation prompt at its end."""
        encoded: list[list[int]] = []
        for _, group in itertools.groupby(comparisons, key=lambda asked: asked.question):
            asked = list(group)
            encode = self._joined if self._seams_hold(asked[0]) else self._whole
            encoded += map(encode, asked)
        return encoded

    def _seams_hold(self, asked: ResponsePair) -> bool:
        """Whether the pieces of a comparison are the tokens of the whole; looked at once a question, for all of it."""
        if asked.question not in self._seams:
            if len(self._seams) >= TEXTS_HELD:
                self._seams.clear()
            self._seams[asked.question] = self._joined(asked) == self._whole(asked)
        return self._seams[asked.question]

    def _joined(self, asked: ResponsePair) -> list[int]:
        in_chat = asked.history is not None
        first, second = self._first(asked.first, in_chat), self._second(asked.second, in_chat)
        return [*self._head(asked.question), *first, *second]

    def _encode_head(self, question: Question) -> list[int]:
        instruction, history = question
        shown = self._prompt.shown(instruction, read_turns(history))
        return self._encoder.encode_pieces([*self._before, Piece(shown), self._between])

    def _encode_first(self, text: str, in_chat: bool) -> list[int]:
        return self._encoder.encode_pieces([Piece(self._prompt.defused(text, in_chat=in_chat)), self._middle])

    def _encode_second(self, text: str, in_chat: bool) -> list[int]:
        return self._encoder.encode_pieces([Piece(self._prompt.defused(text, in_chat=in_chat)), *self._end])

    def _whole(self, asked: ResponsePair) -> list[int]:
        return self._encoder.encode(
            self._prompt.render(asked.instruction, asked.first, asked.second, read_turns(asked.history))
        )


def decoding_of(config: PairwiseJudge, context: int) -> Decoding:
    """Decoding settings of the config's mode."""
    if config.mode == "cot":
        return Decoding(config.max_new_tokens or min(PUBLISHED_NEW_TOKENS, context // 4))
    return Decoding(config.max_new_tokens or LABEL_TOKENS, LABELS, probabilities=config.mode == "probability")


def shards_of(comparisons: Sequence[ResponsePair], positions: Sequence[int], engines: int = 1) -> list[list[int]]:
    """Divides the positions of comparisons into shards of similar size, without splitting an instruction's comparisons.

    The number of shards keeps all `engines` equally busy, with none much larger than `SHARD_COMPARISONS`.
    """
    groups = [list(group) for _, group in itertools.groupby(positions, key=lambda i: comparisons[i].question)]
    count = min(len(groups), engines * -(-len(positions) // (engines * SHARD_COMPARISONS)))
    shards: list[list[int]] = [[] for _ in range(count)]
    placed = 0
    for group in groups:
        # The shard that would hold the group's middle if all were cut evenly.
        shards[(2 * placed + len(group)) * count // (2 * len(positions))] += group
        placed += len(group)
    return [shard for shard in shards if shard]
