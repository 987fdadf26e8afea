"""A streamed answer closes what it opened: at its end, on an error, and when the client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.types import Message

from tsgb.serve.streaming import PiecewiseResponse


class Exchange:
    """A client that goes away after a number of pieces, and what it got."""

    def __init__(self, gone_after: int | None = None) -> None:
        self.sent: list[Message] = []
        self.closed = 0
        self._gone_after, self._gone = gone_after, asyncio.Event()

    async def receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if len(self.sent) == self._gone_after:
            self._gone.set()

    async def close(self) -> None:
        await asyncio.sleep(0)  # closing a connection waits
        await asyncio.sleep(0)
        self.closed += 1

    async def run(self, pieces: AsyncGenerator[bytes]) -> None:
        response = PiecewiseResponse(pieces, self.close, {"x-a": "b"}, "text/event-stream")
        await response({}, self.receive, self.send)


async def pieces(*, end: Any = None) -> AsyncGenerator[bytes]:
    yield b"one"
    yield b""
    yield b"two"
    if end == "hang":
        await asyncio.Event().wait()
    if end is not None:
        raise end


def test_the_whole_answer() -> None:
    async def run() -> None:
        exchange = Exchange()
        await exchange.run(pieces())
        start, *rest = exchange.sent
        headers = dict(start["headers"])
        assert (start["status"], headers[b"x-a"]) == (200, b"b")
        assert b"content-length" not in headers
        assert [m["body"] for m in rest] == [b"one", b"two", b""]
        assert [m["more_body"] for m in rest] == [True, True, False]
        assert exchange.closed == 1

    asyncio.run(run())


def test_a_client_that_is_gone() -> None:
    async def run() -> None:
        exchange = Exchange(gone_after=3)
        await exchange.run(pieces(end="hang"))
        assert [m.get("body") for m in exchange.sent] == [None, b"one", b"two"]
        assert exchange.closed == 1

    asyncio.run(run())


def test_an_error_and_a_server_that_ends() -> None:
    async def run() -> None:
        exchange = Exchange()
        with pytest.raises(ValueError, match="broken"):
            await exchange.run(pieces(end=ValueError("broken")))
        assert exchange.closed == 1
        ended = Exchange()
        task = asyncio.create_task(ended.run(pieces(end="hang")))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (ended.closed, len(ended.sent)) == (1, 3)

    asyncio.run(run())
