"""Logs as the service gives them: uploaded on request, fetched from an address that is late."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.fakes.vast.contracts import Contract
from tests.fakes.vast.messages import Answer

MAX_COMMAND = 512
COMMANDS = {"ls", "rm", "du"}
NOT_YET = Answer(
    status=404,
    body="<Error><Code>NoSuchKey</Code></Error>",
    content_type="application/xml",
)


class Logs:
    """What was uploaded, by its path."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._misses: dict[str, int] = {}

    def upload(self, contract: Contract, asked: Mapping[str, Any], misses: int) -> str:
        """Take the log as it now is; its path answers 404 that often first."""
        lines = _daemon_log(contract) if asked.get("daemon_logs") else _lines(contract)
        wanted = asked.get("filter")
        lines = [line for line in lines if not wanted or wanted in line]
        return self._put(contract, "log", lines[-int(asked.get("tail") or 1000) :], misses)

    def execute(self, contract: Contract, command: str) -> str:
        """What `ls` would say; `rm` and `du` say nothing here.

        Raises:
            ValueError: the service does not run that.
        """
        words = shlex.split(command)
        if not words or words[0] not in COMMANDS or len(command) > MAX_COMMAND:
            raise ValueError(f"command must be one of {', '.join(sorted(COMMANDS))}")
        home = contract.container.directory / "root"
        names = sorted(path.name for path in home.iterdir()) if home.is_dir() else []
        return self._put(contract, "cmd", names if words[0] == "ls" else [], 0)

    def fetch(self, path: str) -> Answer:
        """GET of a result address."""
        if path not in self._texts or self._misses[path] > 0:
            self._misses[path] = self._misses.get(path, 0) - 1
            return NOT_YET
        return Answer(status=200, body=self._texts[path], content_type="text/plain")

    def _put(self, contract: Contract, kind: str, lines: list[str], misses: int) -> str:
        path = f"/s3/{contract.id}-{len(self._texts)}.{kind}"
        self._texts[path] = "".join(f"{line}\n" for line in lines)
        self._misses[path] = misses
        return path


def _lines(contract: Contract) -> list[str]:
    log: Path = contract.container.log
    return log.read_text(errors="replace").splitlines() if log.is_file() else []


def _daemon_log(contract: Contract) -> list[str]:
    return [f"{moment} {status.actual} {status.message}" for moment, status in contract.history]
