"""How several machines are driven at once, until all are done or one has not ended well.

It knows no store, no Prefect and no torch: what a worker left behind comes in through arguments.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tsgb.machines.local import Machine
from tsgb.machines.verdicts import Outcome, verdict

POLL_SECONDS = 0.5
_KILL_SECONDS = 5.0
GRACE_SECONDS = 60.0
"""Between SIGTERM and SIGKILL: a worker saves a checkpoint in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One machine trying to finish a job, and where to look for its traces."""

    machine: Machine
    exit_record: Callable[[], Mapping[str, Any] | None] = lambda: None
    """Reads what the worker left behind; called once, when its process is gone."""
    progress: Callable[[], Mapping[str, Any] | None] = lambda: None
    """Reads the heartbeat; called at each look."""
    log: str = ""
    """Where a person finds what the worker printed."""


@dataclass(frozen=True, slots=True)
class Job:
    """One worker to be run to its end.

    Example: `Job("sft", lambda: Attempt(machine=LocalMachine(...)))`
    """

    key: str
    """Names it among the jobs of one call."""
    begin: Callable[[], Attempt]
    """Called right before the machine is provisioned: numbers the attempt, notes the intent."""


@dataclass(slots=True)
class JobState:
    """What is known of a job; `run_processes` updates it in place."""

    key: str
    attempt: Attempt | None = None
    """None while it waits for its turn."""
    outcome: Outcome | None = None
    """None until its end, and for a job that was stopped because another one did not end well."""
    exit_code: int | None = None
    exit_record: Mapping[str, Any] | None = None
    progress: Mapping[str, Any] = field(default_factory=dict[str, Any])
    moved_at: float = 0.0
    """Clock reading at the start, and when the progress last changed."""
    stalled: bool = False

    @property
    def running(self) -> bool:
        """Started, and its end not yet seen."""
        return self.attempt is not None and self.outcome is None

    @property
    def message(self) -> str:
        """The reason of its end in one line: the worker's own words, or the end of its log."""
        if self.stalled:
            return "no sign of life; taken away"
        if self.exit_record is not None and self.exit_record.get("message"):
            return str(self.exit_record["message"])
        how = "machine gone" if self.exit_code is None else f"exit code {self.exit_code}"
        if self.attempt is None:
            return how
        tail = self.attempt.machine.logs().strip().splitlines()
        words = f"{how}: {tail[-1].strip()}" if tail else how
        return f"{words} (log: {self.attempt.log})" if self.attempt.log else words


def run_processes(
    jobs: Sequence[Job],
    *,
    max_parallel: int | None = None,
    on_poll: Callable[[Sequence[JobState]], None] = lambda _: None,
    stall_seconds: float | None = None,
    grace_seconds: float = GRACE_SECONDS,
    poll_seconds: float = POLL_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[JobState]:
    """Run all jobs to their end, some at a time; one that does not end well stops the rest.

    It polls in the calling thread, so that a signal in the main thread interrupts it; no machine
    survives it, however it is left.

    Args:
        jobs: In the order in which they start.
        max_parallel: How many at a time; the number of cores if None.
        on_poll: Sees all states after each look.
        stall_seconds: A running job whose progress has not changed for so long counts as
            preempted; None never.
        grace_seconds: How long stopped workers may take to save.
        poll_seconds: Pause between two looks.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.
    """
    width = max_parallel or os.cpu_count() or 1
    states = [JobState(job.key) for job in jobs]
    waiting = list(zip(jobs, states, strict=True))
    try:
        while True:
            for state in states:
                _look(state, clock(), stall_seconds)
            ended_badly = any(state.outcome not in {None, Outcome.DONE} for state in states)
            num_free = width - sum(state.running for state in states)
            while waiting and num_free > 0 and not ended_badly:
                job, state = waiting.pop(0)
                state.attempt, state.moved_at = job.begin(), clock()
                state.attempt.machine.provision()
                num_free -= 1
            on_poll(states)
            if ended_badly or not any(state.running for state in states):
                return states
            sleep(poll_seconds)
    finally:
        machines = [state.attempt.machine for state in states if state.attempt is not None]
        _stop(machines, grace_seconds, poll_seconds, clock, sleep)


def _look(state: JobState, now: float, stall_seconds: float | None) -> None:
    attempt = state.attempt
    if attempt is None or state.outcome is not None:
        return
    status = attempt.machine.status()
    progress = attempt.progress()
    if progress and progress != state.progress:
        state.progress, state.moved_at = progress, now
    if not status.running:
        state.exit_code = status.exit_code
        state.exit_record = attempt.exit_record()
        state.outcome = verdict(state.exit_code, state.exit_record)
    elif stall_seconds is not None and now - state.moved_at > stall_seconds:
        state.stalled, state.outcome = True, Outcome.PREEMPTED
        attempt.machine.destroy(force=True)


def _stop(
    machines: Sequence[Machine],
    grace_seconds: float,
    poll_seconds: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    """Let all save at the same time, then take away those that did not go."""

    def wait(seconds: float) -> None:
        deadline = clock() + seconds
        while clock() < deadline and any(machine.status().running for machine in machines):
            sleep(min(0.1, poll_seconds))

    try:
        for machine in machines:
            machine.destroy(force=False)
        wait(grace_seconds)
    finally:
        # Also when a second Ctrl-C ends the wait.
        for machine in machines:
            machine.destroy(force=True)
        wait(_KILL_SECONDS)
