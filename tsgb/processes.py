"""Worker processes on this machine, and a loop that runs several until all are done or one failed.

It knows processes and signals. It knows no store, no Prefect and no torch: heartbeats and exit
records come in through arguments.
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

from tsgb.cloud.termination import JobEnd, job_end

POLL_SECONDS = 0.5
"""Seconds between two looks at the processes."""
_KILL_SECONDS = 5.0
GRACE_SECONDS = 60.0
"""Seconds between SIGTERM and SIGKILL, in which a worker saves a checkpoint."""


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """Whether a process still runs.

    Example: `ProcessStatus(running=False, exit_code=-9)`
    """

    running: bool
    """Whether it was started and has not ended."""
    exit_code: int | None = None
    """Exit code; None while it runs, and if it cannot be known."""


class WorkerProcess(Protocol):
    """A process that runs one worker command."""

    def start(self) -> None:
        """Start it and return at once."""
        ...

    def status(self) -> ProcessStatus:
        """Return its status without waiting."""
        ...

    def logs(self, max_bytes: int = 4096) -> str:
        """Return the end of its output."""
        ...

    def destroy(self, *, force: bool) -> None:
        """Ask the worker to save and end, or with `force` kill it at once.

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


class LocalProcess:
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
        """Process id; None before the start."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
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

    def status(self) -> ProcessStatus:
        """Return its status without waiting; the exit code is None if it never started."""
        if self._process is None:
            return ProcessStatus(running=False)
        code = self._process.poll()
        if code is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return ProcessStatus(running=code is None, exit_code=code)

    def logs(self, max_bytes: int = 4096) -> str:
        """Return the end of the log file."""
        try:
            with self._log_path.open("rb") as log:
                log.seek(max(0, self._log_path.stat().st_size - max_bytes))
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def destroy(self, *, force: bool) -> None:
        """Send SIGTERM to the worker, or with `force` SIGKILL to all of its session."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            if force:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.terminate()


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedJob:
    """The process of a job, and how its heartbeat and exit record are read.

    Example: `StartedJob(process=LocalProcess(command, log_path, environment))`
    """

    process: WorkerProcess
    """The process."""
    exit_record: Callable[[], Mapping[str, Any] | None] = lambda: None
    """Returns the worker's exit record; called once, when its process is gone."""
    progress: Callable[[], Mapping[str, Any] | None] = lambda: None
    """Returns the heartbeat; called at each look."""
    log: str = ""
    """Path of the worker's output, for messages."""


@dataclass(frozen=True, slots=True)
class Job:
    """One worker that is to run to its end.

    Example: `Job("sft", lambda: StartedJob(process=LocalProcess(...)))`
    """

    key: str
    """Name of the job among those of one call."""
    begin: Callable[[], StartedJob]
    """Returns the process to start; called right before its start."""


@dataclass(slots=True)
class JobState:
    """State of a job; `run_processes` updates it in place."""

    key: str
    """Name of the job."""
    started: StartedJob | None = None
    """The job's process; None while it waits for its turn."""
    end: JobEnd | None = None
    """How it ended; None before, and for a job stopped because another one did not end well."""
    exit_code: int | None = None
    """Exit code of the process; None if there is none."""
    exit_record: Mapping[str, Any] | None = None
    """The worker's exit record; None without one."""
    progress: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The newest heartbeat; empty before the first one."""
    moved_at: float = 0.0
    """Clock reading at its start, and when the progress last changed."""
    stalled: bool = False
    """Whether it was killed because its progress did not change."""

    @property
    def running(self) -> bool:
        """Whether it was started and its end was not seen yet."""
        return self.started is not None and self.end is None

    @property
    def message(self) -> str:
        """The reason of its end in one line, from its exit record or the end of its log."""
        if self.stalled:
            return "no progress for too long; killed"
        if self.exit_record is not None and self.exit_record.get("message"):
            return str(self.exit_record["message"])
        how = "process gone" if self.exit_code is None else f"exit code {self.exit_code}"
        if self.started is None:
            return how
        tail = self.started.process.logs().strip().splitlines()
        words = f"{how}: {tail[-1].strip()}" if tail else how
        return f"{words} (log: {self.started.log})" if self.started.log else words


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

    It polls in the calling thread, so that a signal in the main thread interrupts it; no process
    survives it, however it is left.

    Args:
        jobs: The jobs, in the order in which they start.
        max_parallel: Number of jobs at a time; the number of cores if None.
        on_poll: Called with all states after each look.
        stall_seconds: Seconds without progress after which a job is killed and counts as preempted;
            None waits forever.
        grace_seconds: Seconds that stopped workers may take to save.
        poll_seconds: Seconds between two looks.
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
            ended_badly = any(state.end not in {None, JobEnd.DONE} for state in states)
            num_free = width - sum(state.running for state in states)
            while waiting and num_free > 0 and not ended_badly:
                job, state = waiting.pop(0)
                state.started, state.moved_at = job.begin(), clock()
                state.started.process.start()
                num_free -= 1
            on_poll(states)
            if ended_badly or not any(state.running for state in states):
                return states
            sleep(poll_seconds)
    finally:
        processes = [state.started.process for state in states if state.started is not None]
        _stop(processes, grace_seconds, poll_seconds, clock, sleep)


def _look(state: JobState, now: float, stall_seconds: float | None) -> None:
    started = state.started
    if started is None or state.end is not None:
        return
    status = started.process.status()
    progress = started.progress()
    if progress and progress != state.progress:
        state.progress, state.moved_at = progress, now
    if not status.running:
        state.exit_code = status.exit_code
        state.exit_record = started.exit_record()
        state.end = job_end(state.exit_code, state.exit_record)
    elif stall_seconds is not None and now - state.moved_at > stall_seconds:
        state.stalled, state.end = True, JobEnd.PREEMPTED
        started.process.destroy(force=True)


def _stop(
    processes: Sequence[WorkerProcess],
    grace_seconds: float,
    poll_seconds: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    """Let all save at the same time, then kill those that still run."""

    def wait(seconds: float) -> None:
        deadline = clock() + seconds
        while clock() < deadline and any(process.status().running for process in processes):
            sleep(min(0.1, poll_seconds))

    try:
        for process in processes:
            process.destroy(force=False)
        wait(grace_seconds)
    finally:
        # Also when a second Ctrl-C ends the wait.
        for process in processes:
            process.destroy(force=True)
        wait(_KILL_SECONDS)
