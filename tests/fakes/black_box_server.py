"""A black box that answers by a function of the prompt: an OpenAI-compatible server on loopback.

    with BlackBoxServer(answer) as server:
        EndpointSpec(name="Bot", kind="openai", model="m", url=server.url)
        server.asked

It keeps every prompt in order of arrival, also of requests that were cut off.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from tests.fakes.endpoint_server import OPENAI, good_body


class BlackBoxServer:
    """Answers each prompt after some seconds."""

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
                prompt = json.loads(self.rfile.read(size))["messages"][-1]["content"]
                with outer._lock:
                    outer.asked.append(prompt)
                    num = len(outer.asked)
                on_request(num)
                time.sleep(seconds)
                body = json.dumps(good_body(OPENAI, answer(prompt))).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
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
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
