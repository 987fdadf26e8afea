"""How an attempt ended, and why a rented machine is no longer at work.

It knows exit codes, exit records and the states of an instance. It does no I/O: what was read comes
in through arguments.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tsgb.cloud.provider import Instance, InstanceState
from tsgb.errors import ExitCode


class JobEnd(StrEnum):
    """How a process or a machine ended, as its flow treats it."""

    DONE = "done"
    """The work is done."""
    PREEMPTED = "preempted"
    """The machine went away: the next attempt goes on from the last checkpoint."""
    FAILED = "failed"
    """Another attempt would fail alike."""


# Signals by which a faulty program ends; a machine is never preempted by them.
_FAULTS = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGBUS, signal.SIGSYS}
)
# Interrupted by a signal that was not ours, as before a spot machine is taken away; or cut off.
_HEALS = frozenset({"interrupted", "store_unreachable"})


def job_end(exit_code: int | None, exit_record: Mapping[str, Any] | None) -> JobEnd:
    """Return how a process ended.

    Args:
        exit_code: Its exit code; `-n` if signal n ended it, None if the machine itself is gone.
        exit_record: The worker's document in `exits/`, None without one. It counts first.
    """
    if exit_record is not None:
        said = exit_record.get("outcome")
        if said == "done":
            return JobEnd.DONE
        return JobEnd.PREEMPTED if str(said) in _HEALS else JobEnd.FAILED
    if exit_code is None:
        return JobEnd.PREEMPTED
    # A shell and a container report signal n as 128 + n.
    number = -exit_code if exit_code < 0 else exit_code - 128
    if number > 0:
        return JobEnd.FAILED if number in _FAULTS else JobEnd.PREEMPTED
    if exit_code == ExitCode.STORE_UNREACHABLE:
        return JobEnd.PREEMPTED  # with the store away it could not leave a record
    return JobEnd.DONE if exit_code == ExitCode.OK else JobEnd.FAILED


class TerminationReason(StrEnum):
    """Reason for which a rented machine is no longer at work."""

    DONE = "done"
    """Its work is done."""
    PREEMPTED = "preempted"
    """The provider stopped or destroyed it, because it was outbid."""
    STOPPED = "stopped"
    """Its flow or a user asked it to save and end."""
    REFUSED = "refused"
    """The provider refused the rental: another renter was faster, or the price rose."""
    HOST_LOST = "host_lost"
    """The host went away, or heartbeats stopped."""
    BAD_HOST = "bad_host"
    """It never started work; another host may."""
    WORKER = "worker"
    """The worker failed although the machine is there."""
    DISK_FULL = "disk_full"
    """The disk was too small; that of the next machine is larger."""
    CONFIG = "config"
    """Image, key or settings are wrong; another machine would fail alike."""
    FUNDS = "funds"
    """The account has no credit for it."""
    LEASE_LOST = "lease_lost"
    """A newer process works on this run."""

    @property
    def job_end(self) -> JobEnd:
        """How a flow treats it, limits on retries apart."""
        if self is TerminationReason.DONE:
            return JobEnd.DONE
        ends = {TerminationReason.CONFIG, TerminationReason.FUNDS, TerminationReason.LEASE_LOST}
        return JobEnd.FAILED if self in ends else JobEnd.PREEMPTED

    @property
    def is_infra(self) -> bool:
        """Whether the machine failed, rather than the market."""
        return self in {TerminationReason.HOST_LOST, TerminationReason.BAD_HOST}


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Everything that is known of an attempt on a rented machine at one look.

    Example: `Observation(instance=None, seen_before=True)` is a machine that is gone.
    """

    instance: Instance | None
    """The instance as the provider showed it last; None if it shows none."""
    verified: bool = True
    """Whether the provider's list was read in full; if not, a missing instance may exist."""
    seen_before: bool = False
    """Whether the provider showed it before, so that it is not merely late to appear."""
    exit_record: Mapping[str, Any] | None = None
    """The machine's exit record; None without one."""
    age_seconds: float = 0.0
    """Seconds since the rental."""
    heartbeat_age_seconds: float | None = None
    """Seconds since the last heartbeat; None before the first one."""
    step_age_seconds: float = 0.0
    """Seconds since the step last changed, by the heartbeats."""
    stop_asked: bool = False
    """Whether it was asked to stop."""
    credit_used_up: bool = False
    """Whether the account has no credit left, so that the provider stops all machines."""
    doubted_before: bool = False
    """Whether an earlier attempt was lost at the same step for an unknown reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds after which a machine is given up.

    Example: `Deadlines(heartbeat=300.0)`
    """

    provision: float = 1200.0
    """Seconds from the rental to the first heartbeat; a good host may download for 10 minutes."""
    heartbeat: float = 600.0
    """Seconds without a heartbeat."""
    step: float = 3600.0
    """Seconds without a change of the step."""


