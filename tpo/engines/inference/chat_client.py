"""A client for models behind OpenAI-compatible servers: many chats at once, with retries of transient errors.

Replies come in any order, each with its chat's index: a `Reply`, or `RefusedChat` if the server won't take that chat.

A failed call is never a reply. Transient errors (429, 5xx, timeouts, broken connections, answers that aren't
completions) are retried by our own rules, with the SDK's retries off; others stop the stage, and so does a limit on
tokens or money. A server that doesn't report its token usage is assumed to use one token per four characters, so that
limits work there, too. The key is read from the environment, and removed from error messages before they are shown,
since servers quote it.
"""

import asyncio
import dataclasses
import ipaddress
import itertools
import math
import os
import random
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, overload
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from tpo.config.base import Endpoint
from tpo.console import say
from tpo.engines.inference.reply import Decoding, Reply
from tpo.engines.inference.request_form import RequestForm, described, remedy
from tpo.errors import InputError, StageError
from tpo.records import Message
from tpo.run_context import run_context

if TYPE_CHECKING:
    import httpx2
    import openai

CHECK_SECONDS = 8.0
"""Timeout of a check, in seconds."""
MAX_FIRST_WAIT = 0.5
"""Maximum wait before the first retry, in seconds; doubled for each further one."""
MAX_WAIT = 60.0
"""Maximum wait before any retry, in seconds."""
MAX_RETRY_AFTER = 600.0
"""Maximum wait, in seconds, that a server may request; a call that would wait longer fails."""
MAX_CHECK_WAIT = 30.0
"""Total time that a check may wait between its attempts, in seconds."""

_NO_KEY = "EMPTY"
_PROBE_LABELS = ("yes", "no")
_PASSING = frozenset({408, 409, 425, 429})
_ONE_CHAT = re.compile(
    r"context.?(length|window|size)|content.?(filter|policy)|(prompt|input|request) (is |are )?too (long|large)", re.I
)
_CUT = frozenset(
    {
        "length",
        "max_tokens",
        "model_length",
        "content_filter",
        "safety",
        "tool_calls",
        "function_call",
        "error",
        "abort",
    }
)
"""Finish reasons of incomplete replies; for complete ones, servers use many different words."""
_UNRESOLVED = re.compile(
    r"name or service not known|nodename nor servname|name resolution|getaddrinfo|No address", re.I
)
MAX_FORMS = 8
"""Maximum number of changes of form for one call."""
Asked = TypeVar("Asked")
Chat: TypeAlias = tuple[Sequence[Message], Decoding]
"""A chat, and how to reply to it."""
Outcome: TypeAlias = "Reply | RefusedChat | Failure"
_Call: TypeAlias = Future[Outcome]
_Submit: TypeAlias = Callable[[Coroutine[Any, Any, Outcome]], _Call]


@dataclass
class Spent:
    """Tokens used so far, including those of earlier starts of a run."""

    tokens_in: int = 0
    """Tokens read."""
    tokens_out: int = 0
    """Tokens written."""

    def add(self, reply: Reply) -> None:
        """Counts a reply."""
        self.tokens_in += reply.input_tokens
        self.tokens_out += reply.output_tokens

    def cost(self, endpoint: Endpoint) -> float:
        """Its cost at the endpoint's prices."""
        return (self.tokens_in * endpoint.input_price + self.tokens_out * endpoint.output_price) / 1e6


@dataclass(frozen=True)
class RefusedChat:
    """A chat that the server rejects permanently while it accepts others: no reply, no verdict."""

    reason: str
    """The server's reason: too long for the model's context, or blocked by a content filter."""


class Alternative(BaseModel):
    """A candidate token at one position of a reply."""

    token: str
    """Its text."""
    logprob: float
    """Its natural log-probability; -9999 represents -inf, which JSON can't hold."""


class Position(Alternative):
    """The token at one position, and the likeliest alternatives, itself included."""

    top_logprobs: list[Alternative] = []
    """The likeliest tokens, up to the number requested."""


