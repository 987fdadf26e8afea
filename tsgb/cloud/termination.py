"""How an attempt's end is judged from what it left behind.

It knows exit codes, exit records and the states in which a rental service reports an instance. It
asks nobody: what was read comes in through arguments.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tsgb.cloud.provider import Instance, InstanceState
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


class Cause(StrEnum):
    """Why a rented machine is no longer at work."""

    DONE = "done"
    PREEMPTED = "preempted"
    """Outbid: the contract was stopped, or is gone, and not by us."""
    STOPPED = "stopped"
    """By us: it was asked to save and go."""
    REFUSED = "refused"
    """Another one was faster, or the floor moved: no machine came of it."""
    HOST_LOST = "host_lost"
    """The host went away, or nothing was heard of the worker."""
    BAD_HOST = "bad_host"
    """It never came up, and another host may."""
    WORKER = "worker"
    """The worker failed on a machine that holds."""
    DISK_FULL = "disk_full"
    """Too small a disk: a disk cannot grow, the next one is larger."""
    CONFIG = "config"
    """Ours to mend: image, key, settings. Another machine would meet it again."""
    FUNDS = "funds"
    """The account does not pay for it."""
    LEASE_LOST = "lease_lost"
    """A newer process works on this run."""

    @property
    def outcome(self) -> Outcome:
        """As a flow treats it, its budget of retries apart."""
        if self is Cause.DONE:
            return Outcome.DONE
        ends = {Cause.CONFIG, Cause.FUNDS, Cause.LEASE_LOST}
        return Outcome.FAILED if self in ends else Outcome.PREEMPTED

    @property
    def is_infra(self) -> bool:
        """The machine's fault, and not the market's."""
        return self in {Cause.HOST_LOST, Cause.BAD_HOST}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """All that is known of an attempt on a rented machine at one look.

    Example: `Signs(instance=None, verified=True, seen_before=True)` is a machine that is gone.
    """

    instance: Instance | None
    """As the provider showed it last; None if it does not know it."""
    verified: bool = True
    """It was read in full. If not, its absence means nothing."""
    seen_before: bool = False
    """It was in a list once, so it is not merely late to appear."""
    exit_record: Mapping[str, Any] | None = None
    age_seconds: float = 0.0
    """Since the rental."""
    heartbeat_age_seconds: float | None = None
    """None before the first one."""
    step_age_seconds: float = 0.0
    """Since the step last moved, by the worker's own heartbeats."""
    stop_asked: bool = False
    """We asked it to stop, so that a stop is nobody's fault."""
    credit_used_up: bool = False
    """Then the service stops all machines."""
    doubted_before: bool = False
    """An attempt before was lost at the same step, and nobody could say whether by its host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """After how many seconds waiting ends."""

    provision: float = 1200.0
    """From the rental to the first heartbeat; a healthy host may load for 10 minutes in silence."""
    heartbeat: float = 600.0
    step: float = 3600.0


_OURS = ("manifest unknown", "unauthorized", "invalid reference format")
_HOSTS = ("error response from daemon", "oci runtime create failed", "failed to pull image")
_SAYS = {
    "done": Cause.DONE,
    "config": Cause.CONFIG,
    "usage": Cause.CONFIG,
    "lease_lost": Cause.LEASE_LOST,
    "disk_full": Cause.DISK_FULL,
    "bad_host": Cause.BAD_HOST,
    "interrupted": Cause.PREEMPTED,
    "store_unreachable": Cause.HOST_LOST,
}


def judge(signs: Signs, deadlines: Deadlines | None = None) -> Cause | None:
    """Why the attempt is over; None while it is at work or that cannot be known yet.

    The worker's own word counts first, then the contract, then the container, then clocks.
    """
    deadlines = deadlines or Deadlines()
    if signs.exit_record is not None:
        said = _SAYS.get(str(signs.exit_record.get("outcome")), Cause.WORKER)
        return Cause.STOPPED if said is Cause.PREEMPTED and signs.stop_asked else said
    if not signs.verified:
        return None
    instance = signs.instance
    if instance is None:
        return _vanished(signs) if signs.seen_before else None
    if instance.state is InstanceState.STOPPED:
        return _taken(signs)
    if signs.heartbeat_age_seconds is None:
        return _starting(instance, signs, deadlines)
    return _working(instance.state, signs, signs.heartbeat_age_seconds, deadlines)


def _vanished(signs: Signs) -> Cause:
    """A contract that is gone.

    The market stops one, and leaves it there. If nothing was ever heard of it, its start failed,
    and its dead-man destroyed it: the next one may meet the same.
    """
    cause = _taken(signs)
    silent = signs.heartbeat_age_seconds is None
    return Cause.BAD_HOST if silent and cause is Cause.PREEMPTED else cause


def _taken(signs: Signs) -> Cause:
    """A contract that was stopped or is gone."""
    if signs.stop_asked:
        return Cause.STOPPED
    return Cause.FUNDS if signs.credit_used_up else Cause.PREEMPTED


def _working(
    state: InstanceState, signs: Signs, silent_seconds: float, deadlines: Deadlines
) -> Cause | None:
    """A machine that was at work."""
    if state is InstanceState.UNREACHABLE:
        return Cause.HOST_LOST
    if state is InstanceState.EXITED:
        return Cause.WORKER  # without a word on a machine that holds: out of memory, as a rule
    if silent_seconds > deadlines.heartbeat:
        return Cause.WORKER if signs.doubted_before else Cause.HOST_LOST
    return Cause.WORKER if signs.step_age_seconds > deadlines.step else None


def _starting(instance: Instance, signs: Signs, deadlines: Deadlines) -> Cause | None:
    """A machine of which no heartbeat was seen: its states say little, so time decides."""
    said = instance.message.lower()
    if any(words in said for words in _OURS):
        return Cause.CONFIG
    if "no space left" in said:
        return Cause.DISK_FULL
    failed = any(words in said for words in _HOSTS)
    failed = failed or instance.state in {InstanceState.EXITED, InstanceState.UNREACHABLE}
    return Cause.BAD_HOST if failed or signs.age_seconds > deadlines.provision else None
