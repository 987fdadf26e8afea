"""Every failure of a store has one meaning; what may heal is retried, to a deadline."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from contextlib import suppress

import httpx
import pytest

from tsgb.checkpoint.failures import HTTPFailure, StoreRetry
from tsgb.errors import StoreError, StoreFull, StoreUnreachable


def failing(error: Exception) -> Callable[[], bytes]:
    def operation() -> bytes:
        raise error

    return operation


class TestClassification:
    @pytest.mark.parametrize(
        ("error", "expected", "words"),
        [
            (FileNotFoundError(errno.ENOENT, "gone"), FileNotFoundError, "the-place"),
            (HTTPFailure(404), FileNotFoundError, "the-place"),
            (OSError(errno.ENOSPC, "No space left on device"), StoreFull, "free some"),
            (OSError(errno.EDQUOT, "Quota exceeded"), StoreFull, "free some"),
            (HTTPFailure(507), StoreFull, "507"),
            (PermissionError(errno.EACCES, "Permission denied"), StoreError, "read and write"),
            (OSError(errno.EROFS, "Read-only file system"), StoreError, "another store"),
            (HTTPFailure(401), StoreError, "RCLONE_WEBDAV_USER"),
            (HTTPFailure(403), StoreError, "grant"),
            (HTTPFailure(413), StoreError, "too large"),
            (HTTPFailure(405), StoreError, "WebDAV"),
            (HTTPFailure(501), StoreError, "501"),
            (httpx.UnsupportedProtocol("x"), StoreError, "no sense"),
            (KeyError("surprise\nin two lines"), StoreError, "no sense"),
        ],
        ids=lambda value: repr(value)[:40] if isinstance(value, Exception) else "",
    )
    def test_definite_errors_are_raised_at_once(
        self, error: Exception, expected: type[Exception], words: str
    ) -> None:
        retries = StoreRetry(60.0, sleep=lambda _seconds: pytest.fail("no retry can heal this"))
        with pytest.raises(expected) as caught:
            retries("the-place", failing(error))
        assert type(caught.value) is expected
        assert "the-place" in str(caught.value)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "error",
        [
            *(HTTPFailure(status) for status in (408, 423, 425, 429, 500, 502, 503, 504, 509)),
            httpx.ConnectError("refused"),
            httpx.ReadTimeout("slow"),
            httpx.RemoteProtocolError("cut"),
            ConnectionResetError(errno.ECONNRESET, "reset"),
            TimeoutError("slow"),
            OSError(errno.ESTALE, "stale"),
        ],
        ids=repr,
    )
    def test_what_can_heal_is_retried(self, error: Exception) -> None:
        pauses: list[float] = []
        answers = iter([error, error, None])

        def operation() -> str:
            answer = next(answers)
            if answer is not None:
                raise answer
            return "healed"

        assert StoreRetry(60.0, pauses.append)("the-place", operation) == "healed"
        assert len(pauses) == 2
        assert all(0 <= pause <= 2 for pause in pauses)
        with pytest.raises(StoreError, match=r"the-place cannot be reached: .* gave up") as caught:
            StoreRetry(0.0, pauses.append)("the-place", failing(error))
        assert "\n" not in str(caught.value)

    def test_gives_up_at_the_deadline(self) -> None:
        pauses: list[float] = []
        with pytest.raises(StoreError, match=r"retrying for 0\.05 s"):
            StoreRetry(0.05, pauses.append)("x", failing(httpx.ConnectError("refused")))
        assert sum(pauses) <= 0.05 * len(pauses)

    def test_who_never_answered_is_given_up_soon(self) -> None:
        retries = StoreRetry(3600.0, lambda _seconds: None, "https://nobody.test", 0.0)
        for _ in range(2):
            with pytest.raises(StoreUnreachable, match=r"gave up after retrying for 0 s\. Check"):
                retries("the-place", failing(httpx.ConnectError("refused")))

    @pytest.mark.parametrize(
        "answer",
        [None, HTTPFailure(404), HTTPFailure(507), HTTPFailure(401)],
        ids=["done", "missing", "full", "refused"],
    )
    def test_who_ever_answered_is_waited_for(self, answer: Exception | None) -> None:
        server = f"https://{answer}.test"
        first = StoreRetry(3600.0, pytest.fail, server, 0.0)
        with suppress(StoreError, FileNotFoundError):
            first("the-place", lambda: b"" if answer is None else failing(answer)())

        pauses: list[float] = []
        left = iter([httpx.ConnectError("refused")] * 30)

        def operation() -> str:
            for error in left:
                raise error
            return "healed"

        # By whoever asks: a flow opens a store anew for each look at it.
        assert StoreRetry(3600.0, pauses.append, server, 0.0)("x", operation) == "healed"
        assert len(pauses) == 30

    def test_the_global_generator_is_left_alone(self) -> None:
        # tenacity's own jitter would change it, and with it what a run samples after an outage.
        before = random.getstate()
        answers = iter([HTTPFailure(503)] * 5)

        def operation() -> None:
            for answer in answers:
                raise answer

        StoreRetry(60.0, sleep=lambda _seconds: None)("x", operation)
        assert random.getstate() == before

    def test_interrupts_pass(self) -> None:
        def operation() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            StoreRetry(60.0, sleep=lambda _seconds: None)("x", operation)