class ServerClient(ABC, Generic[Asked]):
    """A client of one model at one endpoint, whatever it is asked.

    Args:
        endpoint: Its address and limits.
        model: Its name there.
        sleep: Waits a number of seconds between attempts.
    """

    def __init__(
        self, endpoint: Endpoint, model: str, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._endpoint = endpoint
        self._model = model
        self._sleep = sleep

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._endpoint.base_url!r}, {self._model!r})"

    def ask_all(
        self, asked: Sequence[Asked], *, spent: Spent | None = None
    ) -> Generator[tuple[int, Reply | RefusedChat], None, None]:
        """Sends all requests; yields each one's index and reply as they arrive, in any order.

        At most `endpoint.concurrency` calls are in flight or waiting to be consumed, so that a slow consumer slows the
        calls down. Closing the generator cancels the calls in flight.

        Args:
            asked: What to ask; each is looked up when its call starts.
            spent: Tokens used before; updated with each reply before it is yielded.

        Raises `StageError` if a call fails permanently or a cap is reached, after yielding the replies to the calls in
        flight, which are paid for: caps are exceeded by at most these. `InputError` if the key is malformed.
        """
        spent = Spent() if spent is None else spent
        under_way: dict[_Call, int] = {}
        done: SimpleQueue[_Call] = SimpleQueue()
        failure: Failure | None = None
        given_up = threading.Event()
        waiting = list(range(len(asked)))[::-1]
        metrics = run_context().metrics
        metrics.expect_replies()
        with self._connection() as (client, submit), metrics.calling() as show_calls:

            def start() -> None:
                while waiting and len(under_way) < self._endpoint.concurrency and not self._cap_reached(spent):
                    index = waiting.pop()
                    seconds = self._endpoint.timeout_seconds
                    call = submit(self._call(client, asked[index], given_up, seconds))
                    under_way[call] = index
                    call.add_done_callback(done.put)
                show_calls(len(under_way), len(waiting))

            start()
            while under_way:
                try:
                    call = done.get(timeout=self._endpoint.timeout_seconds if failure else None)
                except Empty:
                    break
                index, outcome = under_way.pop(call), call.result()
                if isinstance(outcome, Failure):
                    failure = failure or outcome
                    given_up.set()
                    continue
                if isinstance(outcome, Reply):
                    spent.add(outcome)
                if failure is None:
                    start()
                show_calls(len(under_way), len(waiting))
                yield index, outcome
        if failure is not None:
            raise StageError(self._gave_up(failure))
        if waiting:
            raise StageError(
                f"{self._name}: {self._cap_reached(spent)} with {len(waiting)} calls left: all replies so far are "
                "saved; raise that limit of the endpoint and rerun to resume"
            )

    def _check(self, asked: Asked, seconds: float) -> Reply:
        """Makes one call; transient errors are retried for a short time, a failed connection isn't.

        Raises `InputError` if there is no reply.
        """
        with self._connection() as (client, submit):
            outcome = submit(self._call(client, asked, threading.Event(), seconds, checks=True)).result()
        if isinstance(outcome, RefusedChat):
            outcome = Failure(outcome.reason, 400)
        if isinstance(outcome, Failure):
            raise InputError(f"{self._name} did not answer: {outcome.cause}; {self._remedy(outcome)}")
        return outcome

    async def _call(
        self,
        client: "openai.AsyncOpenAI",
        asked: Asked,
        given_up: threading.Event,
        seconds: float,
        *,
        checks: bool = False,
    ) -> Outcome:
        """The reply to one request, with retries; `seconds` is the timeout of each attempt."""
        tries, waited = 1, 0.0
        while True:
            outcome = await self._attempt(client, asked, seconds)
            if not isinstance(outcome, Reply):
                run_context().metrics.failed_reply("refused" if isinstance(outcome, RefusedChat) else outcome.kind)
            if not isinstance(outcome, Failure):
                return outcome
            if not outcome.passing or tries > self._endpoint.retries or given_up.is_set():
                return dataclasses.replace(outcome, tries=tries)
            # Full jitter: calls that were rejected together don't return together.
            jitter = random.uniform(0, min(MAX_WAIT, MAX_FIRST_WAIT * 2.0 ** min(tries - 1, 30)))
            wait = outcome.retry_after + jitter
            if checks and (waited + wait > MAX_CHECK_WAIT or outcome.status is None):
                return dataclasses.replace(outcome, tries=tries)
            await self._sleep(wait)
            tries, waited = tries + 1, waited + wait

    @abstractmethod
    async def _attempt(self, client: "openai.AsyncOpenAI", asked: Asked, seconds: float) -> Outcome:
        """The outcome of one attempt that may take `seconds`."""

    async def _post(
        self, client: "openai.AsyncOpenAI", path: str, body: Mapping[str, Any], seconds: float
    ) -> "httpx2.Response | RefusedChat | Failure":
        """The server's answer to a request at a path below the base URL, or at a whole address."""
        import httpx2
        import openai

        try:
            async with asyncio.timeout(seconds):
                # Not chat.completions.create: constructing its objects costs more than everything else we do for a
                # call.
                return await client.post(path, cast_to=httpx2.Response, body=body)
        except TimeoutError:
            return Failure(f"no answer within {seconds:g} s", passing=True, error="timeout")
        except openai.APIStatusError as error:
            return _failed_with_status(error, client.api_key)
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            text = _scrubbed(f"{type(cause).__name__}: {cause}".removesuffix(": "), client.api_key)
            return Failure(f"the connection failed ({text})", passing=True, error="connection")

    def _unreadable(self, what: str, answer: str, key: str) -> "Failure":
        """The failure of an answer that isn't what was asked for."""
        return Failure(f"the answer is not {what}: {_scrubbed(answer, key)!r}", passing=True, error="no_completion")

    @contextmanager
    def _connection(self) -> Iterator[tuple["openai.AsyncOpenAI", _Submit]]:
        """A client with an event loop in its own thread, closed when the context is left."""
        client = self._client()
        loop = asyncio.new_event_loop()
        calls: set[_Call] = set()

        def run() -> None:
            loop.run_forever()
            loop.close()

        def submit(coroutine: Coroutine[Any, Any, Outcome]) -> _Call:
            call = asyncio.run_coroutine_threadsafe(coroutine, loop)
            calls.add(call)
            call.add_done_callback(calls.discard)
            return call

        thread = threading.Thread(target=run, name="chat client", daemon=True)
        thread.start()
        try:
            yield client, submit
        finally:
            for call in list(calls):
                call.cancel()
            asyncio.run_coroutine_threadsafe(_finish(client), loop)
            if threading.current_thread() is not thread:  # The garbage collector happens to run there.
                thread.join()

    def _client(self) -> "openai.AsyncOpenAI":
        import httpx2
        import openai

        connections = self._endpoint.concurrency
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        try:
            return openai.AsyncOpenAI(
                api_key=self._key() or _NO_KEY,
                base_url=self._endpoint.base_url,
                max_retries=0,
                timeout=None,  # A call has one timeout for everything it does.
                # Proxies from the environment can't reach our own loopback.
                http_client=openai.DefaultAsyncHttpxClient(
                    limits=limits, timeout=None, trust_env=not _is_loopback(self._endpoint.base_url)
                ),
            )
        except httpx2.InvalidURL as error:
            raise InputError(f"endpoint.base_url is {self._endpoint.base_url}, expected an address: {error}") from None

    def _key(self) -> str:
        variable = self._endpoint.key_variable
        key = os.environ.get(variable, "").strip()
        if not re.fullmatch(r"[!-~]*", key):
            raise InputError(
                f"{variable} contains spaces, line breaks or characters that are not ASCII: set it to the key alone"
            )
        return key

    @property
    def _name(self) -> str:
        return f"model {self._model!r} at {self._endpoint.base_url}"

    def _cap_reached(self, spent: Spent) -> str | None:
        """Which limit is reached, and by what."""
        endpoint = self._endpoint
        used = f"{spent.tokens_in} tokens read and {spent.tokens_out} written"
        if endpoint.max_total_tokens is not None and spent.tokens_in + spent.tokens_out >= endpoint.max_total_tokens:
            return f"max_total_tokens = {endpoint.max_total_tokens} is reached ({used})"
        if endpoint.max_cost is not None and spent.cost(endpoint) >= endpoint.max_cost:
            return f"max_cost = {endpoint.max_cost:g} is reached ({used} cost {spent.cost(endpoint):.4g})"
        return None

    def _gave_up(self, failure: "Failure") -> str:
        tries = "1 try" if failure.tries == 1 else f"{failure.tries} tries"
        return (
            f"{self._name} did not answer in {tries}; the last error: {failure.cause}. All replies so far are saved: "
            f"{self._remedy(failure)}, then rerun"
        )

    def _remedy(self, failure: "Failure") -> str:
        variable = self._endpoint.key_variable
        if failure.status in (401, 403):
            what = "set it to a key that this server accepts" if self._key() else "it is not set: set it to the key"
            return f"the key is read from the environment variable {variable}: {what}"
        if failure.status is None and _UNRESOLVED.search(failure.cause):
            return "the host name in endpoint.base_url cannot be resolved: correct it"
        if failure.status is None:
            return "start the server, or correct endpoint.base_url"
        if failure.status == 404:
            return "name a model that is served there, or correct endpoint.base_url (most end in /v1)"
        if failure.status >= 500 and re.search(r"system.{0,20}role|roles must alternate", failure.cause, re.I):
            return remedy(failure.cause)
        if failure.status in _PASSING or failure.status >= 500:
            return "wait until the server has recovered, or lower endpoint.concurrency"
        return remedy(failure.cause)


