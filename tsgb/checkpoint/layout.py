"""Names in a run's directory: fencing tokens and checkpoints, and the order among them.

claims/a0003-0001b2c4                      attempt 3, its first start
checkpoints/step-00001200-a0003-0001b2c4/  its save after update 1200
parts/<sha256>-a0003-0001b2c4              a part of checkpoints, which that start wrote once
attempts/0003.json                         a document about attempt 3
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

TRAINING_DATA = "training_data.jsonl"
"""Document with the user's prompts that a guard learns from; few runs have one."""
STATE_FILE = "trainer_state.json"
"""File of a checkpoint with all of the trainer's state that is no tensor."""
KEEP_CHECKPOINTS = 3
"""Number of newest checkpoints that stay in a store."""
CHECKPOINTS = "checkpoints"
CLAIMS = "claims"
METRICS = "metrics.jsonl"
"""Path of the metrics in a run, one JSON object a line."""
PARTS = "parts"
_CHECKPOINT_NAME = re.compile(r"step-(\d{8,12})-a(\d{4,6})-([0-9a-f]{8})", re.ASCII)
_PART_NAME = re.compile(r"([0-9a-f]{64})-(a\d{4,6}-[0-9a-f]{8})", re.ASCII)
_TOKEN_NAME = re.compile(r"a(\d{4,6})-([0-9a-f]{8})", re.ASCII)
_ATTEMPT_DOCUMENT = re.compile(r"(\d{4,6})\.json", re.ASCII)
_STARTS_LIMIT = 0xFFF


@dataclass(frozen=True, slots=True, order=True)
class FencingToken:
    """Permission to write to a run: the process with the highest one in the store has it.

    Each process writes its token as a file below `claims/`. A later start of one attempt draws a
    higher `writer`.
    """

    attempt: int
    """Number of the attempt."""
    writer: str
    """Eight hexadecimal digits, unique to the process."""

    @property
    def name(self) -> str:
        """File name in the store."""
        return f"a{self.attempt:04d}-{self.writer}"

    @classmethod
    def parse(cls, name: str) -> FencingToken | None:
        """Return the token that a file name spells; None for any other file."""
        match = _TOKEN_NAME.fullmatch(name)
        return match and cls(int(match[1]), match[2])


@dataclass(frozen=True, slots=True, order=True)
class CheckpointName:
    """Name of a checkpoint's directory; the order is that of age, newest highest."""

    attempt: int
    """Number of the attempt that wrote it."""
    step: int
    """Updates done when it was saved."""
    writer: str
    """Eight hexadecimal digits, unique to the process that wrote it."""

    @property
    def name(self) -> str:
        """Directory name in the store."""
        return f"step-{self.step:08d}-a{self.attempt:04d}-{self.writer}"

    @property
    def token(self) -> FencingToken:
        """Fencing token of the process that wrote it."""
        return FencingToken(self.attempt, self.writer)

    @classmethod
    def parse(cls, name: str) -> CheckpointName | None:
        """Return what a directory name spells; None for any other directory."""
        match = _CHECKPOINT_NAME.fullmatch(name)
        return match and cls(int(match[2]), int(match[1]), match[3])


@dataclass(frozen=True, slots=True)
class PartName:
    """File name of a part: its content's hash, and the process that wrote this copy of it."""

    sha256: str
    """Hash of the content, as 64 hexadecimal digits."""
    token: FencingToken
    """Fencing token of the process that wrote it; no other process ever writes that file."""

    @property
    def name(self) -> str:
        """File name in the store."""
        return f"{self.sha256}-{self.token.name}"

    @classmethod
    def parse(cls, name: str) -> PartName | None:
        """Return the part that a file name spells; None for any other file."""
        match = _PART_NAME.fullmatch(name)
        token = match and FencingToken.parse(match[2])
        return cls(match[1], token) if match and token else None


def parse_attempt_document(name: str) -> int | None:
    """Return the attempt that a document such as `0003.json` is about; None for any other file."""
    match = _ATTEMPT_DOCUMENT.fullmatch(name)
    return match and int(match[1])


def next_token(seen: Iterable[FencingToken], attempt: int) -> FencingToken | None:
    """Return a token of this attempt above all seen ones; None when its starts are used up.

    A machine may start its process again, and the later start must win. So the first three digits
    of a writer count the starts of its attempt; the other five make it unique.
    """
    starts = max((int(t.writer[:3], 16) + 1 for t in seen if t.attempt == attempt), default=0)
    if starts > _STARTS_LIMIT:
        return None
    return FencingToken(attempt, f"{starts:03x}{secrets.token_hex(3)[:5]}")
