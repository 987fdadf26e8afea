"""Server-sent events, as chat services stream them: read in bounded memory, and written."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from typing import Any

DONE = "[DONE]"
"""Data of the event that ends a stream."""
MAX_EVENT_BYTES = 1 << 20
"""Bytes of the longest event."""


class StreamError(Exception):
    """A stream that cannot be read on; its words hold nothing of the stream."""


async def read_events(chunks: AsyncIterable[bytes]) -> AsyncGenerator[str]:
    """Yield the data of each event, wherever the chunks were split.

    An event that has not ended when the stream does is no event, by the standard.

    Raises:
        StreamError: An event is too long, or not UTF-8.
    """
    line, data, size = bytearray(), list[bytes](), 0
    after_return = False
    async for chunk in chunks:
        for byte in chunk:
            if byte == 10 and after_return:
                after_return = False
                continue
            after_return = byte == 13
            if byte not in {10, 13}:
                line.append(byte)
                size += 1
                if size > MAX_EVENT_BYTES:
                    raise StreamError("an event is too long")
                continue
            if line:
                name, _, value = bytes(line).partition(b":")
                if name == b"data":
                    data.append(value.removeprefix(b" "))
                line.clear()
                continue
            if data:
                yield _decoded(b"\n".join(data))
            data, size = [], 0


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise StreamError("an event is not UTF-8") from None


def event(document: Mapping[str, Any] | str) -> bytes:
    """Return an event with a JSON document, or with a text that has no line ends."""
    data = document if isinstance(document, str) else json.dumps(document, ensure_ascii=True)
    return f"data: {data}\n\n".encode()
