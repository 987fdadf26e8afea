"""A line for each verdict, without its text: an HMAC tells whether two verdicts are on one text.

The key of the HMAC belongs to the installation, so nobody can tell by a list of likely texts what
was asked. Whoever has the key and a text can find its verdicts.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from tsgb.errors import UsageError
from tsgb.serve.batching import TextVerdict
from tsgb.serve.journal import OWNER_ONLY, Journal

MAX_BYTES = 64 << 20
"""Size at which an audit log is set aside."""
KEPT = 5
"""Logs that are kept beside the present one."""
_KEY_BYTES = 32


class RequestContext(NamedTuple):
    """The request that is under way."""

    route: str
    """Name of its route."""
    request_id: str
    """Its id, which its answer has too."""


CURRENT: ContextVar[RequestContext | None] = ContextVar("CURRENT", default=None)
"""The request of the running task, and of those that it started."""


class AuditLog:
    """Verdicts as JSON lines, without texts."""

    def __init__(
        self,
        path: Path,
        *,
        guard: str,
        threshold: float,
        max_bytes: int = MAX_BYTES,
        kept: int = KEPT,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Open the log, and its key: the file of that name with `.key` at its end.

        Args:
            path: File of the log.
            guard: Name of the guard.
            threshold: Score above which it says unsafe.
            max_bytes: Size at which the log is set aside.
            kept: Logs that are kept beside it.
            clock: Gives the time.

        Raises:
            UsageError: A file cannot be written, or the key is none.
        """
        self._journal = Journal(path, max_bytes=max_bytes, kept=kept)
        self._key = read_key(path.with_name(f"{path.name}.key"))
        self._about = {"guard": guard, "threshold": threshold}
        self._clock = clock

    @property
    def lost(self) -> int:
        """Lines that could not be written."""
        return self._journal.lost

    def write(self, text: str, verdict: TextVerdict, stage: str) -> None:
        """Write the verdict on a text of the current request."""
        request = CURRENT.get()
        self._journal.write(
            {
                "time": self._clock().isoformat(timespec="milliseconds"),
                "request": None if request is None else request.request_id,
                "route": None if request is None else request.route,
                "stage": stage,
                "verdict": "unsafe" if verdict.unsafe else "safe",
                "score": round(verdict.score, 6),
                **self._about,
                "windows": verdict.windows,
                "unknown_words": verdict.unknown,
                "hmac_sha256": self.fingerprint(text),
            }
        )

    def fingerprint(self, text: str) -> str:
        """Return the HMAC of a text."""
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    def close(self) -> None:
        """Close the log."""
        self._journal.close()


def read_key(path: Path) -> bytes:
    """Return the key of this installation, made now if there is none.

    Raises:
        UsageError: It cannot be had, or others may read it.
    """
    try:
        try:
            made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY)
        except FileExistsError:
            pass
        else:
            with os.fdopen(made, "w") as file:
                file.write(secrets.token_hex(_KEY_BYTES))
        if path.stat().st_mode & 0o077:
            raise UsageError(f"{path}: others may read this key: chmod 600 it")
        text = path.read_text("ascii")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}: the audit log needs its key") from None
    except UnicodeDecodeError:
        text = ""
    if re.fullmatch(rf"[0-9a-f]{{{2 * _KEY_BYTES}}}", text) is None:
        raise UsageError(f"{path} holds no key: remove it, and a new one is made")
    return bytes.fromhex(text)
