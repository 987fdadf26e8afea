"""Names in a run's directory: claims and checkpoints, and the order among them.

claims/a0003-0001b2c4                      attempt 3, its first start
checkpoints/step-00001200-a0003-0001b2c4/  its save after update 1200
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

CHECKPOINTS = "checkpoints"
CLAIMS = "claims"
_CHECKPOINT_NAME = re.compile(r"^step-(\d{8,})-a(\d{4,})-([0-9a-f]{8})$")
_CLAIM_NAME = re.compile(r"^a(\d{4,})-([0-9a-f]{8})$")
_STARTS_LIMIT = 0xFFF


@dataclass(frozen=True, slots=True, order=True)
class FencingToken:
    """Who may write: the highest one. A later start of one attempt draws a higher writer."""

    attempt: int
    writer: str

    @property
    def name(self) -> str:
        """As it is spelled in the store."""
        return f"a{self.attempt:04d}-{self.writer}"

    @classmethod
    def parse(cls, name: str) -> FencingToken | None:
        """None for any other file."""
        match = _CLAIM_NAME.match(name)
        return match and cls(int(match[1]), match[2])


@dataclass(frozen=True, slots=True, order=True)
class CheckpointName:
    """A checkpoint directory; the order is that of age, newest highest."""

    attempt: int
    step: int
    writer: str

    @property
    def name(self) -> str:
        """As it is spelled in the store."""
        return f"step-{self.step:08d}-a{self.attempt:04d}-{self.writer}"

    @property
    def claim(self) -> FencingToken:
        """Of the process that wrote it."""
        return FencingToken(self.attempt, self.writer)

    @classmethod
    def parse(cls, name: str) -> CheckpointName | None:
        """None for any other directory."""
        match = _CHECKPOINT_NAME.match(name)
        return match and cls(int(match[2]), int(match[1]), match[3])


def next_claim(seen: Iterable[FencingToken], attempt: int) -> FencingToken | None:
    """A claim of this attempt that outranks all seen ones; None when its starts are used up.

    A machine may start its process again, and the later start must win. So the first three digits
    of a writer count the starts of its attempt; the other five make it unique.
    """
    starts = max((int(c.writer[:3], 16) + 1 for c in seen if c.attempt == attempt), default=0)
    if starts > _STARTS_LIMIT:
        return None
    return FencingToken(attempt, f"{starts:03x}{secrets.token_hex(3)[:5]}")
