"""Texts of many requests, judged in small batches by one thread that alone touches the model.

A batch is made of whatever waits when the thread is free, so a request that comes alone is never
held up; where further ones are on their way, it waits for them for some milliseconds at most.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from tsgb.errors import TSGBError
from tsgb.export.loading import LABELS, Assessment, TokenCount
from tsgb.serve.faults import overloaded, too_large
from tsgb.serve.windows import windows

R = TypeVar("R")
BATCH_SIZE = 16
"""Windows that are scored at once."""
_MARGIN = 8
"""Tokens that a tokenizer may add at the edges of a text."""
WAIT_SECONDS = 0.005
"""Longest time that a text waits for others to be scored with."""


class Assessor(Protocol):
    """Judges prompts; `tsgb.export.loading.LoadedGuard` is one. One thread at a time uses it."""

    window: int | None
    """Tokens of the longest input; None if it does not say."""

    def assess(self, prompts: Sequence[str], *, batch_size: int) -> list[Assessment]:
        """Return score, probability and verdict of each prompt."""
        ...

    def count(self, prompts: Sequence[str]) -> list[TokenCount]:
        """Return the size of each prompt."""
        ...


class JudgingError(TSGBError):
    """The guard raised an error on a text, whose words the message does not repeat."""


class TextVerdict(NamedTuple):
    """Verdict on a text: that on its most suspicious window."""

    score: float
    """logit(unsafe) - logit(safe)."""
    probability: float
    """Calibrated probability that it is unsafe."""
    unsafe: bool
    """Whether the score of a window is above the threshold."""
    windows: int
    """Windows that it took."""
    unknown: int
    """Words that the tokenizer does not know."""


class WindowVerdict(NamedTuple):
    """One window, as the guard reads it."""

    found: Assessment
    """Score, probability and verdict."""
    unknown: int
    """Words that the tokenizer does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEvents:
    """Callbacks for measurements."""

    on_batch: Callable[[int, float], None] = lambda _num, _seconds: None
    """Receives the windows and the seconds of each batch."""
    on_waiting: Callable[[int], None] = lambda _num: None
    """Receives the number of windows that wait, when that changes."""


class _Piece(NamedTuple):
    text: str
    """A window of a text."""
    done: asyncio.Future[WindowVerdict]
    """Its verdict."""


