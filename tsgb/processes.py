"""Worker processes on this machine, and how several are driven until all are done or one failed.

It knows processes and signals. It knows no store, no Prefect and no torch: what a worker left
behind comes in through arguments.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tsgb.cloud.termination import Outcome, verdict

POLL_SECONDS = 0.5
_KILL_SECONDS = 5.0
GRACE_SECONDS = 60.0
"""Between SIGTERM and SIGKILL: a worker saves a checkpoint in it."""


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """Whether a machine is still at work.

    Example: `MachineStatus(running=False, exit_code=-9)`
    """

    running: bool
    exit_code: int | None = None
    """None while it runs, and when nobody can know."""


class Machine(Protocol):
    """Runs one worker command."""

    def provision(self) -> None:
        """Start it; returns at once."""
        ...

    def status(self) -> MachineStatus:
        """Look; never waits."""
        ...

    def logs(self, max_bytes: int = 4096) -> str:
        """The end of what the worker printed."""
        ...

    def destroy(self, *, force: bool) -> None:
        """End it: ask the worker to save and go, or with `force` take it away at once.

        Returns without waiting, so that several can save at the same time; see `status`.
        """
        ...


# Runs in the worker's process before it becomes the worker: leaves a small process behind that
# holds the other end of a pipe from the flow and sends SIGTERM, once, when that pipe breaks because
# the flow is gone, `kill -9` included. The worker then saves and goes by itself; it needs no code
# for it. (The kernel's PR_SET_PDEATHSIG sends the signal once for each thread of the flow that
# dies, and a worker takes a second signal for impatience.)
_FOLLOW_FLOW = """
import os, select, signal, sys
worker = os.getpid()
if os.fork() == 0:
    while os.getppid() == worker and not select.select([0], [], [], 1.0)[0]:
        pass
    if os.getppid() == worker:
        os.kill(worker, signal.SIGTERM)
    os._exit(0)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class LocalMachine:
    """A child process in a session of its own, so that a terminal's Ctrl-C does not reach it."""

    def __init__(
        self, command: Sequence[str], log_path: Path, environment: Mapping[str, str]
    ) -> None:
        """Describe the process.

        Args:
            command: Program and arguments.
            log_path: Gets its stdout and stderr, appended.
            environment: The whole environment of the process. One thread a worker is set here:
                several workers share the cores, and OpenMP's own guess would be all of them each.
        """
        self._command = list(command)
        self._log_path = log_path
        self._environment = {**environment, "OMP_NUM_THREADS": "1"}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id, once provisioned."""
        return None if self._process is None else self._process.pid

    def provision(self) -> None:
        """Start the process."""
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        follow_flow = [sys.executable, "-I", "-S", "-c", _FOLLOW_FLOW]
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own worker command, no shell
                [*follow_flow, *self._command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    def status(self) -> MachineStatus:
        """Look whether the process runs; None as exit code if it never started."""
        if self._process is None:
            return MachineStatus(running=False)
        code = self._process.poll()
        if code is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return MachineStatus(running=code is None, exit_code=code)

    def logs(self, max_bytes: int = 4096) -> str:
        """The end of the log file."""
        try:
            with self._log_path.open("rb") as log:
                log.seek(max(0, self._log_path.stat().st_size - max_bytes))
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def destroy(self, *, force: bool) -> None:
        """SIGTERM to the worker; with `force` SIGKILL to all of its session."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            if force:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.terminate()


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