class ChatClient(ServerClient[Chat]):
    """A client of one model at one endpoint that takes chats.

    Args:
        endpoint: Its address and limits.
        model: Its name there.
        sleep: Waits a number of seconds between attempts.
        check_seconds: Timeout of a short check.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        super().__init__(endpoint, model, sleep=sleep)
        self._check_seconds = check_seconds
        self._forms = run_context().request_forms
        self._form = self._forms.get((endpoint.model_dump_json(), model), RequestForm.of(endpoint))

    def check(self, chat: Sequence[Message] | None = None, decoding: Decoding | None = None) -> Reply:
        """Makes one call, as `ask` would; a short one if no chat is given.

        Transient errors are retried for a short time; a failed connection isn't. Raises `InputError` if there is no
        reply, or one that ignores the labels although the endpoint has `structured_outputs`.
        """
        structured = self._endpoint.structured_outputs
        seconds = self._check_seconds if decoding is None else self._endpoint.timeout_seconds
        decoding = decoding or (Decoding(16, _PROBE_LABELS) if structured else Decoding(1))
        chat = chat or [Message(role="user", content="Hello.")]
        outcome = self._check((chat, decoding), seconds)
        if structured and decoding.labels and outcome.text.strip() not in decoding.labels:
            raise InputError(
                f"{self._name} wrote {outcome.text!r} although structured_outputs allows only {decoding.labels}: serve "
                "it with a vLLM that supports structured_outputs, without a reasoning parser, or set "
                "endpoint.structured_outputs to false"
            )
        return outcome

    def ask(
        self, chats: Sequence[Sequence[Message]], decoding: Decoding, *, spent: Spent | None = None
    ) -> Generator[tuple[int, Reply | RefusedChat], None, None]:
        """Sends all chats, as `ask_all` does.

        Labels of `decoding` whose probabilities are requested must differ in the first character after their common
        prefix.
        """
        return self.ask_all(_Chats(chats, decoding), spent=spent)

    async def _attempt(self, client: "openai.AsyncOpenAI", asked: Chat, seconds: float) -> Outcome:
        _, decoding = asked
        for _ in range(MAX_FORMS):
            form = self._form
            outcome = await self._attempt_as(form, client, asked, seconds)
            if not isinstance(outcome, Failure) or not self._took_another_form(form, outcome, decoding):
                return outcome
            run_context().metrics.failed_reply(outcome.kind)
        return await self._attempt_as(self._form, client, asked, seconds)

    async def _attempt_as(
        self, form: RequestForm, client: "openai.AsyncOpenAI", asked: Chat, seconds: float
    ) -> Outcome:
        chat, decoding = asked
        answer = await self._post(client, "/chat/completions", form.body(self._model, chat, decoding), seconds)
        if isinstance(answer, RefusedChat | Failure):
            return answer
        try:
            return _reply(_Completion.model_validate_json(answer.content), chat, decoding, form.limit(decoding))
        except ValidationError:
            return self._unreadable("a chat completion", answer.text, client.api_key)

    def _took_another_form(self, asked: RequestForm, failure: "Failure", decoding: Decoding) -> bool:
        """Whether there is a form other than `asked` to try after the server's refusal."""
        if failure.status not in (400, 422):
            return False
        if self._form == asked:
            other = asked.after(failure.cause, decoding)
            if other is None:
                return False
            say(f"{self._name} says {failure.cause!r}: retrying with {described(other, asked)}")
            self._forms[self._endpoint.model_dump_json(), self._model] = self._form = other
        return True


