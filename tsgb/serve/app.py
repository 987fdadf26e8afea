"""The routes of the service: who may ask, what is refused, and in which form an answer is given.

No text of a request and no token reaches a log, a metric or an error: errors that nobody foresaw
are logged by their class and place alone.
"""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tsgb.cloud.provider import is_loopback
from tsgb.export.record import GuardFile
from tsgb.logging import get_logger
from tsgb.serve.audit import CURRENT, AuditLog, RequestContext
from tsgb.serve.batching import Batcher, BatchEvents, JudgingError, TextVerdict
from tsgb.serve.bodies import read_object
from tsgb.serve.drift import ScoreDrift
from tsgb.serve.faults import (
    RequestFault,
    deadline_passed,
    guard_failed,
    overloaded,
)
from tsgb.serve.feedback import FeedbackFile, no_room, read_feedback
from tsgb.serve.formats import Inquiry, check, is_out_of_domain, litellm, moderation
from tsgb.serve.metrics import MEDIA_TYPE, ServiceMetrics
from tsgb.serve.proxy import ChatProxy, ProxyMode, ProxyOptions
from tsgb.serve.readiness import ExportedAssessor, reason_not_ready
from tsgb.serve.streaming import client_gone
from tsgb.serve.upstream import Upstream

R = TypeVar("R")
_CLIENT_GONE = 499
"""Status in metrics of a request whose client did not wait; nobody receives it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLimits:
    """Bounds of a service.

    Example: `ServiceLimits(queue=64, deadline_seconds=10.0)`
    """

    queue: int = 256
    """Windows that may wait to be judged, and requests that may be under way."""
    deadline_seconds: float = 30.0
    """Seconds in which a request is answered, its body included."""
    max_body_bytes: int = 1 << 20
    """Bytes of the longest body."""


class GuardService:
    """A guard behind HTTP. It is made in the process that serves it, and runs in one event loop."""

    def __init__(
        self,
        guard: ExportedAssessor,
        *,
        limits: ServiceLimits | None = None,
        token: SecretStr | None = None,
        upstream: Upstream | None = None,
        proxy: ProxyOptions | None = None,
        audit: AuditLog | None = None,
        feedback: FeedbackFile | None = None,
    ) -> None:
        """Score the self-test.

        Args:
            guard: Judges.
            limits: Bounds.
            token: What clients have to show; None lets any process of this machine ask.
            upstream: The model service that chats are passed on to; None serves none.
            proxy: How that is done.
            audit: Takes a line for each verdict.
            feedback: Takes prompts that people label, and those that the guard would block in
                shadow mode.
        """
        self.limits = limits or ServiceLimits()
        self.metrics = ServiceMetrics()
        self.not_ready = reason_not_ready(guard)
        """Why nothing is judged; empty if the guard is the one that was exported."""
        self.name = guard_name(guard.about)
        """Name of the guard in answers."""
        self._token = token
        self._under_way = 0
        self.begun = 0
        """Requests that were taken on, whatever they got."""
        self.answered = 0
        """Requests whose answer is made."""
        self.batcher = Batcher(
            guard,
            capacity=self.limits.queue,
            events=BatchEvents(
                on_batch=self.metrics.on_batch, on_waiting=self.metrics.queue_depth.set
            ),
        )
        self._options = proxy or ProxyOptions()
        self._audit, self._feedback = audit, feedback
        self._drift = ScoreDrift(guard.about.dtypes[guard.dtype].deciles)
        self.metrics.drift.set_function(self._drift.index)
        self.metrics.audit_lost.set_function(lambda: 0 if audit is None else audit.lost)
        self._proxy = None
        if upstream is not None:
            self._proxy = ChatProxy(upstream, self._verdicts, self.metrics, self._options)

    # -- routes ----------------------------------------------------------------------------

    def app(self) -> Starlette:
        """Return the application for a server."""
        return Starlette(
            routes=[
                Route("/healthz", self._health),
                Route("/readyz", self._ready),
                Route("/metrics", self._metrics),
                self._judging("/v1/moderations", "moderations", self._moderation),
                self._judging("/beta/litellm_basic_guardrail_api", "litellm", _litellm),
                self._judging("/v1/checks", "checks", _check),
                *([] if self._proxy is None else [self._chats(self._proxy)]),
                *([] if self._feedback is None else [self._labels(self._feedback)]),
            ],
            exception_handlers={HTTPException: _not_there},
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncGenerator[None]:
        self.batcher.start()
        yield
        if self._proxy is not None:
            await self._proxy.close()
        await self.batcher.close()
        for file in (self._audit, self._feedback):
            if file is not None:
                file.close()

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _ready(self, _: Request) -> Response:
        if self.not_ready:
            return JSONResponse({"status": "not ready", "reason": self.not_ready}, 503)
        return JSONResponse({"status": "ready", "guard": self.name})

    async def _metrics(self, request: Request) -> Response:
        try:
            self._check_client(request)
        except RequestFault as fault:
            return fault.response()
        return Response(self.metrics.exposition(), media_type=MEDIA_TYPE)

    def _moderation(self, document: dict[str, Any], request_id: str) -> Inquiry:
        return moderation(document, self.name, request_id)

    def _judging(
        self, path: str, name: str, read: Callable[[dict[str, Any], str], Inquiry]
    ) -> Route:
        async def answer(request: Request, request_id: str) -> tuple[Response, str]:
            self._check_ready()
            async with asyncio.timeout(self.limits.deadline_seconds):
                with self.batcher.expecting():
                    document = await read_object(request, self.limits.max_body_bytes)
                    inquiry = read(document, request_id)
                verdicts = await _unless_gone(request, self._judge(inquiry))
            unsafe = any(verdict.unsafe for verdict in verdicts)
            if unsafe:
                self.metrics.blocks.labels(name, "input").inc()
            return JSONResponse(inquiry.answer(verdicts)), "unsafe" if unsafe else "safe"

        return Route(path, self._endpoint(name, answer), methods=["POST"])

    def _chats(self, proxy: ChatProxy) -> Route:
        async def answer(request: Request, request_id: str) -> tuple[Response, str]:
            if self._options.mode is ProxyMode.ENFORCE:
                self._check_ready()
            async with asyncio.timeout(self.limits.deadline_seconds):
                document = await read_object(request, self.limits.max_body_bytes)
            return await _unless_gone(request, proxy.answer(document, request_id))

        return Route("/v1/chat/completions", self._endpoint("chat", answer), methods=["POST"])

    def _labels(self, feedback: FeedbackFile) -> Route:
        async def answer(request: Request, _: str) -> tuple[Response, str]:
            self._check_ready()
            async with asyncio.timeout(self.limits.deadline_seconds):
                document = await read_object(request, self.limits.max_body_bytes)
                prompt, label = read_feedback(document)
                [verdict] = await self.batcher.judge([prompt])
            if not feedback.add(prompt, label, verdict, "user"):
                raise no_room()
            said = "unsafe" if verdict.unsafe else "safe"
            return JSONResponse({"stored": True, "verdict": said}), "stored"

        return Route("/v1/feedback", self._endpoint("feedback", answer), methods=["POST"])

    async def _verdicts(self, texts: Sequence[str], stage: str = "input") -> list[TextVerdict]:
        """Judge texts, and keep what is kept of every verdict."""
        found = await self.batcher.judge(texts)
        for text, verdict in zip(texts, found, strict=True):
            self.metrics.score.observe(verdict.score)
            if is_out_of_domain(verdict):
                self.metrics.out_of_domain.inc()
            if stage == "input":
                self._drift.add(verdict.score)
            if self._audit is not None:
                self._audit.write(text, verdict, stage)
            if self._is_for_review(verdict, stage) and self._feedback is not None:
                self._feedback.add(text, None, verdict, "shadow")
        return found

    def _is_for_review(self, verdict: TextVerdict, stage: str) -> bool:
        """Tell whether a verdict blocked nothing only because of the mode."""
        request = CURRENT.get()
        is_chat = request is not None and request.route == "chat"
        return (
            verdict.unsafe
            and is_chat
            and stage == "input"
            and self._options.mode is ProxyMode.SHADOW
        )

    async def _judge(self, inquiry: Inquiry) -> list[TextVerdict]:
        """Return the verdict on each group: that of its most suspicious text."""
        texts = [text for group in inquiry.groups for text in group]
        found = await self._verdicts(texts)
        groups: list[TextVerdict] = []
        for group in inquiry.groups:
            own, found = found[: len(group)], found[len(group) :]
            if own:
                groups.append(_worst(own))
        return groups

    # -- what every request goes through ---------------------------------------------------

    def _endpoint(
        self, name: str, answer: Callable[[Request, str], Awaitable[tuple[Response, str]]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            self.begun += 1
            self._under_way += 1
            started, request_id = time.monotonic(), uuid.uuid4().hex
            CURRENT.set(RequestContext(name, request_id))

            def ended() -> None:
                self._under_way -= 1
                self.answered += 1
                self.metrics.requests.labels(name, outcome).inc()
                self.metrics.request_seconds.labels(name).observe(time.monotonic() - started)

            response, outcome = await self._answer(request, request_id, answer)
            response.headers["x-tsgb-request-id"] = request_id
            response.headers["x-tsgb-guard"] = self.name
            return _Tracked(response, ended)

        return endpoint

    async def _answer(
        self,
        request: Request,
        request_id: str,
        answer: Callable[[Request, str], Awaitable[tuple[Response, str]]],
    ) -> tuple[Response, str]:
        seconds = self.limits.deadline_seconds
        try:
            self._check_client(request)
            self._check_room()
            return await answer(request, request_id)
        except RequestFault as fault:
            return fault.response(), fault.code
        except TimeoutError:
            self.metrics.guard_errors.labels("guard_timeout").inc()
            return deadline_passed(seconds).response(), "deadline_exceeded"
        except ClientDisconnect:
            return Response(status_code=_CLIENT_GONE), "client_gone"
        except JudgingError as error:
            self.metrics.guard_errors.labels("guard_error").inc()
            get_logger().error("a text was not judged", reason=str(error), request=request_id)
            return guard_failed().response(), "guard_error"
        except Exception as error:  # noqa: BLE001 - its words and its traceback may hold the text
            where = _place_of(error)
            get_logger().error(
                "a request failed", error=type(error).__name__, place=where, request=request_id
            )
            fault = RequestFault(500, "internal_error", "this is a bug", kind="server_error")
            return fault.response(), "internal_error"

    def _check_room(self) -> None:
        if self._under_way > self.limits.queue:
            raise overloaded("queue_full", "too many requests are under way")

    def _check_ready(self) -> None:
        if self.not_ready:
            raise overloaded("not_ready", "the guard is not the one that was exported: see /readyz")

    def _check_client(self, request: Request) -> None:
        """Refuse who has no token; without tokens, pages that a browser was led to by a name.

        Raises:
            RequestFault: It may not ask.
        """
        if self._token is None:
            if not is_loopback(f"http://{request.headers.get('host', '')}"):
                raise RequestFault(403, "wrong_host", "ask this machine by 127.0.0.1 or localhost")
            return
        kind, _, shown = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            shown = request.headers.get("x-api-key", "")
        expected = self._token.get_secret_value()
        if not hmac.compare_digest(shown.strip().encode(), expected.encode()):
            raise RequestFault(
                401,
                "invalid_api_key",
                "send this service's token as `Authorization: Bearer TOKEN`, or as `x-api-key`",
                kind="authentication_error",
                headers={"www-authenticate": "Bearer"},
            )


class _Tracked(Response):
    """An answer that tells when it was sent, or when that failed; it may take minutes to stream."""

    def __init__(self, inner: Response, on_end: Callable[[], None]) -> None:
        self._inner, self._on_end = inner, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await self._inner(scope, receive, send)
        finally:
            self._on_end()


async def _unless_gone(request: Request, work: Coroutine[Any, Any, R]) -> R:
    """Return what work gives; it is cancelled when the client of a request that was read is gone.

    Raises:
        ClientDisconnect: The client is gone.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(client_gone(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def guard_name(about: GuardFile) -> str:
    """Return the name by which answers and logs call a guard."""
    return f"tsgb-{about.checkpoint.sha256[:12]}"


def _litellm(document: dict[str, Any], _: str) -> Inquiry:
    return litellm(document)


def _check(document: dict[str, Any], _: str) -> Inquiry:
    return check(document)


def _worst(verdicts: list[TextVerdict]) -> TextVerdict:
    """Return the most suspicious verdict, with the windows and unknown words of all."""
    worst = max(verdicts, key=lambda verdict: verdict.score)
    return worst._replace(
        windows=max(verdict.windows for verdict in verdicts),
        unknown=sum(verdict.unknown for verdict in verdicts),
    )


async def _not_there(_: Request, error: Exception) -> Response:
    """Return the answer to a path or a method that is not served."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    message = "there is no such route, or not for this method: see tsgb/serve/README.md"
    return RequestFault(error.status_code, code, message, headers=error.headers).response()


def _place_of(error: BaseException) -> str:
    """Return where in the source an error was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    code = trace.tb_frame.f_code
    return f"{code.co_name}:{trace.tb_lineno}"
