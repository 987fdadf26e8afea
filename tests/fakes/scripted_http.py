"""An HTTP service that answers by script: in this process, or on loopback where sockets matter.

    script = Script([Reply(503), Reply(body={"success": True})])
    VastClient(KEY, transport=script.transport)            # no socket
    with serve(script) as url:                             # a real server
        VastClient(KEY, url=url)
    script.seen[0].method

The last reply is repeated. A reply may also close the connection or drip, on loopback only.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any
    peer: int = 0
    """The port that it came from, on loopback."""


@dataclass(frozen=True)
class Reply:
    """What is answered: a string as text, all else as JSON."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    then: str = ""
    """`close`: read the request and hang up; `cut`: hang up after half of the body; `drip`: a byte
    every tenth of a second."""

    def payload(self) -> bytes:
        if isinstance(self.body, str):
            return self.body.encode()
        return json.dumps(self.body).encode()


class VirtualTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.seconds += seconds


class Script:
    """Replies in order, or from a function of the request."""

    def __init__(self, replies: Sequence[Reply] | Callable[[Seen], Reply]) -> None:
        self.seen: list[Seen] = []
        self._replies = replies
        self._lock = threading.Lock()

    def next(self, seen: Seen) -> Reply:
        with self._lock:
            self.seen.append(seen)
            if callable(self._replies):
                return self._replies(seen)
            return self._replies[min(len(self.seen), len(self._replies)) - 1]

    @property
    def transport(self) -> httpx.MockTransport:
        def handle(request: httpx.Request) -> httpx.Response:
            reply = self.next(
                Seen(
                    request.method,
                    request.url.path,
                    dict(request.url.params),
                    dict(request.headers),
                    json.loads(request.content) if request.content else None,
                )
            )
            assert not reply.then, "only a real server does that"
            return httpx.Response(reply.status, content=reply.payload(), headers=reply.headers)

        return httpx.MockTransport(handle)


@contextmanager
def serve(script: Script) -> Iterator[str]:
    """Its URL."""

    class Handler(_Handler):
        owner = script

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: Script
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(
            self.command,
            parts.path,
            dict(parse_qsl(parts.query)),
            headers,
            json.loads(body) if body else None,
            self.client_address[1],
        )
        reply = self.owner.next(seen)
        if reply.then == "close":
            self.close_connection = True
            return
        payload = reply.payload()
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if reply.then == "cut":
            payload, self.close_connection = payload[: len(payload) // 2], True
        if reply.then == "drip":
            self.drip(payload)
        else:
            self.wfile.write(payload)

    def drip(self, payload: bytes) -> None:
        pause = threading.Event()
        try:
            for byte in payload:
                self.wfile.write(bytes([byte]))
                pause.wait(0.1)
        except OSError:
            self.close_connection = True  # the client had enough

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as in the base class
        """Quiet: the script has seen it all."""

    do_GET = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815
