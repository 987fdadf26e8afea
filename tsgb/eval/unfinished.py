"""Evaluations that must ask anew, and that the same command goes on with until they are finished.

A class that declares no `name` and `version`, and `--fresh`, give an evaluation an identity of its
own, by random tokens. A file on this machine keeps them while there is no valid report, or a
killed command would begin another evaluation, and ask all again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from tsgb.checkpoint.documents import canonical_json, parse_json_object
from tsgb.checkpoint.manifest import sha256_hex
from tsgb.logging import get_logger

DIRECTORY = "unfinished"
"""Name of the directory in that of the response logs."""
FRESH = "fresh"
"""Key of the token of `--fresh` among the identities."""
ANEW = "asked"
"""Key of the token of a class that declares nothing."""


class UnfinishedEvaluation:
    """The record of one question; it exists from the first command to the valid report.

    Example: `UnfinishedEvaluation(cache_dir / "responses", {"guard": "ab12"}, identities).join()`
    """

    def __init__(
        self,
        directory: Path,
        question: Mapping[str, Any],
        identities: Mapping[str, Any],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Write nothing yet.

        Args:
            directory: Directory of the response logs.
            question: What is evaluated, without the user's classes.
            identities: Of the user's classes, as `Additions.identities` gives them.
            now: Time of the first command.
        """
        self._identities = dict(identities)
        lasting = {name: _lasting(value) for name, value in identities.items() if name != FRESH}
        digest = sha256_hex(canonical_json({"question": dict(question), "classes": lasting}))
        self._path = directory / DIRECTORY / f"{digest[:32]}.json"
        self._now = now

    def join(self) -> dict[str, Any]:
        """Return the identities of the evaluation: those of an unfinished one, or the given ones.

        `--fresh` always begins another one.
        """
        if FRESH not in self._identities:
            begun = self._read()
            if begun is not None:
                since, identities = begun
                get_logger().info(
                    f"going on with the evaluation that began at {since}; --fresh begins anew"
                )
                return identities
        if FRESH in self._identities or any(map(_is_anew, self._identities.values())):
            self._write()
        return self._identities

    def finish(self) -> None:
        """Forget it: the next command that must ask anew does."""
        with suppress(OSError):
            self._path.unlink()

    def _read(self) -> tuple[str, dict[str, Any]] | None:
        try:
            content = parse_json_object(self._path.read_bytes())
        except (OSError, ValueError):
            return None
        since, identities = content.get("since"), content.get("identities")
        if not isinstance(since, str) or not isinstance(identities, dict):
            return None
        return since, cast("dict[str, Any]", identities)

    def _write(self) -> None:
        content = {"since": f"{self._now():%Y-%m-%d %H:%M} UTC", "identities": self._identities}
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        with suppress(OSError):  # then a killed command asks all again, and nothing worse
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_bytes(canonical_json(content))
            temporary.replace(self._path)


def _is_anew(identity: object) -> bool:
    return isinstance(identity, Mapping) and ANEW in identity


def _lasting(identity: object) -> object:
    """Return what two commands about the same class have in common."""
    if not isinstance(identity, Mapping):
        return identity
    known = cast("Mapping[str, Any]", identity)
    return {name: value for name, value in known.items() if name != ANEW}
