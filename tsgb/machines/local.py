"""What an attempt runs on: the four methods of a machine, and a process on this one.

It knows processes and signals. It knows no store and no Prefect, and judges nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


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
