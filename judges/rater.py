"""A language model that rates instructions: which category each belongs to, and how complex it is.

It runs where judges that are models run, in our engines or behind a server, decodes greedily, and is journaled as they
are. A reply that can't be read, or a call that was refused, leaves a rating unknown. A rater of which hardly any reply
can be read costs as much as a good one, so it is stopped after the first ones, with the most common cause.
"""

import json
import re
from collections.abc import Iterator, Sequence

from judges.base import Spend, uncounted
from judges.chat_askers import EngineChatAsker
from judges.journaled import Asker, ask_once, to_json
from judges.unreadable import TOO_LONG, Cause, FirstAnswers
from prompts.quoting import turns_without_control_tokens, without_control_tokens
from prompts.rating import BEGINNINGS, RatingPrompt, ReadRating, Unread, load_rating_prompt
from tpo.config.base import Endpoint
from tpo.config.fine_grained import FineGrainedConfig
from tpo.config.resources import ClusterConfig, JudgeEngineConfig
from tpo.engines.inference.chat_client import ChatClient, RefusedChat, Spent
from tpo.engines.inference.reply import Decoding, Reply, TokenCount
from tpo.errors import InputError
from tpo.records import Message, Prompt, Rating
from tpo.run_context import run_context
from tpo.storage.journal import Journal

PLAIN = Prompt("plain", "Write a poem of four lines about the sea.")
"""An instruction that any rater can rate."""


class ServerRatingAsker:
    """Uses an OpenAI-compatible server."""

    def __init__(self, config: FineGrainedConfig, endpoint: Endpoint, prompt: RatingPrompt, spent: TokenCount) -> None:
        self._config, self._prompt = config, prompt
        self._client = ChatClient(endpoint, config.model or "")
        self._decoding = Decoding(config.max_new_tokens)
        self._spent = Spent(spent.input_tokens, spent.output_tokens)

    def ask(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply | RefusedChat]]:
        """The replies as the server sends them."""
        return self._client.ask(list(map(self._chat, prompts)), self._decoding, spent=self._spent)

    def check(self) -> Iterator[str]:
        """Asks for one rating as the rater will ask; yields a line if it can't be read.

        Raises `InputError` if the server doesn't answer, or answers without text.
        """
        reply = self._client.check(self._chat(PLAIN), self._decoding)
        if (cause := _cause_of(reply, _read(reply, self._prompt))) is None:
            return
        message = f"{self._config.server}: its rating of a plain instruction {cause.what}: {cause.remedy}"
        if not reply.text.strip():
            raise InputError(message)
        yield message

    def _chat(self, prompt: Prompt) -> list[Message]:
        earlier = turns_without_control_tokens(prompt.earlier)
        return self._prompt.render(without_control_tokens(prompt.instruction), earlier)


class Rater:
    """Rates instructions."""

    def __init__(self, config: FineGrainedConfig, asker: Asker[Prompt]) -> None:
        self._asker = asker
        self._prompt = load_rating_prompt(config)
        self._first = FirstAnswers(
            lambda reply: _cause_of(reply, _read(reply, self._prompt)), f"the rater {config.model!r}", "rating"
        )

    def rate(self, prompts: Sequence[Prompt], journal: Journal | None = None, spend: Spend = uncounted) -> list[Rating]:
        """The rating of each instruction, in order.

        Replies in `journal` are reused, and new ones are written there as they arrive. Raises `StageError` after the
        first replies if hardly any of them can be read; the journal then forgets those.
        """
        run_context().metrics.expect_replies()
        by_id = {each.prompt_id: each for each in prompts}
        replies = dict(ask_once(self._asker, by_id, self._first, journal, spend))
        return [self._rating(each.prompt_id, replies[each.prompt_id]) for each in prompts]

    def _rating(self, prompt_id: str, reply: Reply | RefusedChat) -> Rating:
        text = json.dumps(to_json(reply), ensure_ascii=False)
        found = _read(reply, self._prompt)
        if found is None:
            assert isinstance(reply, RefusedChat)
            why = TOO_LONG if reply.reason == TOO_LONG else "refused"
            return Rating(prompt_id, None, why, None, why, text)
        category = None if isinstance(found.category, Unread) else found.category
        complexity = None if isinstance(found.complexity, Unread) else found.complexity
        return Rating(
            prompt_id,
            category,
            None if category is not None else str(found.category),
            complexity,
            None if complexity is not None else str(found.complexity),
            text,
        )


def build_rater(
    config: FineGrainedConfig, engine: JudgeEngineConfig, cluster: ClusterConfig, spent: TokenCount
) -> Rater:
    """The rater for a config that has one; its engines start with its first call.

    `spent` is what rating has used so far, which an endpoint's limits count.
    """
    prompt = load_rating_prompt(config)
    if config.endpoint is not None:
        return Rater(config, ServerRatingAsker(config, config.endpoint, prompt, spent))
    assert config.folder is not None
    asker = EngineChatAsker[Prompt](
        config.folder,
        config.max_tokens,
        lambda context: Decoding(min(config.max_new_tokens, context // 2)),
        lambda each: prompt.render(each.instruction, each.earlier),
        engine,
        cluster,
    )
    return Rater(config, asker)


def _cause_of(reply: Reply | RefusedChat, found: ReadRating | None) -> Cause | None:
    """Why a reply says neither a category nor a complexity; None if it says one of them."""
    if isinstance(reply, RefusedChat):
        return Cause(f"was refused by the server ({re.sub(r'[0-9]+', 'N', reply.reason)[:200]})", _REFUSED)
    assert found is not None
    if not (isinstance(found.category, Unread) and isinstance(found.complexity, Unread)):
        return None
    match found.category:
        case Unread.CUT_BY_LENGTH:
            return Cause("was cut by length before its end", _LONGER)
        case Unread.EMPTY:
            return Cause("was empty or reasoning alone", _LONGER)
        case Unread.NO_LABEL:
            return Cause(f"had no label, {BEGINNINGS[0]} … ]]", _FOLLOWS)
        case Unread.SEVERAL:
            return Cause("had labels that contradict each other", _FOLLOWS)
    return Cause("named a category that isn't in evaluation.fine_grained.categories", _FOLLOWS)


def _read(reply: Reply | RefusedChat, prompt: RatingPrompt) -> ReadRating | None:
    return None if isinstance(reply, RefusedChat) else prompt.read(reply.text, finished=reply.finished)


_LONGER = (
    "raise evaluation.fine_grained.max_new_tokens, or have it reason less (with a server, endpoint.extra_body = "
    '{ reasoning_effort = "low" } or { chat_template_kwargs = { enable_thinking = false } })'
)
_FOLLOWS = "take a rater that follows the rating prompt, or say the form again in evaluation.fine_grained.user_template"
_REFUSED = "take a rater with a longer context or without such a filter"