class _Chats(Sequence[Chat]):
    """Chats with how to reply to them, each looked up when it is asked for."""

    def __init__(self, chats: Sequence[Sequence[Message]], decoding: Decoding) -> None:
        self._chats, self._decoding = chats, decoding

    def __len__(self) -> int:
        return len(self._chats)

    @overload
    def __getitem__(self, index: int) -> Chat: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Chat]: ...
    def __getitem__(self, index: int | slice) -> Chat | Sequence[Chat]:
        if isinstance(index, slice):
            return _Chats(self._chats[index], self._decoding)
        return self._chats[index], self._decoding


def label_logprobs(positions: Sequence[Position], labels: Sequence[str]) -> tuple[float, ...] | None:
    """Log-probability of each label, from the tokens of a greedy reply that begins with one.

    The deciding token is the first that goes beyond the labels' common prefix: `A` after `[[`, or `[[A`, depending on
    the tokenizer. A label's probability is the sum over the alternatives there that lead to this label only, given the
    tokens before. A label without such an alternative has -inf. If the reply itself doesn't continue with a label, -inf
    would be a guess: the result is None unless every label has a finite value.

    Args:
        positions: The reply's tokens; leading white space is ignored.
        labels: Texts that differ in the first character after their common prefix; `ValueError` otherwise.
    """
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*labels, strict=False))
    shared = "".join(column[0] for column in columns)
    if len({label[len(shared) :][:1] for label in labels} - {""}) < len(labels):
        raise ValueError(f"labels are {labels}, expected labels that differ in the first character after {shared!r}")
    written = ""
    for position in positions:
        longer = (written + position.token).lstrip()
        if shared.startswith(longer):
            written = longer
            continue
        found = tuple(_leading_to(label, position, written, len(shared)) for label in labels)
        decided = any(_leads_to(label, longer, len(shared)) for label in labels)
        return found if decided or -math.inf not in found else None
    return None


