"""A bad network as an HTTP proxy on loopback: it stands before a WebDAV server and spoils requests.

    with FaultProxy(upstream_url, Rates(put_cut=0.05, read_flipped=0.1), seed=3) as proxy:
        open_filesystem(proxy.url)
    proxy.counts["put_cut"]

Its generator is its own, so that equal seeds draw alike; which request meets which draw depends on
when requests come. Every fault is counted by name, and so is every request, as `requests`.
"""

from __future__ import annotations

import http.client
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "te"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How often each fault happens, as a share of the requests that it can happen to."""

    unavailable: float = 0.0
    """Any request is answered 503 and not passed on."""
    delayed: float = 0.0
    """Any request waits for a second."""
    put_full: float = 0.0
    """An upload is answered 507 and not passed on."""
    put_cut: float = 0.0
    """The server gets the first half of an upload; both connections are closed."""
    answer_lost: float = 0.0
    """A change is made, and the connection is closed instead of an answer."""
    read_flipped: float = 0.0
    """One bit of what is read is wrong; only below `/checkpoints/`, where every file has a hash."""
    read_cut: float = 0.0
    """The connection is closed after the first half of what is read."""


class Answer(NamedTuple):
    """What the server said."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class FaultProxy:
    """Listens from `with` on; `url` takes the place of the server's."""

    def __init__(
        self, upstream: str, rates: Rates, seed: int, *, delay_seconds: float = 1.0
    ) -> None:
        self.rates = rates
        self.counts: Counter[str] = Counter()
        self.delay_seconds = delay_seconds
        self._upstream = urlsplit(upstream)
        self._rng = Random(seed)
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def faults(self) -> int:
        """How many so far."""
        with self._lock:
            return sum(self.counts[field.name] for field in fields(Rates))

    def draw(self, fault: str) -> bool:
        """Whether this fault happens now; counted if it does."""
        with self._lock:
            happens = self._rng.random() < getattr(self.rates, fault)
            self.counts[fault] += happens
        return happens

    def count(self, what: str) -> None:
        """One more."""
        with self._lock:
            self.counts[what] += 1

    def flip(self, data: bytes) -> bytes:
        """The same with one bit wrong."""
        with self._lock:
            position, bit = self._rng.randrange(len(data)), 1 << self._rng.randrange(8)
        return data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :]

    def forward(self, handler: _Handler, body: bytes) -> Answer:
        """Ask the server."""
        connection = self._connect(handler)
        try:
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return Answer(answer.status, answer.getheaders(), answer.read())
        finally:
            connection.close()

    def forward_half(self, handler: _Handler, body: bytes) -> None:
        """Begin an upload and never end it."""
        connection = self._connect(handler)
        connection.endheaders(body[: len(body) // 2] or None)
        connection.close()

    def _connect(self, handler: _Handler) -> http.client.HTTPConnection:
        host, port = self._upstream.hostname or "", self._upstream.port
        connection = http.client.HTTPConnection(host, port, timeout=30)
        connection.putrequest(
            handler.command, handler.path, skip_host=True, skip_accept_encoding=True
        )
        for name, value in handler.headers.items():
            if name.lower() not in _HOP_BY_HOP - {"content-length"}:
                connection.putheader(name, value)
        return connection


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # killed clients hang up
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    owner: FaultProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def handle_any(self) -> None:
        proxy = self.owner
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        assert self.headers.get("Transfer-Encoding") is None, "no client of ours sends chunks"
        proxy.count("requests")
        if proxy.draw("delayed"):
            time.sleep(proxy.delay_seconds)
        if proxy.draw("unavailable"):
            self.reply(Answer(503, [], b""))
        elif self.command == "PUT":
            self.put(body)
        else:
            answer = proxy.forward(self, body)
            if self.command == "GET" and answer.status == 200 and answer.body:
                self.read(answer)
            elif self.command in {"MKCOL", "DELETE"} and proxy.draw("answer_lost"):
                self.close_connection = True
            else:
                self.reply(answer)

    def put(self, body: bytes) -> None:
        proxy = self.owner
        if proxy.draw("put_full"):
            self.reply(Answer(507, [], b""))
        elif proxy.draw("put_cut"):
            proxy.forward_half(self, body)
            self.close_connection = True
        else:
            answer = proxy.forward(self, body)
            if proxy.draw("answer_lost"):
                self.close_connection = True
            else:
                self.reply(answer)

    def read(self, answer: Answer) -> None:
        proxy = self.owner
        if proxy.draw("read_cut"):
            self.reply(answer, send=len(answer.body) // 2)
            self.close_connection = True
        elif re.search("/checkpoints/", self.path) and proxy.draw("read_flipped"):
            self.reply(answer._replace(body=proxy.flip(answer.body)))
        else:
            self.reply(answer)

    def reply(self, answer: Answer, send: int | None = None) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body[:send])
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as in the base class
        """Quiet: the counts say it all."""

    do_GET = do_PUT = do_DELETE = do_MKCOL = do_PROPFIND = handle_any  # noqa: N815
