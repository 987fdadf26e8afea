"""Events are the same wherever a stream was split."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.serve.sse import MAX_EVENT_BYTES, StreamError, event, read_events


def read(chunks: Sequence[bytes]) -> list[str]:
    async def source() -> AsyncGenerator[bytes]:
        for chunk in chunks:
            yield chunk

    async def run() -> list[str]:
        return [data async for data in read_events(source())]

    return asyncio.run(run())


STREAM = (
    ": comment\n\ndata: one\n\nevent: x\r\ndata:two\r\n\r\ndata: thr\ndata: ee é\n\n"
    'id: 7\n\ndata: {"a": "b\\n"}\r\rdata: [DONE]\n\ndata: cut off'
).encode()
EVENTS = ["one", "two", "thr\nee é", '{"a": "b\\n"}', "[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_split(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[a:b] for a, b in pairwise(places)]
    assert read(chunks) == EVENTS


def test_what_is_written_is_read() -> None:
    document = event({"a": "line\nline\r\u2028 é"})
    [one] = read([document])
    assert one == '{"a": "line\\nline\\r\\u2028 \\u00e9"}'


@pytest.mark.parametrize("stream", [b"data: " + b"x" * MAX_EVENT_BYTES, b"data: \xff\n\n"])
def test_what_cannot_be_read(stream: bytes) -> None:
    with pytest.raises(StreamError):
        read([stream])
