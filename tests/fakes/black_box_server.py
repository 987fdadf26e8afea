"""A black box behind HTTP on loopback, and a target that asks it with several requests at a time.

with BlackBoxServer(answer) as server:
    target = HttpBot("Bot", server.url, version="1", concurrency=8)
    ...
    server.asked    # every prompt in order of arrival, also of requests that were cut off
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

from tsgb.types import Messages, Response


class BlackBoxServer:
    """Answers by a function of the prompt; what that raises is a status 500."""

    def __init__(
        self,
        answer: Callable[[str], str],
        *,
        seconds: float = 0.0,
        on_request: Callable[[int], None] = lambda _num: None,
    ) -> None:
        """Take the function, the seconds that an answer takes, and who is told of each request."""
        self.asked: list[str] = []
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                prompt = json.loads(self.rfile.read(size))["prompt"]
                with outer._lock:
                    outer.asked.append(prompt)
                    num = len(outer.asked)
                on_request(num)
                time.sleep(seconds)
                try:
                    body, status = answer(prompt).encode(), 200
                except RuntimeError as error:
                    body, status = str(error).encode(), 500
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

            def handle(self) -> None:
                with suppress(ConnectionError):  # the client was killed
                    super().handle()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class HttpBot:
    """A target with `answer_each`, as endpoints have it, and the least of everything else."""

    def __init__(self, name: str, url: str, *, version: str, concurrency: int) -> None:
        self.name = name
        self.identity = {"url": url, "version": version}
        self._url = urlsplit(url)
        self._concurrency = concurrency

    def answer(self, chats: Sequence[Messages]) -> list[Response]:
        found = dict(self.answer_each(chats))
        return [found[index] for index in range(len(chats))]

    def answer_each(self, chats: Sequence[Messages]) -> Iterator[tuple[int, Response]]:
        waiting = iter(enumerate(chats))
        with ThreadPoolExecutor(self._concurrency) as pool:
            on_the_way: dict[Future[Response], int] = {}

            def send() -> None:
                for index, chat in waiting:
                    on_the_way[pool.submit(self._ask, chat[-1]["content"])] = index
                    return

            for _ in range(self._concurrency):
                send()
            while on_the_way:
                done = next(as_completed(on_the_way))
                yield on_the_way.pop(done), done.result()
                send()

    def _ask(self, prompt: str) -> Response:
        connection = http.client.HTTPConnection(str(self._url.hostname), self._url.port, timeout=60)
        try:
            connection.request("POST", "/", json.dumps({"prompt": prompt}))
            reply = connection.getresponse()
            text = reply.read().decode()
        finally:
            connection.close()
        if reply.status != 200:
            return Response(text="", finish_reason="error", error=f"HTTP {reply.status}")
        return Response(text=text)
