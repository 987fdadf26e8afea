"""How an attempt's end is judged from what it left behind.

It knows exit codes, exit records and the states in which a rental service reports an instance. It
asks nobody: what was read comes in through arguments.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from tsgb.errors import ExitCode


class Outcome(StrEnum):
    """How an attempt ended."""

    DONE = "done"
    PREEMPTED = "preempted"
    """The machine went away: the next attempt goes on from the last checkpoint."""
    FAILED = "failed"
    """A reason that another attempt would meet again."""


# A program that faults ends by these on its own; nobody sends them to take a machine away.
_FAULTS = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGBUS, signal.SIGSYS}
)
# Interrupted by a signal that was not ours, as before a spot machine is taken away; or cut off.
_HEALS = frozenset({"interrupted", "store_unreachable"})


def verdict(exit_code: int | None, exit_record: Mapping[str, Any] | None) -> Outcome:
    """Judge how an attempt ended.

    Args:
        exit_code: Of the process; `-n` if signal n ended it, None if the machine itself is gone.
        exit_record: What the worker left in `exits/`, if it came to that. Its word counts first.
    """
    if exit_record is not None:
        said = exit_record.get("outcome")
        if said == "done":
            return Outcome.DONE
        return Outcome.PREEMPTED if said in _HEALS else Outcome.FAILED
    if exit_code is None:
        return Outcome.PREEMPTED
    # A shell and a container report signal n as 128 + n.
    number = -exit_code if exit_code < 0 else exit_code - 128
    if number > 0:
        return Outcome.FAILED if number in _FAULTS else Outcome.PREEMPTED
    if exit_code == ExitCode.STORE_UNREACHABLE:
        return Outcome.PREEMPTED  # with the store away it could not leave a record
    return Outcome.DONE if exit_code == ExitCode.OK else Outcome.FAILED
