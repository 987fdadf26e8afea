"""Black boxes over HTTP: many questions at a time, repeated where that helps, within bounds.

Threads send the requests, each on a kept connection of its own; the caller's thread hands out the
answers in the order in which they arrive, so that each can be stored at once. The one layer of
retries is here. Whatever happens to a question is a `Response`; only what would happen to every
other one too, such as a refused key, ends the run.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from random import SystemRandom
from threading import Event, Lock, Thread
from typing import Any

from pydantic import SecretStr

from tsgb.errors import UsageError
from tsgb.services import RepeatRules, asked_wait
from tsgb.targets.dialects import (
    AnswerMeaning,
    key_headers,
    post_url,
    prompt_bytes,
    read_answer,
    request_body,
)
from tsgb.targets.endpoint import EndpointSpec
from tsgb.targets.pacing import AdaptiveLimit, Pace, RepeatBudget
from tsgb.targets.spending import Spending, dollars
from tsgb.targets.transport import KeptConnections, Transport, TransportError
from tsgb.types import Messages, Response

BUDGET = "budget"
"""Error of a question that was not asked because it could pass a limit on the spending."""
_SHORTEST_SECRET = 8
"""Characters of the shortest key that is masked where an endpoint echoes it."""
_POLL_SECONDS = 0.1
"""Seconds between two looks at `check` while no answer comes."""
_JOIN_SECONDS = 3.0
"""Seconds that threads get to end; only one that looks up a name may need more than a few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Clocks and waits of a target; tests have time of their own.

    Example: `Timing()`
    """

    clock: Callable[[], float] = time.monotonic
    """Seconds that never go back."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    """The time of day, for dates in `Retry-After`."""
    wait: Callable[[Event, float], bool] = lambda event, seconds: event.wait(seconds)
    """Waits for an event or for some seconds; returns whether the event came."""
    jitter: Callable[[float, float], float] = SystemRandom().uniform
    """Draws a number between two bounds."""


_TIMING = Timing()


class _StopError(Exception):
    """Nobody waits for the answer any more."""


class _HopelessError(Exception):
    """All other questions would fail likewise."""


class HttpTarget:
    """Asks an endpoint; see `tsgb.protocols.Target`.

    Example: `HttpTarget(parse_endpoint("openai:gpt-4.1"), key, check=signals.check)`
    """

    def __init__(
        self,
        spec: EndpointSpec,
        key: SecretStr | None,
        *,
        check: Callable[[], None] = lambda: None,
        spending: Spending | None = None,
        repeats: RepeatBudget | None = None,
        transport: Transport | None = None,
        timing: Timing = _TIMING,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """Ask nothing yet.

        Args:
            spec: The endpoint.
            key: Its key, from the environment; None for none.
            check: Called at least ten times a second while questions are on their way, in the
                thread that asked; raises to stop.
            spending: Limits that endpoints of a run share; without it there are none.
            repeats: Repeated requests that they share.
            transport: Sends requests; without it kept connections to the endpoint.
            timing: Clocks and waits.
            schema: JSON Schema that answers of an OpenAI-compatible endpoint have to keep to.

        Raises:
            UsageError: The endpoint needs a key and there is none, or it has impossible characters.
        """
        self.name = spec.name
        self.spec = spec
        self._key = _checked_key(spec, key)
        self._check = check
        self._spending = spending or Spending()
        self._repeats = repeats or RepeatBudget(RepeatRules())
        self._transport = transport or KeptConnections(post_url(spec))
        self._timing = timing
        self._schema = schema
        self._requests = Pace(spec.requests_per_minute, timing.clock)
        self._tokens = Pace(spec.tokens_per_minute, timing.clock)
        self.limit = AdaptiveLimit(spec.concurrency, timing.clock)
        """Requests that may be on their way, and how that changed."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that determines its answers, under which they are kept; no secret."""
        found = self.spec.identity
        return found if self._schema is None else {**found, "schema": self._schema}

    def answer(self, chats: Sequence[Messages]) -> list[Response]:
        """See `tsgb.protocols.Target`.

        Raises:
            UsageError: The endpoint refuses the key, or the account has no money.
        """
        found = dict(self.answer_each(chats))
        return [found[index] for index in range(len(chats))]

    def answer_each(self, chats: Sequence[Messages]) -> Generator[tuple[int, Response]]:
        """Yield (index of the chat, response) in order of arrival.

        Closing it, or an error of `check`, ends the requests that are on their way and their
        threads within a second or so; what was yielded before is complete.

        Raises:
            UsageError: The endpoint refuses the key, or the account has no money. Answers that were
                on their way are yielded before.
        """
        if not chats:
            return
        asking = _Questions(self._ask, chats)
        try:
            asking.start(min(self.spec.concurrency, len(chats)))
            yield from asking.arriving(self._check)
        finally:
            asking.end(self._transport.interrupt)

    def close(self) -> None:
        """End all connections; it can be used again."""
        self._transport.close()

    # -- one question, in a thread -------------------------------------------------------------

    def _ask(self, chat: Messages, stop: Event) -> Response:
        [size] = prompt_bytes([chat])
        most = dollars(self.spec, size, self.spec.max_tokens)
        body = request_body(self.spec, chat, self._schema)
        request_id = secrets.token_hex(12)
        unknown, wait = 0, 0.0
        for attempt in range(1, self.spec.most_attempts + 1):
            if wait and self._timing.wait(stop, wait):
                raise _StopError
            sent = self._send(body, size, most, f"{request_id}-{attempt}", stop)
            if sent is None:
                return Response(
                    text="",
                    finish_reason="error",
                    error=BUDGET,
                    attempts=attempt - 1,
                    billed_unknown=unknown,
                    detail="not sent: it could pass the limit on the spending",
                )
            if attempt == 1:
                self._repeats.count_question()
            unknown += sent.billed_unknown
            again = self._again(sent, attempt)
            if again is None:
                return self._response(sent, attempt, unknown)
            wait = again
        raise AssertionError  # the last attempt is never repeated

    def _send(
        self, body: bytes, size: int, most: float, request_id: str, stop: Event
    ) -> _Sent | None:
        """Send one request when it is its turn; None if that could pass a limit."""
        if not self.limit.enter(stop.is_set):
            raise _StopError
        try:
            tokens = size / 4 + self.spec.max_tokens
            delay = max(self._requests.delay(), self._tokens.delay(tokens))
            if delay > 0 and self._timing.wait(stop, delay):
                raise _StopError
            if not self._spending.reserve(most):
                return None
            return self._exchange(body, most, request_id)
        finally:
            self.limit.leave()

    def _exchange(self, body: bytes, most: float, request_id: str) -> _Sent:
        headers = {**key_headers(self.spec, self._key), "X-Client-Request-Id": request_id}
        start = self._timing.clock()
        try:
            answer = self._transport.post(body, headers, self.spec.timeout_seconds)
        except TransportError as error:
            reading = AnswerMeaning(
                finish_reason="error", error=error.error, detail=str(error), retry=error.retry
            )
            if not error.sent:
                self._spending.settle(most, 0.0)
            seconds = self._timing.clock() - start
            return _Sent(reading, None, None, seconds, billed_unknown=int(error.sent))
        reading = read_answer(self.spec.kind, answer)
        seconds = self._timing.clock() - start
        if not reading.billed:
            self._spending.settle(most, 0.0)
        elif reading.tokens_in is not None and reading.tokens_out is not None:
            actual = dollars(self.spec, reading.tokens_in, reading.tokens_out)
            self._spending.settle(most, actual)
        asked = asked_wait(answer.headers, self._timing.now())
        asked = reading.wait_seconds if asked is None else asked
        if reading.slower:
            self.limit.lower(start)
            if asked is not None:
                self.limit.close(min(asked, self._repeats.rules.longest_wait_seconds))
        elif reading.error is None:
            self.limit.raise_slowly()
        return _Sent(reading, answer.status, asked, seconds)

    def _again(self, sent: _Sent, attempt: int) -> float | None:
        """Return the seconds after which the request is repeated; None if it is not.

        Raises:
            _HopelessError: No request to this endpoint can succeed.
        """
        reading, rules = sent.reading, self._repeats.rules
        if reading.hopeless:
            raise _HopelessError(self._hopeless(reading, sent.status))
        if not reading.retry or attempt >= self.spec.most_attempts:
            return None
        if sent.asked is not None and sent.asked > rules.longest_wait_seconds:
            return None
        if not self._repeats.take():
            return None
        return rules.pause_seconds(attempt, sent.asked, self._timing.jitter)

    def _hopeless(self, reading: AnswerMeaning, status: int | None) -> str:
        about = f"endpoint {self.name!r} at {self.spec.host}"
        kept = "all answers so far are kept"
        if reading.error == "quota":
            return f"{about} says that the account has no money left (HTTP {status}); {kept}"
        if self._key is None:
            variable = self.spec.key_name
            way_out = f"set {variable}" if variable else "name its variable in key_variable"
            return f"{about} asks for a key and was sent none (HTTP {status}): {way_out}; {kept}"
        return (
            f"{about} refuses the key of {self.spec.key_name} (HTTP {status}): set another one; "
            f"{kept}"
        )

    def _response(self, sent: _Sent, attempts: int, unknown: int) -> Response:
        reading = sent.reading
        detail = reading.detail
        too_long = self._repeats.rules.longest_wait_seconds
        if reading.retry and sent.asked is not None and sent.asked > too_long:
            detail = f"asks to wait {sent.asked:.0f} s, longer than {too_long:g} s; {detail}"
        return Response(
            text=self._masked(reading.text),
            finish_reason=reading.finish_reason,
            refusal=reading.refusal,
            error=reading.error,
            thought=reading.thought,
            attempts=attempts,
            latency_seconds=sent.seconds,
            detail=self._masked(detail).rstrip("; "),
            status=sent.status,
            tokens_in=reading.tokens_in,
            tokens_out=reading.tokens_out,
            billed_unknown=unknown,
        )

    def _masked(self, text: str) -> str:
        """Return foreign text without the key, should an endpoint echo it."""
        value = "" if self._key is None else self._key.get_secret_value()
        # A placeholder such as "x", as local servers want one, is no secret and is in any text.
        return text if len(value) < _SHORTEST_SECRET else text.replace(value, "***")


