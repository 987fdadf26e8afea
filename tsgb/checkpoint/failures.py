"""Failures of a store: classified once and retried once, in the same way for every backend.

The jitter comes from the operating system: tenacity's own draws from the global `random`, and so
would change what a training run samples after an outage.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from random import SystemRandom
from typing import TypeVar

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay

from tsgb.errors import StoreError, StoreFull, StoreUnreachable

_TRANSIENT_STATUS = frozenset({408, 423, 425, 429})
_PERMANENT_SERVER_STATUS = frozenset({501, 505})
_TRANSIENT_ERRNO = frozenset(
    {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
)
FIRST_CONTACT_SECONDS = 20.0
"""Seconds to go on trying a server that has never answered this process. A wrong address is far
more likely than an outage then, nothing is lost yet, and somebody waits for the answer; a server
that is just being started, or a disk that spins up, takes less."""
_FIRST_TIMEOUT = httpx.Timeout(10)
"""Timeout of one try at such a server: something else may listen there and never answer."""
_TIMEOUT = httpx.Timeout(connect=10, read=300, write=60, pool=60)
_ANSWERED: set[str] = set()
"""Servers that have answered this process: a fact about the process, whoever opened the store."""
_T = TypeVar("_T")


class HTTPFailure(Exception):  # noqa: N818 - it is a fact that is yet to be judged
    """A server answered with this status instead of doing what was asked."""

    def __init__(self, status: int, meaning: str = "") -> None:
        """Describe it.

        Args:
            status: HTTP status.
            meaning: What it means and what to do, where more than the status is known.
        """
        super().__init__(f"HTTP {status}")
        self.status = status
        self.meaning = meaning


class _TransientError(Exception):
    """A failure that may heal; the message is the reason."""


def _wait_seconds(state: RetryCallState) -> float:
    """Full jitter, 0.25 s doubling up to 20 s, from the operating system's generator."""
    return SystemRandom().uniform(0, min(20.0, 0.25 * 2 ** min(state.attempt_number, 10)))


@dataclass(frozen=True, slots=True)
class StoreRetry:
    """Runs an operation until it succeeds, fails for good, or its time is over."""

    deadline_seconds: float
    """Seconds that one call may go on; a try that hangs is ended by its own timeout."""
    sleep: Callable[[float], None]
    """Waits so many seconds between two tries."""
    server: str = ""
    """Scheme, host and port of the server; empty for a disk of this machine."""
    first_contact_seconds: float = FIRST_CONTACT_SECONDS
    """Seconds that take the place of the deadline, if fewer, until the server has answered."""

    @property
    def answered(self) -> bool:
        """Whether the server ever gave this process a definite answer, be it a refusal."""
        return not self.server or self.server in _ANSWERED

    @property
    def timeout(self) -> httpx.Timeout:
        """Timeout of one try over HTTP."""
        return _TIMEOUT if self.answered else _FIRST_TIMEOUT

    def __call__(self, where: str, operation: Callable[[], _T]) -> _T:
        """Return what the operation returns.

        Args:
            where: The file or directory that it works on, for messages.
            operation: May be run again from its start at any time.

        Raises:
            FileNotFoundError: A definite answer that it is not there.
            StoreFull: No space.
            StoreUnreachable: What may heal did not in time.
            StoreError: All else.
        """
        seconds = self.deadline_seconds
        if not self.answered:
            seconds = min(seconds, self.first_contact_seconds)

        def classified() -> _T:
            try:
                done = operation()
            except StoreError:  # judged by the operation
                _ANSWERED.add(self.server)
                raise
            except Exception as error:
                judged = _classify(error, where)
                if not isinstance(judged, _TransientError):
                    _ANSWERED.add(self.server)
                raise judged from error
            _ANSWERED.add(self.server)
            return done

        retrying = Retrying(
            sleep=self.sleep,
            stop=stop_before_delay(seconds),
            wait=_wait_seconds,
            retry=retry_if_exception_type(_TransientError),
            reraise=True,
        )
        try:
            return retrying(classified)
        except _TransientError as error:
            raise StoreUnreachable(
                f"{where} cannot be reached: {error}; gave up after retrying for "
                f"{seconds:g} s. Check the address and the server, then start again"
            ) from error


def _classify(error: Exception, where: str) -> Exception:
    """Return the one of the four kinds that a `FileSystem` promises, or a transient error."""
    if isinstance(error, HTTPFailure):
        return _classify_status(error, where)
    certificate = _certificate_problem(error)
    if certificate is not None:
        return StoreError(
            f"{where}: its certificate is not trusted ({certificate}): if it is your server, set "
            "SSL_CERT_FILE to a file with its certificate"
        )
    if isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol):
        return _TransientError(f"{type(error).__name__}: {error}")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "no such file or directory in the store", where)
    if isinstance(error, OSError):
        return _classify_os(error, where)
    return StoreError(
        f"{where} gave an answer that makes no sense ({type(error).__name__}: "
        f"{one_line(error)}): check that the URL is a store of a kind that TSGB knows"
    )


def _certificate_problem(error: BaseException | None) -> str | None:
    """Return why TLS refused the server, which no retry heals; None if that did not happen."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None


_STATUS_MEANING = {
    401: "user or password refused (HTTP 401): set RCLONE_WEBDAV_USER and RCLONE_WEBDAV_PASS",
    403: "this user may not do that (HTTP 403): grant read and write, or choose another store",
    413: "too large for the server (HTTP 413): raise its limit on request bodies",
}


def _classify_status(error: HTTPFailure, where: str) -> Exception:
    status = error.status
    if status in {404, 410}:
        return FileNotFoundError(errno.ENOENT, "no such file or directory in the store", where)
    if status == 507:
        return StoreFull(f"{where}: no space left on the server (HTTP 507): free some, then go on")
    if status in _TRANSIENT_STATUS or (status >= 500 and status not in _PERMANENT_SERVER_STATUS):
        return _TransientError(f"HTTP {status}")
    meaning = f"refused with HTTP {status}: check that this is a WebDAV directory"
    return StoreError(f"{where}: {error.meaning or _STATUS_MEANING.get(status, meaning)}")


def _classify_os(error: OSError, where: str) -> Exception:
    reason = error.strerror or one_line(error) or type(error).__name__
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StoreFull(f"{where}: no space left ({reason}): free some, then go on")
    if isinstance(error, (ConnectionError, TimeoutError)) or error.errno in _TRANSIENT_ERRNO:
        return _TransientError(reason)
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return StoreError(
            f"{where}: {reason}: TSGB must read and write there; choose another store"
        )
    return StoreError(f"{where}: {reason}: check the path")


def cannot_open(url: str, error: Exception) -> StoreError:
    """Return the error for a URL that fsspec cannot open."""
    package = getattr(error.__cause__, "name", None)
    if isinstance(error, ImportError) and package:
        return StoreError(
            f"store URL {url} needs the package {package}, which is not installed: "
            f"uv pip install {package}"
        )
    return StoreError(
        f"store URL {url} cannot be opened ({one_line(error)}): use a path, file://, "
        "webdav+https:// or a protocol whose fsspec package is installed"
    )


def one_line(error: Exception) -> str:
    """Return at most 200 characters of a foreign error's message, without line breaks."""
    return " ".join(str(error).split())[:200]
