"""The scripts of `infra/` as a container runs them: a process group, an environment, a log."""

from __future__ import annotations

import base64
import gzip
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
ONSTART = (ROOT / "infra" / "onstart.sh").read_text()
BOOTSTRAP = (ROOT / "infra" / "bootstrap.sh").read_text()


def packed(script: str) -> str:
    return base64.b64encode(gzip.compress(script.encode())).decode()


@contextmanager
def started(
    shell: str, script: str, home: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Its output goes to `log` in its home; everything it started ends with it."""
    with (home / "log").open("ab") as log:
        process = subprocess.Popen(
            [shell, "-c", script],
            env={"PATH": os.environ["PATH"], "HOME": str(home), **environment},
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def command_lines_with(text: str) -> list[str]:
    """Of all processes of this machine, as `ps` shows them."""
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                line = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                if text in line:
                    found.append(line)
    return found
