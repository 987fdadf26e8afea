"""Endpoints on loopback that fail by plan: chat completions, messages and text generation.

    with serving({"bad": [status(500)], "once": [status(503), GOOD]}) as server:
        EndpointSpec(name="a", kind="openai", model="m", url=server.openai)
    server.asked["bad"]      # requests with that prompt
    server.most_at_once      # concurrency that it saw

A prompt is the content of the last message. Its plan lists what each request gets; the last entry
is repeated. A prompt that is not in the plan gets GOOD: an answer of the interface that was asked.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

OPENAI, ANTHROPIC, TEXT = "openai", "anthropic", "huggingface"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What one request gets."""

    status: int = 200
    body: bytes | str | dict[str, Any] | list[Any] | None = None
    """None: a good answer of the interface."""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    """Seconds before the status line; for ever if infinite."""
    header_drip: float = 0.0
    """Seconds between two bytes of the headers."""
    body_drip: float = 0.0
    """Seconds between two bytes of the body."""
    cut: bool = False
    """Whether the connection ends after half of the body."""
    endless: bool = False
    """Whether the body never ends."""
    hang_up: bool = False
    """Whether the connection ends without an answer."""


GOOD = Fault()


def status(code: int, error: object = None, **headers: str) -> Fault:
    """An error answer; underscores in names of headers stand for dashes."""
    body = {"error": {"message": "it failed", "type": "server_error"}} if error is None else error
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault(status=code, body=body if isinstance(body, str) else dict(body), headers=named)


def good_body(kind: str, text: str, finish: str | None = None) -> dict[str, Any]:
    """An answer as each interface has it."""
    if kind == ANTHROPIC:
        return {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": text}],
            "stop_reason": finish or "end_turn",
            "usage": {"input_tokens": 7, "output_tokens": 3},
        }
    if kind == TEXT:
        details = {"finish_reason": finish or "eos_token", "generated_tokens": 3}
        return {"generated_text": text, "details": details}
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1764410400,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish or "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }


@dataclass
class EndpointServer:
    """A running server, and what it saw."""

    plan: Mapping[str, Sequence[Fault]]
    otherwise: Fault
    key: str | None
    port: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    """Requests by prompt."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    """Headers of each request, names in lower case."""
    paths: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def openai(self) -> str:
        return f"{self.url}/v1"

    def url_of(self, kind: str) -> str:
        return self.openai if kind == OPENAI else self.url

    @property
    def requests(self) -> int:
        return sum(self.asked.values())

    def next(self, prompt: str) -> Fault:
        self.asked[prompt] += 1
        planned = self.plan.get(prompt)
        return planned[min(self.asked[prompt], len(planned)) - 1] if planned else self.otherwise

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._exchange(reader, writer):
                pass
        writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        path = head[0].split()[1]
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))))
        self.bodies.append(body)
        self.headers.append(headers)
        self.paths.append(path)
        kind = ANTHROPIC if path.endswith("/messages") else OPENAI
        kind = TEXT if "inputs" in body else kind
        prompt = body["inputs"] if kind == TEXT else body["messages"][-1]["content"]
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            fault = self.next(prompt)
            if self.key is not None and self.key not in headers.get(_KEY_HEADER[kind], ""):
                fault = status(401, {"error": {"message": f"wrong key {headers}"}})
            if fault.body is None:
                fault = replace(fault, body=good_body(kind, f"answer to {prompt}"))
            return await self._answer(fault, writer)
        finally:
            self.at_once -= 1

    async def _answer(self, fault: Fault, writer: asyncio.StreamWriter) -> bool:
        if fault.delay:
            await asyncio.sleep(min(fault.delay, 3600.0))
        if fault.hang_up:
            return False
        body = fault.body if isinstance(fault.body, bytes) else _encoded(fault.body)
        lines = [f"HTTP/1.1 {fault.status} Planned", *_lines(fault.headers)]
        if "content-type" not in {name.lower() for name in fault.headers}:
            lines.append("Content-Type: application/json")
        if not fault.endless:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        body = body[: len(body) // 2] if fault.cut else body
        if not fault.header_drip and not fault.body_drip:
            writer.write(head + body)
        else:
            await _write(writer, head, fault.header_drip)
            await _write(writer, body, fault.body_drip)
        await writer.drain()
        while fault.endless:
            writer.write(b" " * 65536)
            await writer.drain()
        return not fault.cut


_KEY_HEADER = {OPENAI: "authorization", ANTHROPIC: "x-api-key", TEXT: "authorization"}


def _lines(headers: Mapping[str, str]) -> list[str]:
    return [f"{name}: {value}" for name, value in headers.items()]


def _encoded(body: object) -> bytes:
    return body.encode() if isinstance(body, str) else json.dumps(body).encode()


async def _write(writer: asyncio.StreamWriter, data: bytes, pause: float) -> None:
    if not pause:
        writer.write(data)
        return
    for byte in data:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(pause)


@contextmanager
def serving(
    plan: Mapping[str, Sequence[Fault]] | None = None,
    *,
    otherwise: Fault = GOOD,
    key: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> Generator[EndpointServer]:
    """Serve on a free port of loopback, in a thread; with `key`, requests without it get 401."""
    server = EndpointServer(plan or {}, otherwise, key)
    ready, loop = threading.Event(), asyncio.new_event_loop()

    async def run(done: asyncio.Event) -> None:
        listening = await asyncio.start_server(
            server.connected, "127.0.0.1", 0, backlog=512, ssl=tls
        )
        server.port = listening.sockets[0].getsockname()[1]
        ready.set()
        await done.wait()
        listening.close()
        mine = asyncio.current_task()
        for task in asyncio.all_tasks() - {mine}:
            task.cancel()

    done = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(done),), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(30)
        loop.run_until_complete(asyncio.sleep(0))  # what was cancelled ends
        loop.close()