@dataclass(frozen=True)
class Failure:
    """Why there is no reply."""

    cause: str
    status: int | None = None
    passing: bool = False
    """Whether it is transient."""
    retry_after: float = 0.0
    """Wait that the server requests, in seconds."""
    tries: int = 1
    error: str = ""
    """Its kind, if there is no status."""

    @property
    def kind(self) -> str:
        """One of `REPLY_ERROR_KINDS`, for the metrics."""
        if self.status is None:
            return self.error
        return "rate_limit" if self.status == 429 else "server" if self.status >= 500 else "client"


class _Part(BaseModel):
    text: str = ""


class _ReplyMessage(BaseModel):
    content: str | list[_Part] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    @property
    def text(self) -> str:
        """The reply's text in one piece; some servers send it in parts."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class _Logprobs(BaseModel):
    content: list[Position] | None = None


class _Choice(BaseModel):
    message: _ReplyMessage
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _PromptDetails(BaseModel):
    cached_tokens: NonNegativeInt | None = None


class _Usage(BaseModel):
    prompt_tokens: NonNegativeInt | None = None
    completion_tokens: NonNegativeInt | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Completion(BaseModel):
    """The parts of a chat completion that we need; the rest differs between servers."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def _reply(completion: _Completion, chat: Sequence[Message], decoding: Decoding, limit: int) -> Reply:
    choice, usage = completion.choices[0], completion.usage or _Usage()
    text, reasoning = choice.message.text, choice.message.reasoning or choice.message.reasoning_content or ""
    positions = (choice.logprobs and choice.logprobs.content) or []
    reason = (choice.finish_reason or "").lower()
    if not reason and (usage.completion_tokens or 0) >= limit:
        reason = "length"
    cut = reason in _CUT
    return Reply(
        text=text,
        finished=not cut,
        input_tokens=usage.prompt_tokens or estimated_tokens(*(message["content"] for message in chat)),
        output_tokens=usage.completion_tokens or estimated_tokens(text, reasoning),
        cached_tokens=(usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens) or 0,
        label_logprobs=label_logprobs(positions, decoding.labels) if decoding.probabilities else None,
        ended_by=reason if cut else "",
        reasoning_chars=len(reasoning),
    )