_CONFIG_MESSAGES = ("manifest unknown", "unauthorized", "invalid reference format")
_HOST_MESSAGES = ("error response from daemon", "oci runtime create failed", "failed to pull image")
_NOT_RUNNING = {InstanceState.STOPPED, InstanceState.EXITED, InstanceState.UNREACHABLE}
_BY_OUTCOME = {
    "done": TerminationReason.DONE,
    "config": TerminationReason.CONFIG,
    "usage": TerminationReason.CONFIG,
    "lease_lost": TerminationReason.LEASE_LOST,
    "disk_full": TerminationReason.DISK_FULL,
    "bad_host": TerminationReason.BAD_HOST,
    "interrupted": TerminationReason.PREEMPTED,
    "store_unreachable": TerminationReason.HOST_LOST,
}


def termination_reason(
    seen: Observation, deadlines: Deadlines | None = None
) -> TerminationReason | None:
    """Return why the attempt is over; None while it is at work or that cannot be known yet.

    The exit record counts first, then the contract, then the container, then clocks.

    Args:
        seen: What was observed.
        deadlines: Seconds after which a machine is given up.
    """
    deadlines = deadlines or Deadlines()
    if seen.exit_record is not None:
        said = _BY_OUTCOME.get(str(seen.exit_record.get("outcome")), TerminationReason.WORKER)
        return (
            TerminationReason.STOPPED
            if said is TerminationReason.PREEMPTED and seen.stop_asked
            else said
        )
    if not seen.verified:
        return None
    instance = seen.instance
    if instance is None:
        return _vanished(seen) if seen.seen_before else None
    if instance.state is InstanceState.STOPPED:
        return _taken(seen)
    if seen.heartbeat_age_seconds is None:
        return _starting(instance, seen, deadlines)
    return _working(instance.state, seen, seen.heartbeat_age_seconds, deadlines)


def _vanished(seen: Observation) -> TerminationReason:
    """Return the reason for an instance that is gone.

    A preempted instance is stopped, and stays in the list. One that is gone without any heartbeat
    failed at its start and destroyed itself, and the next one may do the same.
    """
    cause = _taken(seen)
    silent = seen.heartbeat_age_seconds is None
    return TerminationReason.BAD_HOST if silent and cause is TerminationReason.PREEMPTED else cause


def _taken(seen: Observation) -> TerminationReason:
    """Return the reason for an instance that was stopped or is gone."""
    if seen.stop_asked:
        return TerminationReason.STOPPED
    return TerminationReason.FUNDS if seen.credit_used_up else TerminationReason.PREEMPTED


def _working(
    state: InstanceState, seen: Observation, silent_seconds: float, deadlines: Deadlines
) -> TerminationReason | None:
    """Return the reason for a machine that has been at work."""
    if state is InstanceState.UNREACHABLE:
        return TerminationReason.HOST_LOST
    if state is InstanceState.EXITED:
        return (
            TerminationReason.WORKER
        )  # no exit record although the machine is there: usually out of memory
    if silent_seconds > deadlines.heartbeat:
        return TerminationReason.WORKER if seen.doubted_before else TerminationReason.HOST_LOST
    return TerminationReason.WORKER if seen.step_age_seconds > deadlines.step else None


def _starting(
    instance: Instance, seen: Observation, deadlines: Deadlines
) -> TerminationReason | None:
    """Return the reason for a machine without any heartbeat, whose state says little."""
    said = instance.message.lower()
    if any(text in said for text in _CONFIG_MESSAGES):
        return TerminationReason.CONFIG
    if "no space left" in said:
        return TerminationReason.DISK_FULL
    failed = any(text in said for text in _HOST_MESSAGES)
    failed = failed or instance.state in {InstanceState.EXITED, InstanceState.UNREACHABLE}
    return TerminationReason.BAD_HOST if failed or seen.age_seconds > deadlines.provision else None


def overdue(seen: Observation, deadlines: Deadlines | None = None) -> str:
    """Return which deadline a machine has missed, for people; empty if none.

    One whose service says that it does not run is not late.

    Args:
        seen: What was observed.
        deadlines: Seconds after which a machine is given up.
    """
    deadlines = deadlines or Deadlines()
    if seen.instance is None or seen.instance.state in _NOT_RUNNING:
        return ""
    if seen.heartbeat_age_seconds is None:
        late = seen.age_seconds > deadlines.provision
        return f"no heartbeat within {deadlines.provision:g} s of its rental" if late else ""
    if seen.heartbeat_age_seconds > deadlines.heartbeat:
        return f"no heartbeat for {deadlines.heartbeat:g} s"
    return f"no update for {deadlines.step:g} s" if seen.step_age_seconds > deadlines.step else ""
