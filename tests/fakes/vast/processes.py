"""The container of an instance: a process group on this machine that dies without notice.

It knows no API. Linux only: a process that left its group is found by its environment.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")
"""What a container gets of the simulator's own environment."""
MARKER = "DATA_DIRECTORY"
"""By which its processes are found: another one for each container, and no secret that a process
would keep from its children."""

KILL_SECONDS = 60.0
"""Longest wait for the end of one killed process."""


def command_of(body: Mapping[str, Any]) -> list[str] | None:
    """What a create request asks to run; None if only its shell access."""
    onstart = body.get("onstart")
    if body.get("runtype") == "args":
        args = body.get("args") or shlex.split(body.get("args_str") or "")
        return [*([onstart] if onstart else []), *map(str, args)] or None
    return ["/bin/sh", "-c", onstart] if onstart else None


class Container:
    """Started at every start of its instance; its directory outlives a stop."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "container.log"
        self._home = directory / "root"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that was started last, if it was not killed."""
        return self._process.pid if self._process else None

    def start(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Run a command in a group of its own; its output goes to the log."""
        assert self._process is None, "kill it first"
        home = self._home
        home.mkdir(parents=True, exist_ok=True)
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        with self.log.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    list(command),
                    cwd=home,
                    env={**kept, "HOME": str(home), MARKER: str(home), **env},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                log.write(f"exec: {error}\n".encode())

    def has_ended(self) -> bool:
        """Whether its first process has; it is not reaped, so its number stays its own."""
        if self._process is None:
            return True
        kinds = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, kinds) is not None

    def freeze(self) -> None:
        """The host is cut off: nothing runs, nothing is lost."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        self._send(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to all of it, as at a preemption; nothing if nothing runs."""
        if self._process is not None:
            self._send(signal.SIGKILL)
            self._process.wait()
            self._process = None
            _kill_marked(f"{MARKER}={self._home}")

    def remove(self) -> None:
        """Kill it and delete its disk."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def _kill_marked(variable: str) -> None:
    """Whatever is left of it: through a handle, so that no reused number is hit.

    A signal is no end. On a busy machine a process that was sent one may be seen a while longer, so
    the end of each is awaited.
    """
    marker = variable.encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                handle = os.pidfd_open(int(entry.name))
                try:
                    if marker in (entry / "environ").read_bytes().split(b"\0"):
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                        select.select([handle], [], [], KILL_SECONDS)
                finally:
                    os.close(handle)