class Batcher:
    """Judges texts in batches; `close` finishes what was taken on.

    Example: `verdicts = await batcher.judge(["a prompt", "another one"])`
    """

    def __init__(
        self,
        guard: Assessor,
        *,
        capacity: int,
        batch_size: int = BATCH_SIZE,
        wait_seconds: float = WAIT_SECONDS,
        events: BatchEvents | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            guard: Judges.
            capacity: Windows that may wait; what comes beyond is refused.
            batch_size: Windows of a batch at most.
            wait_seconds: Longest time that a batch waits for requests that are on their way.
            events: Callbacks for measurements.
        """
        self._guard, self._capacity, self._batch_size = guard, capacity, batch_size
        self._wait_seconds = wait_seconds
        self._events = events or BatchEvents()
        self._template = 0 if guard.window is None else guard.count([""])[0].total
        self._waiting: deque[_Piece] = deque()
        self._reserved = 0
        self._expected = 0
        self._changed = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(1, "guard")
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to judge, in the running event loop."""
        self._loop = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Judge what waits, then end."""
        self._closing = True
        self._changed.set()
        if self._loop is not None:
            await self._loop
        self._thread.shutdown()

    @contextmanager
    def expecting(self) -> Generator[None]:
        """Announce that texts are on their way, so that a batch may wait for them."""
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1
            self._changed.set()

    async def judge(self, texts: Sequence[str]) -> list[TextVerdict]:
        """Return a verdict for each text; whoever is cancelled gives its place in the queue back.

        Raises:
            RequestFault: The queue is full, or can never hold so much.
            JudgingError: The guard raised an error.
        """
        self._check_room(len(texts))
        self._reserved += len(texts)
        try:
            cut = await self._windows(texts)
        finally:
            self._reserved -= len(texts)
        pieces = [piece for parts in cut for piece in parts]
        self._check_room(len(pieces))
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in pieces]
        self._waiting.extend(map(_Piece, pieces, futures))
        self._tell()
        try:
            judged: list[WindowVerdict] = await asyncio.gather(*futures)
        finally:
            for future in futures:
                future.cancel()
        verdicts: list[TextVerdict] = []
        for parts in cut:
            own, judged = judged[: len(parts)], judged[len(parts) :]
            verdicts.append(_highest(own))
        return verdicts

    def _check_room(self, num: int) -> None:
        if num > self._capacity:
            raise too_large(f"this takes {num} windows of the guard, {self._capacity} are allowed")
        if self._closing:
            raise overloaded("shutting_down", "this service is about to end")
        if len(self._waiting) + self._reserved + num > self._capacity:
            raise overloaded("queue_full", "too much waits to be judged")

    async def _windows(self, texts: Sequence[str]) -> list[list[str]]:
        """Cut what may be too long; only the guard's thread uses its tokenizer."""
        limit = self._guard.window
        if limit is None or all(_is_short(text, limit - self._template) for text in texts):
            return [[text] for text in texts]

        def count(text: str) -> int:
            return self._guard.count([text])[0].total

        def cut() -> list[list[str]]:
            return [windows(text, count, limit) for text in texts]

        with self.expecting():
            return await self._in_thread(cut)

    async def _in_thread(self, run: Callable[[], R]) -> R:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, run)
        except Exception as error:  # noqa: BLE001 - its words may hold the text
            raise JudgingError(f"the guard raised {type(error).__name__}") from None

    async def _run(self) -> None:
        while True:
            while not self._waiting:
                if self._closing:
                    return
                await self._wait(None)
            await self._gather()
            batch = self._take()
            if not batch:
                continue
            started = time.monotonic()
            results = await self._in_thread(lambda batch=batch: self._judge(batch))
            self._events.on_batch(len(batch), time.monotonic() - started)
            for piece, result in zip(batch, results, strict=True):
                if piece.done.done():
                    continue
                if isinstance(result, JudgingError):
                    piece.done.set_exception(result)
                else:
                    piece.done.set_result(result)

    async def _gather(self) -> None:
        """Wait for requests that are on their way, unless a batch is full."""
        end = time.monotonic() + self._wait_seconds
        while self._expected and len(self._waiting) < self._batch_size and not self._closing:
            left = end - time.monotonic()
            if left <= 0:
                return
            await self._wait(left)

    async def _wait(self, seconds: float | None) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return

    def _take(self) -> list[_Piece]:
        """Take a batch, without what nobody waits for any more."""
        batch: list[_Piece] = []
        while self._waiting and len(batch) < self._batch_size:
            piece = self._waiting.popleft()
            if not piece.done.done():
                batch.append(piece)
        self._tell()
        return batch

    def _tell(self) -> None:
        self._events.on_waiting(len(self._waiting))
        self._changed.set()

    def _judge(self, batch: Sequence[_Piece]) -> list[WindowVerdict | JudgingError]:
        """Judge a batch in the guard's thread; a text that fails does not fail the others."""
        texts = [piece.text for piece in batch]
        try:
            found = self._guard.assess(texts, batch_size=len(texts))
            sizes = self._guard.count(texts)
            return [
                WindowVerdict(one, size.unknown) for one, size in zip(found, sizes, strict=True)
            ]
        except Exception as error:  # noqa: BLE001 - its words may hold the text
            if len(batch) == 1:
                return [JudgingError(f"the guard raised {type(error).__name__}")]
            return [result for piece in batch for result in self._judge([piece])]


def _is_short(text: str, room: int) -> bool:
    """Tell whether a text takes at most so many tokens, without a tokenizer.

    A letter of ASCII is at most one token; another one is at most a token a byte, after a
    normalisation that makes eleven times as many bytes of it at worst (U+FDFA by NFKC).
    """
    most = len(text) if text.isascii() else 11 * len(text.encode())
    return most + _MARGIN <= room


def _highest(judged: Sequence[WindowVerdict]) -> TextVerdict:
    highest = max((one.found for one in judged), key=lambda found: found.score)
    return TextVerdict(
        highest.score,
        highest.probability,
        highest.verdict == LABELS[0],
        len(judged),
        max(one.unknown for one in judged),
    )
