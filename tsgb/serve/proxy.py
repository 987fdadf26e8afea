"""`/v1/chat/completions` with the guard in front of one model service, and behind it.

In the mode `enforce` nothing reaches the service before its messages were judged, and nothing of
an answer leaves before it was; `shadow` judges beside and changes nothing; `off` judges nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple, cast

import httpx
from starlette.responses import JSONResponse, Response

from tsgb.checkpoint.documents import parse_json_object
from tsgb.serve.batching import JudgingError, TextVerdict
from tsgb.serve.faults import RequestFault, invalid, unsupported
from tsgb.serve.holdback import Holdback
from tsgb.serve.messages import (
    Passed,
    list_in,
    object_in,
    texts_of_message,
    texts_of_messages,
    texts_within,
)
from tsgb.serve.metrics import ServiceMetrics
from tsgb.serve.sse import DONE, StreamError, event, read_events
from tsgb.serve.streaming import PiecewiseResponse
from tsgb.serve.upstream import Upstream, UpstreamAnswer, upstream_failed

REFUSAL = "I cannot help with this."
"""Text of a refusal in place of an answer."""
PAUSE_SECONDS = 0.5
"""Seconds after a check in which little text waits for more, so that slow streams go on."""
_NOT_JUDGED = frozenset(
    {
        *("messages", "model", "stream", "stream_options", "n", "seed", "stop", "user", "store"),
        *("temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
        *("logprobs", "top_logprobs", "modalities", "service_tier", "metadata", "verbosity"),
        *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
        *("response_format", "reasoning_effort", "prompt_cache_key", "safety_identifier"),
    }
)
"""Fields of a chat that hold no text for the model, or the application's own: tools and forms of
answers. What else a service may know, such as documents or a template, is judged text by text."""
_MOST_CHOICES = 128
"""Answers that one request may ask for."""
_STREAM_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class ProxyMode(StrEnum):
    """Effects of a verdict on a chat."""

    ENFORCE = "enforce"
    SHADOW = "shadow"
    OFF = "off"


class BlockStyle(StrEnum):
    """How a block looks to a client."""

    REFUSAL = "refusal"
    ERROR = "error"


class FaultClass(StrEnum):
    """Reasons for which a check gave no verdict."""

    GUARD_TIMEOUT = "guard_timeout"
    GUARD_ERROR = "guard_error"
    OVERLOAD = "overload"
    UNSUPPORTED_CONTENT = "unsupported_content"


class CheckStage(StrEnum):
    """Sides of the model service that are judged."""

    INPUT = "input"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyOptions:
    """How the proxy behaves.

    Example: `ProxyOptions(mode=ProxyMode.SHADOW)`
    """

    mode: ProxyMode = ProxyMode.ENFORCE
    """Effect of a verdict."""
    on_block: BlockStyle = BlockStyle.REFUSAL
    """How a block looks to a client."""
    fail_open: frozenset[FaultClass] = frozenset()
    """Classes of failed checks after which a chat goes on unjudged; after others it ends."""
    input_only: bool = False
    """Whether answers are passed on unjudged."""
    check_seconds: float = 30.0
    """Seconds that a check may take."""


class CheckResult(NamedTuple):
    """Result of a check."""

    unsafe: bool
    """Whether a text is unsafe."""
    failed: FaultClass | None
    """Why some text has no verdict, where that lets the chat go on."""


class _Block(Exception):  # noqa: N818 - no error: the guard did its work
    """The guard judged something unsafe."""

    def __init__(self, stage: CheckStage) -> None:
        super().__init__(stage)
        self.stage = stage


Judge = Callable[[Sequence[str], str], Awaitable[list[TextVerdict]]]
"""Judges texts of a stage: input or output."""


class ChatProxy:
    """Answers chats by asking one service."""

    def __init__(
        self,
        upstream: Upstream,
        judge: Judge,
        metrics: ServiceMetrics,
        options: ProxyOptions,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Connect to nothing yet.

        Args:
            upstream: The service.
            judge: Judges texts.
            metrics: Counts what goes on unjudged.
            options: How it behaves.
            clock: Gives the time that answers of its own are made.
        """
        self._upstream, self._judge, self._metrics = upstream, judge, metrics
        self._options, self._clock = options, clock
        self._shadows: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Finish what is judged beside, and close connections."""
        await asyncio.gather(*self._shadows, return_exceptions=True)
        await self._upstream.close()

    async def answer(self, document: dict[str, Any], request_id: str) -> tuple[Response, str]:
        """Answer a chat; returns the answer, and its outcome for metrics.

        Raises:
            RequestFault: It was refused, a check failed, or the service did.
        """
        stream = document.get("stream") is True
        if self._options.mode is not ProxyMode.ENFORCE:
            return await self._passed_on(document, stream=stream)
        failed = await self._check_input(document)
        if failed is _BLOCKED:
            return self._blocked(document, request_id, stream=stream), "unsafe"
        opened = {} if failed is None else {"x-tsgb-fail-open": str(failed)}
        async with AsyncExitStack() as stack:
            found = await stack.enter_async_context(self._upstream.asked(document))
            if stream and found.is_stream:
                guarded = self._guarded_stream(found)
                if self._options.input_only:
                    guarded = self._raw_stream(found)
                first = await _first_of(guarded)
                if isinstance(first, _Block):
                    return self._blocked(document, request_id, stream=True), "unsafe"
                response = _stream_response(first, guarded, stack.pop_all())
                response.headers.update(opened)
                return response, "streamed"
            body = await found.document()
        if not self._options.input_only:
            body, late = await self._check_output(body)
            if late is _BLOCKED:
                if self._options.on_block is BlockStyle.ERROR:
                    raise _content_blocked("choices")
                return JSONResponse(body, headers={**opened, "x-tsgb-verdict": "unsafe"}), "unsafe"
            if late is not None:
                opened["x-tsgb-fail-open"] = str(late)
        verdict = "unchecked" if opened else "safe"
        return JSONResponse(body, headers={**opened, "x-tsgb-verdict": verdict}), verdict

    # -- checks ----------------------------------------------------------------------------

    async def _check_input(self, document: Mapping[str, Any]) -> FaultClass | _Blocked | None:
        passed: Passed = None
        if FaultClass.UNSUPPORTED_CONTENT in self._options.fail_open:
            passed = []
        texts = texts_of_messages(document.get("messages"), "messages", passed)
        texts += texts_within(document, _NOT_JUDGED)
        _check_wishes(document)
        result = await self._check(texts, CheckStage.INPUT)
        if result.unsafe:
            return _BLOCKED
        if passed:
            self._metrics.fail_open.labels(FaultClass.UNSUPPORTED_CONTENT).inc()
            return FaultClass.UNSUPPORTED_CONTENT
        return result.failed

    async def _check_output(
        self, body: dict[str, Any]
    ) -> tuple[dict[str, Any], FaultClass | _Blocked | None]:
        """Judge each answer of a body; unsafe ones are replaced by refusals."""
        try:
            choices = [object_in(c, "choices") for c in list_in(body.get("choices"), "choices")]
            messages = [object_in(choice.get("message"), "message") for choice in choices]
        except RequestFault:
            raise upstream_failed("the model service answered in an unknown form") from None
        failed: FaultClass | None = None
        blocked = False
        made: list[dict[str, Any]] = []
        for choice, message in zip(choices, messages, strict=True):
            kept = choice if choice.get("logprobs") is None else choice | {"logprobs": None}
            try:
                texts = texts_of_message({"role": "assistant", **message}, "message")
            except RequestFault:
                result = self._without_verdict(FaultClass.UNSUPPORTED_CONTENT, CheckStage.OUTPUT)
            else:
                result = await self._check(texts, CheckStage.OUTPUT)
            failed = result.failed or failed
            if result.unsafe:
                blocked = True
                kept = _refused_choice(choice.get("index", 0))
            made.append(kept)
        return body | {"choices": made}, _BLOCKED if blocked else failed

    async def _check(self, texts: Sequence[str], stage: CheckStage) -> CheckResult:
        """Judge texts, each for itself: one unsafe text decides, whatever became of the others.

        Raises:
            RequestFault: A text has no verdict, and that ends the chat.
        """
        tasks = [asyncio.ensure_future(self._judge([text], stage)) for text in dict.fromkeys(texts)]
        if not tasks:
            return CheckResult(unsafe=False, failed=None)
        try:
            _, late = await asyncio.wait(tasks, timeout=self._options.check_seconds)
        finally:
            for task in tasks:
                task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        verdicts = [one for judged in found if isinstance(judged, list) for one in judged]
        if any(verdict.unsafe for verdict in verdicts):
            enforced = self._options.mode is ProxyMode.ENFORCE
            self._metrics.blocks.labels("chat" if enforced else "chat_shadow", stage).inc()
            return CheckResult(unsafe=True, failed=None)
        if late:
            return self._without_verdict(FaultClass.GUARD_TIMEOUT, stage)
        for error in found:
            if isinstance(error, RequestFault):
                return self._without_verdict(_class_of(error), stage, error)
            if isinstance(error, JudgingError):
                return self._without_verdict(FaultClass.GUARD_ERROR, stage)
            if isinstance(error, BaseException):
                raise error
        return CheckResult(unsafe=False, failed=None)

    def _without_verdict(
        self, why: FaultClass, stage: CheckStage, fault: RequestFault | None = None
    ) -> CheckResult:
        """Let a chat go on without a verdict where that is wanted, else end it."""
        self._metrics.guard_errors.labels(why).inc()
        if why in self._options.fail_open:
            self._metrics.fail_open.labels(why).inc()
            return CheckResult(unsafe=False, failed=why)
        if fault is not None and stage is CheckStage.INPUT:
            raise fault
        raise _check_failed(why, stage)

    # -- answers ---------------------------------------------------------------------------

    def _blocked(self, document: Mapping[str, Any], request_id: str, *, stream: bool) -> Response:
        """Return the answer to a chat that is blocked before anything of one was sent."""
        if self._options.on_block is BlockStyle.ERROR:
            raise _content_blocked("messages")
        model = document.get("model")
        about = {
            "id": f"chatcmpl-{request_id}",
            "created": int(self._clock().timestamp()),
            "model": model if isinstance(model, str) else "",
        }
        num = document.get("n")
        choices = [_refused_choice(i) for i in range(num if isinstance(num, int) else 1)]
        headers = {"x-tsgb-verdict": "unsafe"}
        if not stream:
            used = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 0)
            made = {**about, "object": "chat.completion", "choices": choices, "usage": used}
            return JSONResponse(made, headers=headers)
        chunk = {**about, "object": "chat.completion.chunk"}
        parts = event({**chunk, "choices": [_refused_delta(c["index"]) for c in choices]})
        body = parts + event(DONE)
        return Response(body, headers=headers | _STREAM_HEADERS, media_type="text/event-stream")

    async def _guarded_stream(self, answer: UpstreamAnswer) -> AsyncGenerator[bytes | _Block]:
        """Yield events whose whole text so far was judged safe; a block ends them.

        A block is yielded as such before anything else, where another form of answer is possible.
        """
        held, begun = Holdback(), False
        stop: _Block | RequestFault | None = None
        try:
            async with aclosing(self._safe_events(answer, held)) as pieces:
                async for piece in pieces:
                    begun = True
                    yield piece
        except (_Block, RequestFault) as found:
            stop = found
        except StreamError as error:
            stop = upstream_failed(f"the stream failed: {error}", "upstream_stream_failed")
        if isinstance(stop, RequestFault):
            if not begun:
                raise stop
            yield event(stop.document)
            return
        if stop is not None:
            yield self._end_of_block(held) if begun else stop
        yield event(DONE)

    async def _safe_events(self, answer: UpstreamAnswer, held: Holdback) -> AsyncGenerator[bytes]:
        last = time.monotonic()
        async with aclosing(_chunks(answer, PAUSE_SECONDS)) as chunks:
            async for chunk in chunks:
                if chunk is not None:
                    held.add(chunk)
                late = time.monotonic() - last >= PAUSE_SECONDS
                if late or not held.is_waiting or held.is_due:
                    for piece in await self._released(held):
                        yield piece
                    last = time.monotonic()
        for piece in await self._released(held):
            yield piece

    async def _released(self, held: Holdback) -> list[bytes]:
        """Judge what waits, and return the events that may leave."""
        if held.is_waiting:
            result = await self._check(held.texts(), CheckStage.OUTPUT)
            if result.unsafe:
                raise _Block(CheckStage.OUTPUT)
        return [event(chunk) for chunk in held.release()]

    def _end_of_block(self, held: Holdback) -> bytes:
        if self._options.on_block is BlockStyle.ERROR:
            return event(_content_blocked("choices").document)
        deltas = [_refused_delta(index) for index in held.unfinished()]
        return event({**held.about(), "choices": deltas})

    # -- modes that change nothing ---------------------------------------------------------

    async def _passed_on(self, document: dict[str, Any], *, stream: bool) -> tuple[Response, str]:
        shadow = self._options.mode is ProxyMode.SHADOW
        if shadow:
            self._beside(self._shadow_input(document))
        async with AsyncExitStack() as stack:
            found = await stack.enter_async_context(self._upstream.asked(document))
            if stream and found.is_stream:
                raw = self._raw_stream(found)
                if shadow and not self._options.input_only:
                    raw = self._watched_stream(raw)
                first = await _first_of(raw)
                assert not isinstance(first, _Block)
                return _stream_response(first, raw, stack.pop_all()), "streamed"
            body = await found.document()
        if shadow and not self._options.input_only:
            self._beside(self._shadow_output(body))
        return JSONResponse(body), "passed"

    async def _raw_stream(self, answer: UpstreamAnswer) -> AsyncGenerator[bytes | _Block]:
        try:
            async for piece in answer.response.aiter_bytes():
                yield piece
        except httpx.HTTPError as error:
            fault = upstream_failed(
                f"the stream failed: {type(error).__name__}", "upstream_stream_failed"
            )
            yield event(fault.document)

    async def _watched_stream(
        self, raw: AsyncGenerator[bytes | _Block]
    ) -> AsyncGenerator[bytes | _Block]:
        """Pass a stream on, and judge its text when it has ended."""
        kept = list[bytes]()
        async with aclosing(raw) as pieces:
            async for piece in pieces:
                if isinstance(piece, bytes):
                    kept.append(piece)
                yield piece
        self._beside(self._shadow_stream(kept))

    def _beside(self, work: Any) -> None:
        """Judge beside; what goes wrong there is counted and changes nothing."""

        async def run() -> None:
            try:
                await work
            except (RequestFault, StreamError, JudgingError):
                self._metrics.guard_errors.labels("shadow").inc()

        task = asyncio.create_task(run())
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _shadow_input(self, document: Mapping[str, Any]) -> None:
        texts = texts_of_messages(document.get("messages"), "messages", [])
        await self._check(texts, CheckStage.INPUT)

    async def _shadow_output(self, body: Mapping[str, Any]) -> None:
        for choice in list_in(body.get("choices"), "choices"):
            message = object_in(object_in(choice, "choice").get("message"), "message")
            texts = texts_of_message({"role": "assistant", **message}, "message", [])
            await self._check(texts, CheckStage.OUTPUT)

    async def _shadow_stream(self, pieces: Sequence[bytes]) -> None:
        async def chunks() -> AsyncGenerator[bytes]:
            for piece in pieces:
                yield piece

        held = Holdback()
        async for data in read_events(chunks()):
            if data != DONE:
                held.add(_chunk_of(data))
        await self._check(held.texts(), CheckStage.OUTPUT)


class _Blocked:
    """Says that a text is unsafe, where otherwise a class of failures stands."""


_BLOCKED = _Blocked()


def _check_wishes(document: Mapping[str, Any]) -> None:
    """Refuse wishes for an answer that could not be judged."""
    if document.get("logprobs") or document.get("top_logprobs"):
        raise unsupported("logprobs", "a wish for what spells an answer out before it is judged")
    modalities = document.get("modalities")
    if modalities not in (None, ["text"]):
        raise unsupported("modalities", "a wish for more than text")
    num = document.get("n")
    if num is not None and (
        not isinstance(num, int) or isinstance(num, bool) or not 1 <= num <= _MOST_CHOICES
    ):
        raise invalid("n", f"a number from 1 to {_MOST_CHOICES}")


def _class_of(fault: RequestFault) -> FaultClass:
    return FaultClass.UNSUPPORTED_CONTENT if fault.status == 413 else FaultClass.OVERLOAD


def _check_failed(why: FaultClass, stage: CheckStage) -> RequestFault:
    return RequestFault(
        502,
        f"guardrails_{stage}_check_failed",
        f"the {stage} could not be judged: {why}",
        kind="proxy_error",
        retry=None if why in {FaultClass.GUARD_TIMEOUT, FaultClass.OVERLOAD} else False,
    )


def _content_blocked(param: str) -> RequestFault:
    """Return the block that test harnesses count as a refusal."""
    return RequestFault(
        400,
        "invalid_prompt",
        "the guard judged this unsafe",
        kind="guardrails_violation",
        param=param,
        retry=False,
        headers={"x-tsgb-verdict": "unsafe"},
    )


def _refused_choice(index: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, "refusal": REFUSAL}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": "content_filter"}


def _refused_delta(index: int) -> dict[str, Any]:
    delta = {"role": "assistant", "refusal": REFUSAL}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": "content_filter"}


def _chunk_of(data: str) -> dict[str, Any]:
    try:
        chunk = parse_json_object(data)
    except ValueError:
        raise StreamError("an event is no JSON object") from None
    if "error" in chunk:
        raise StreamError("the model service reported an error")
    return chunk


async def _chunks(
    answer: UpstreamAnswer, pause_seconds: float
) -> AsyncGenerator[dict[str, Any] | None]:
    """Yield the chunks of a stream up to its end, and None whenever it pauses for so long.

    Raises:
        StreamError: It broke off, or holds something else.
    """
    events = read_events(answer.response.aiter_bytes())
    coming: asyncio.Task[str] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait((coming,), timeout=pause_seconds)
            if not done:
                yield None
                continue
            task, coming = coming, None
            try:
                data = task.result()
            except StopAsyncIteration:
                raise StreamError("it ended early") from None
            except httpx.HTTPError as error:
                raise StreamError(type(error).__name__) from None
            if data == DONE:
                return
            yield _chunk_of(data)
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await events.aclose()


async def _first_of(stream: AsyncGenerator[bytes | _Block]) -> bytes | _Block:
    try:
        return await anext(stream)
    except StopAsyncIteration:
        return b""


def _stream_response(
    first: bytes, rest: AsyncGenerator[bytes | _Block], stack: AsyncExitStack
) -> PiecewiseResponse:
    """Return the answer that streams; the connection to the service ends with it."""

    async def pieces() -> AsyncGenerator[bytes]:
        yield first
        async for piece in rest:
            yield cast("bytes", piece)

    async def close() -> None:
        await rest.aclose()
        await stack.aclose()

    return PiecewiseResponse(pieces(), close, _STREAM_HEADERS, "text/event-stream")
