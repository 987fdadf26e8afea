"""The HTTP side: cheroot on loopback, one lock round the world, faults on the wire."""

from __future__ import annotations

import errno
import http
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl

from cheroot import wsgi

from tests.fakes.sentinels import new_key
from tests.fakes.vast.api import Api
from tests.fakes.vast.clock import SECOND, VIRTUAL_START, Clock, began
from tests.fakes.vast.control import Control
from tests.fakes.vast.faults import Fault, FaultPlan
from tests.fakes.vast.keys import Keys
from tests.fakes.vast.messages import MAX_BODY_BYTES, Answer, Request, parse, refused
from tests.fakes.vast.options import Options
from tests.fakes.vast.world import World

LOOK_SECONDS = 0.05
"""Between two looks at the clock and at the containers while nobody asks."""
NUM_THREADS = 16


class VastSimulator:
    """Serves from `with` on; everything that it started ends with it.

    Args:
        options: how it behaves.
        port: 0 for a free one.
        key: the account's; without it one is made up.
        virtual: its clock moves only by `/_sim/clock`.
        speed: of its clock if that is not virtual.
        age_seconds: so long ago its clock begins if that is not virtual.
    """

    def __init__(
        self,
        options: Options | None = None,
        *,
        port: int = 0,
        key: str | None = None,
        virtual: bool = False,
        speed: float = 1.0,
        age_seconds: float = 0.0,
    ) -> None:
        self.key = key or new_key()
        self._directory = tempfile.TemporaryDirectory(prefix="vast-", ignore_cleanup_errors=True)
        clock = Clock(0.0, VIRTUAL_START) if virtual else Clock(speed, began(age_seconds))
        self._world = World(options or Options(), clock, Path(self._directory.name))
        self._plan = FaultPlan()
        self._api = Api(self._world, Keys(self.key))
        self._control = Control(self._world, self._plan)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = wsgi.Server(("127.0.0.1", port), self._app, numthreads=NUM_THREADS)
        self._server.shutdown_timeout = 1
        self._server.timeout = 600  # a busy machine may leave a connection idle for 10 s
        self._server.expiration_interval = LOOK_SECONDS  # how long it takes to notice its end
        self._threads = [
            threading.Thread(target=self._server.serve, daemon=True),
            threading.Thread(target=self._look, daemon=True),
        ]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.bind_addr[1]}"

    @property
    def headers(self) -> dict[str, str]:
        """Of a request by the account."""
        return {"Authorization": f"Bearer {self.key}"}

    def __enter__(self) -> Self:
        self._server.prepare()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.stop()
        for thread in self._threads:
            thread.join()
        with self._lock:
            self._world.close()
        self._directory.cleanup()

    def _look(self) -> None:
        while not self._closing.wait(LOOK_SECONDS):
            with self._lock:
                self._world.catch_up()

    def _app(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        request = _read(environ)
        if request is None:
            answer, fault = refused(413, "too_large", "The body is too large."), None
        else:
            answer, fault = self._answer(request)
        if fault is not None and fault.act in {"hang", "delay"}:
            self._closing.wait(fault.seconds)
        if fault is not None and fault.is_silent:
            raise _hang_up()
        data = answer.data()
        phrase = http.HTTPStatus(answer.status).phrase
        headers = {"Content-Type": answer.content_type, "Content-Length": str(len(data))}
        start(f"{answer.status} {phrase}", list({**headers, **answer.headers}.items()))
        return _half(data) if fault is not None and fault.act == "truncate" else [data]

    def _answer(self, request: Request) -> tuple[Answer, Fault | None]:
        with self._lock:
            self._world.catch_up()
            if request.path.startswith("/_sim"):
                return self._control.respond(request), None
            if request.path.startswith("/s3/"):
                return self._api.logs.fetch(request.path), None
            fault = self._plan.take(request)
            answer = self._serve(request, fault)
            self._note(request, answer, fault)
            return answer, fault

    def _serve(self, request: Request, fault: Fault | None) -> Answer:
        if fault is None:
            return self._api.respond(request)
        if fault.act == "late":
            self._world.at(self._world.after(fault.seconds), lambda: self._api.respond(request))
        if fault.prevents:
            return fault.answer()
        answer = self._api.respond(request)
        if fault.act == "duplicate":
            # What was refused has no effect that could come twice.
            request.duplicated = isinstance(answer.body, dict) and "new_contract" in answer.body
            self._api.respond(request)
        return fault.spoil(answer)

    def _note(self, request: Request, answer: Answer, fault: Fault | None) -> None:
        self._control.requests.append(
            {
                "at": self._world.now / SECOND,
                "method": request.method,
                "path": request.path,
                "body": request.body,
                "status": answer.status,
                "fault": None if fault is None else fault.act,
            }
        )


def _read(environ: dict[str, Any]) -> Request | None:
    """The request; None if it is too large."""
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length > MAX_BODY_BYTES:
        return None
    query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
    scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    return Request(
        method=environ["REQUEST_METHOD"],
        path=environ["PATH_INFO"],
        query=query,
        body=parse(environ["wsgi.input"].read(length) if length else b""),
        token=token if scheme.lower() == "bearer" else query.get("api_key"),
        base_url=f"http://{environ['HTTP_HOST']}",
    )


def _hang_up() -> OSError:
    """What makes the server close a connection without a word."""
    return ConnectionResetError(errno.ECONNRESET, "a planned fault")


def _half(data: bytes) -> Iterator[bytes]:
    yield data[: len(data) // 2]
    raise _hang_up()
