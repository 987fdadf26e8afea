"""Many callers share batches, a bounded queue and one thread; each gets its own verdict."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fakes.word_guard import WordGuard
from tsgb.serve.batching import Batcher, BatchEvents, JudgingError
from tsgb.serve.faults import RequestFault


@asynccontextmanager
async def running(guard: WordGuard, **options: Any) -> AsyncGenerator[Batcher]:
    batcher = Batcher(guard, **{"capacity": 128, **options})
    batcher.start()
    try:
        yield batcher
    finally:
        await batcher.close()


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(body())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - another thread makes it true
            await asyncio.sleep(0.001)


def test_verdicts_are_those_of_the_texts_in_their_order() -> None:
    guard = WordGuard()

    async def body() -> None:
        async with running(guard) as batcher:
            asked = [[f"text {i}", "bad " * (i % 3)] for i in range(40)]
            found = await asyncio.gather(*map(batcher.judge, asked))
        for i, (first, second) in enumerate(found):
            assert (first.unsafe, first.score) == (False, 0)
            assert (second.unsafe, second.score) == (i % 3 > 0, i % 3)
        assert max(map(len, guard.batches)) == 16
        assert len(guard.threads) == 1

    run(body)


def test_a_text_longer_than_the_window_is_as_suspicious_as_its_worst_window() -> None:
    guard = WordGuard(window=10)

    async def body() -> None:
        async with running(guard) as batcher:
            long = " ".join(["fine"] * 30 + ["bad"] + ["fine"] * 30 + ["xyzzy"])
            [found, short] = await batcher.judge([long, "fine"])
        assert found.unsafe
        assert found.windows > 6
        assert found.unknown == 1
        assert (short.unsafe, short.windows, short.unknown) == (False, 1, 0)

    run(body)


@pytest.mark.parametrize(
    ("window", "text"),
    [
        pytest.param(None, "x", id="any length"),
        pytest.param(50, "x", id="short"),
        pytest.param(50, "x " * 40, id="counted"),
        pytest.param(50, "é " * 3, id="not ASCII"),
    ],
)
def test_what_comes_while_a_batch_is_computed_makes_the_next_one(
    window: int | None, text: str
) -> None:
    """Also where only the thread that computes can tell how long a text is."""
    guard = WordGuard(window=window, count_seconds=0.005)

    async def body() -> None:
        async with running(guard, wait_seconds=60.0) as batcher:
            with guard.hangs:
                first = asyncio.create_task(batcher.judge(["first"]))
                await until(lambda: guard.begun > 0)
                rest = [asyncio.create_task(batcher.judge([f"{text} {i}"])) for i in range(5)]
                await asyncio.sleep(0)
            await asyncio.gather(first, *rest)
        assert [len(batch) for batch in guard.batches] == [1, 5]

    run(body)


def test_a_batch_waits_for_a_request_that_is_on_its_way() -> None:
    guard = WordGuard()

    async def body() -> None:
        async with running(guard, wait_seconds=60.0) as batcher:
            with batcher.expecting():
                first = asyncio.create_task(batcher.judge(["first"]))
                await asyncio.sleep(0.02)
                assert guard.batches == []
                second = asyncio.create_task(batcher.judge(["second"]))
                await asyncio.sleep(0)
            await asyncio.gather(first, second)
        assert guard.batches == [["first", "second"]]

    run(body)


def test_a_full_queue_refuses_and_recovers() -> None:
    guard, depths = WordGuard(), list[int]()

    async def body() -> None:
        events = BatchEvents(on_waiting=depths.append)
        async with running(guard, capacity=3, batch_size=1, events=events) as batcher:
            with guard.hangs:
                first = asyncio.create_task(batcher.judge(["first"]))
                await until(lambda: bool(guard.threads))
                waiting = [asyncio.create_task(batcher.judge(["x"])) for _ in range(3)]
                await asyncio.sleep(0)
                with pytest.raises(RequestFault, match="too much waits") as refused:
                    await batcher.judge(["one more"])
                assert (refused.value.status, refused.value.headers["retry-after"]) == (503, "1")
                with pytest.raises(RequestFault, match="takes 4 windows") as large:
                    await batcher.judge(["x"] * 4)
                assert large.value.status == 413
                waiting[0].cancel()
                await asyncio.gather(*waiting[:1], return_exceptions=True)
            await asyncio.gather(first, *waiting[1:])
            assert len(await batcher.judge(["x"] * 3)) == 3
        assert max(depths) == 3
        assert depths[-1] == 0
        assert len(guard.batches) == 6, "whoever was cancelled is not scored"

    run(body)


def test_a_text_that_the_guard_fails_on_fails_alone_and_is_not_repeated() -> None:
    guard = WordGuard()

    async def body() -> None:
        async with running(guard) as batcher:
            with guard.hangs:
                first = asyncio.create_task(batcher.judge(["first"]))
                await until(lambda: bool(guard.threads))
                others = [asyncio.create_task(batcher.judge([t])) for t in ("a", "raise", "bad")]
                await asyncio.sleep(0)
            found = await asyncio.gather(first, *others, return_exceptions=True)
        assert isinstance(found[2], JudgingError)
        assert str(found[2]) == "the guard raised ValueError"
        assert found[2].__cause__ is None
        assert [one[0].unsafe for i, one in enumerate(found) if i != 2] == [False, False, True]

    run(body)


def test_the_end_judges_what_waits_and_takes_no_more() -> None:
    guard = WordGuard()

    async def body() -> None:
        async with running(guard, batch_size=1) as batcher:
            guard.hangs.acquire()
            tasks = [asyncio.create_task(batcher.judge([f"{i}"])) for i in range(4)]
            await until(lambda: bool(guard.threads))
            closing = asyncio.create_task(batcher.close())
            await asyncio.sleep(0)
            with pytest.raises(RequestFault, match="about to end"):
                await batcher.judge(["late"])
            guard.hangs.release()
            await closing
            assert all(task.done() and not task.cancelled() for task in tasks)
            assert len(guard.batches) == 4

    run(body)
