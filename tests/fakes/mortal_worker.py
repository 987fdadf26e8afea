"""The real worker, on whom an assassin may be set: a process that sends SIGKILL at a set moment.

    python tests/fakes/mortal_worker.py run --resume-path URL --attempt 1 --until-step 10

`TSGB_KILLS` names a directory of tickets. Each attempt takes the first one, a JSON object, and is
killed `seconds` after its own update number `update`, wherever it then is; without a ticket it
lives. Update 0 is before the worker looks at the run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.fakes.contexts import worker_context
from tsgb.errors import TSGBError
from tsgb.plugins import Trust
from tsgb.settings import load_settings
from tsgb.worker.build import build
from tsgb.worker.train import train

# It must not outlive its victim for long, nor hit whoever gets the victim's number next.
ASSASSIN = """
import os, sys, time
time.sleep(float(sys.argv[2]))
if os.getppid() == int(sys.argv[1]):
    os.kill(int(sys.argv[1]), 9)
"""


class Fate:
    """Counts updates and sends the assassin when the time has come."""

    def __init__(self, ticket: Mapping[str, Any] | None) -> None:
        self._ticket = ticket
        self._updates = 0
        self._check()

    def update(self, _metrics: Mapping[str, Any]) -> None:
        """One more update is done."""
        self._updates += 1
        self._check()

    def _check(self) -> None:
        if self._ticket is not None and self._updates == self._ticket["update"]:
            delay = str(self._ticket["seconds"])
            command = [sys.executable, "-I", "-S", "-c", ASSASSIN, str(os.getpid()), delay]
            subprocess.Popen(command, stdin=subprocess.DEVNULL)


def take_ticket(directory: str | None) -> Mapping[str, Any] | None:
    for path in sorted(Path(directory).glob("*.json")) if directory else []:
        ticket = json.loads(path.read_text())
        path.unlink()
        return ticket
    return None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["build", "run"])
    parser.add_argument("--resume-path", required=True)
    parser.add_argument("--attempt", type=int)
    parser.add_argument("--until-step", type=int)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--env")
    given = parser.parse_args()
    settings = load_settings()
    context = worker_context(settings.cache_dir, trust=Trust.of(given.env))
    if given.verb == "build":
        part, parts = given.part.split("/")
        build(context, given.resume_path, int(part), int(parts))
        return
    fate = Fate(take_ticket(os.environ.get("TSGB_KILLS")))
    train(
        context,
        given.resume_path,
        attempt=given.attempt,
        until_step=given.until_step,
        on_update=fate.update,
    )


if __name__ == "__main__":
    try:
        main()
    except TSGBError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(int(error.exit_code))
