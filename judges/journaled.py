"""Asks a model many questions: each once, replies journaled as they come, tokens counted, and stopped if it gives
hardly any readable reply."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from judges.base import Spend
from judges.unreadable import FirstAnswers
from tpo.engines.inference.chat_client import RefusedChat
from tpo.engines.inference.reply import Reply, TokenCount
from tpo.errors import StageError
from tpo.run_context import run_context
from tpo.storage.journal import Journal

Question = TypeVar("Question")
Asked_contra = TypeVar("Asked_contra", contravariant=True)


class Asker(Protocol[Asked_contra]):
    """Asks an engine or a server."""

    def ask(self, questions: Sequence[Asked_contra]) -> Iterator[tuple[int, Reply | RefusedChat]]:
        """The reply to each question, by its position, as they come."""
        ...


def ask_once(
    asker: Asker[Question],
    questions: Mapping[str, Question],
    first: FirstAnswers,
    journal: Journal | None,
    spend: Spend,
) -> Iterator[tuple[str, Reply | RefusedChat]]:
    """The reply to each question by its key, in any order: those of the journal, then those of the model.

    Raises `StageError` after the first replies if hardly any of them can be read; the journal then forgets those.
    """
    known = journal.answers if journal else {}
    yield from ((key, from_json(known[key])) for key in questions if key in known)
    keys, unread = [key for key in questions if key not in known], list[str]()
    for i, reply in asker.ask([questions[key] for key in keys]):
        if isinstance(reply, Reply):
            spend(TokenCount(reply.input_tokens, reply.output_tokens))
        if journal:
            journal.write(keys[i], to_json(reply))
        if not first.see(reply):
            unread.append(keys[i])
            if isinstance(reply, Reply):  # A server's refusals are counted by its client.
                run_context().metrics.failed_reply("unreadable")
        try:
            first.check()
        except StageError:
            # The remedy may be a setting that doesn't change the stage's identity: they would be read again.
            if journal:
                journal.forget(unread)
            raise
        yield keys[i], reply


def to_json(reply: Reply | RefusedChat) -> dict[str, Any]:
    """The reply in a form that JSON can hold: a log-probability of -inf becomes null."""
    values = dict(vars(reply))
    if values.get("label_logprobs") is not None:
        values["label_logprobs"] = [None if value == -math.inf else value for value in values["label_logprobs"]]
    return values


def from_json(values: Mapping[str, Any]) -> Reply | RefusedChat:
    """The reply that `to_json` was given."""
    if "reason" in values:
        return RefusedChat(**values)
    logprobs = values["label_logprobs"]
    if logprobs is not None:
        logprobs = tuple(-math.inf if value is None else value for value in logprobs)
    return Reply(**{**values, "label_logprobs": logprobs})