@dataclass(frozen=True, slots=True)
class _Sent:
    """One request that was sent, and what came of it."""

    reading: AnswerMeaning
    """Meaning of the answer, or the error of the transport."""
    status: int | None
    """HTTP status; None without an answer."""
    asked: float | None
    """Seconds that the endpoint asks to wait."""
    seconds: float
    """Seconds that it took."""
    billed_unknown: int = 0
    """1 if it may have been billed although no answer came."""


class _Questions:
    """The threads of one call of `answer_each`."""

    def __init__(
        self, ask: Callable[[Messages, Event], Response], chats: Sequence[Messages]
    ) -> None:
        self._ask = ask
        self._chats = chats
        self._next = 0
        self._lock = Lock()
        self._done: SimpleQueue[tuple[int, Response] | Exception] = SimpleQueue()
        self._stop = Event()
        self._threads: list[Thread] = []
        # Places for questions: a queue, because Control-C may come while the main thread adds one.
        self._places: SimpleQueue[None] = SimpleQueue()

    def start(self, num: int) -> None:
        for _ in range(num):
            self._places.put(None)
            # A daemon, because looking up a host's name cannot be interrupted.
            thread = Thread(target=self._work, name="tsgb-endpoint", daemon=True)
            self._threads.append(thread)
            thread.start()

    def arriving(self, check: Callable[[], None]) -> Generator[tuple[int, Response]]:
        """Yield what the threads find, until all is found or nothing more can be."""
        waited, failure = len(self._chats), None
        while waited and (failure is None or self._is_busy()):
            check()
            try:
                found = self._done.get(timeout=_POLL_SECONDS)
            except Empty:
                continue
            if isinstance(found, Exception):
                failure = failure or found
                self._stop.set()  # what is on its way arrives, and nothing is begun
                continue
            waited -= 1
            yield found
            # Only now may another one be asked: what is not handed over would be lost by a kill.
            self._places.put(None)
        if isinstance(failure, _HopelessError):
            raise UsageError(str(failure)) from None
        if failure is not None:
            raise failure

    def end(self, interrupt: Callable[[], None]) -> None:
        """Stop all threads; interrupted again and again, since one may just be connecting."""
        self._stop.set()
        give_up_at = time.monotonic() + _JOIN_SECONDS
        while any(thread.is_alive() for thread in self._threads):
            interrupt()
            for thread in self._threads:
                thread.join(0.01)
            if time.monotonic() > give_up_at:
                return

    def _is_busy(self) -> bool:
        return any(thread.is_alive() for thread in self._threads) or not self._done.empty()

    def _work(self) -> None:
        while (index := self._take()) is not None:
            try:
                response = self._ask(self._chats[index], self._stop)
            except _StopError:
                return
            except Exception as error:  # noqa: BLE001 - raised again in the thread that asked
                self._done.put(error)
                return
            self._done.put((index, response))

    def _take(self) -> int | None:
        while not self._stop.is_set():
            with suppress(Empty):
                self._places.get(timeout=_POLL_SECONDS)
                break
        with self._lock:
            if self._stop.is_set() or self._next >= len(self._chats):
                return None
            self._next += 1
            return self._next - 1


def _checked_key(spec: EndpointSpec, key: SecretStr | None) -> SecretStr | None:
    """Return the key without space around it, if one is sent."""
    name = spec.key_name
    value = key.get_secret_value().strip() if key is not None and name is not None else ""
    if not value:
        if spec.needs_key:
            raise UsageError(f"endpoint {spec.name!r} at {spec.host} needs a key: set {name}")
        return None
    if not all("!" <= character <= "~" for character in value):
        raise UsageError(f"{name} has a character that no key has: copy it again")
    return SecretStr(value)
