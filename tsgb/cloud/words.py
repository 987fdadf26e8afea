"""Reading what a machine says of itself: heartbeats and exit records are another process's JSON.

A field that is missing or of another kind says nothing; it is never an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast


def arms(word: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What it says of each arm."""
    found: object = word.get("arms")
    if not isinstance(found, Mapping):
        return {}
    named = cast("Mapping[object, object]", found)
    return {
        str(name): cast("Mapping[str, Any]", arm)
        for name, arm in named.items()
        if isinstance(arm, Mapping)
    }


def number(fields: Mapping[str, Any], name: str) -> int:
    """A count; 0 if it says none."""
    found = fields.get(name)
    return found if isinstance(found, int) and found > 0 else 0


def durable_step(arm: Mapping[str, Any]) -> int:
    """Updates that are safe in the store; all of them where it does not tell them apart."""
    return number(arm, "durable_step" if "durable_step" in arm else "step")


def durable_steps(word: Mapping[str, Any]) -> int:
    """Of all arms together."""
    return sum(durable_step(arm) for arm in arms(word).values())


def moment(word: Mapping[str, Any] | None, name: str) -> datetime | None:
    """A time of day, on the machine's own clock."""
    try:
        found = datetime.fromisoformat(str((word or {})[name]))
    except (KeyError, ValueError):
        return None
    return found if found.tzinfo is not None else None