def _is_loopback(url: str) -> bool:
    """Whether an address is on this machine, which no proxy can reach."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def estimated_tokens(*texts: str) -> int:
    """The tokens of texts for a server that doesn't report its usage: one per four characters."""
    return math.ceil(sum(map(len, texts)) / 4)


def _failed_with_status(error: "openai.APIStatusError", key: str) -> RefusedChat | Failure:
    message = error.body.get("message") if isinstance(error.body, dict) else None
    status, response = error.status_code, error.response
    message_text = _scrubbed(str(message or response.text or response.reason_phrase), key)
    if status == 413 or (status in (400, 422) and _ONE_CHAT.search(f"{error.code} {message_text}")):
        return RefusedChat(message_text)
    passing = status in _PASSING or status >= 500
    wait = _seconds_to_wait(response.headers.get("retry-after", ""))
    if passing and wait > MAX_RETRY_AFTER:
        return Failure(f"{status}: {message_text} (it requests a wait of {wait:.0f} s)", status)
    return Failure(f"{status}: {message_text}", status, passing, wait)


def _seconds_to_wait(retry_after: str) -> float:
    """Seconds requested by a Retry-After header, given as seconds or as a date; 0 if it can't be parsed."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            date = parsedate_to_datetime(retry_after)
        except ValueError:
            return 0.0
        seconds = (date.astimezone(UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if not math.isnan(seconds) else 0.0


def _scrubbed(text: str, key: str) -> str:
    """`text` without the key, shortened for a message."""
    return (text if key == _NO_KEY else text.replace(key, "***"))[:400]


async def _finish(client: "openai.AsyncOpenAI") -> None:
    """Waits for calls that were just cancelled, closes the client and stops this event loop."""
    # The calls end the tasks that anyio has created for them; cancelling those before they start would print warnings.
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
    await client.close()
    asyncio.get_running_loop().stop()


def _leading_to(label: str, position: Position, written: str, shared: int) -> float:
    """Log of the summed probability of the alternatives that lead to `label`."""
    alternatives: list[Alternative] = [*position.top_logprobs]
    if all(alternative.token != position.token for alternative in alternatives):
        alternatives.append(position)
    logprobs = [
        alternative.logprob
        for alternative in alternatives
        if alternative.logprob > -9999 and _leads_to(label, (written + alternative.token).lstrip(), shared)
    ]
    top = max(logprobs, default=-math.inf)
    return top + math.log(sum(math.exp(logprob - top) for logprob in logprobs)) if logprobs else top


def _leads_to(label: str, text: str, shared: int) -> bool:
    """Whether `text` goes beyond the common prefix, of `shared` characters, and is compatible with `label`."""
    return len(text) > shared and (label.startswith(text) or text.startswith(label))
