"""Secrets of this test session, and the search for them when it ends.

Every password and key that a test gives to TSGB is made here. All hold `CORE`, which is in no file
of the repository: where it is found at the end, a secret has leaked. It is searched for in every
file below the session's base temporary directory, and in what pytest reports: ids, output, logs,
tracebacks, warnings; as it is (URLs and JSON leave it so), and inside of base64. Output that a test
catches itself is not reported: there the test's helper calls `leaks`.

Processes of the session know it by the environment, which holds only what it is made from. Where
pytest-xdist runs the tests in several processes, each searches its own directory and tells the one
that reports.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

_SEED = os.environ.setdefault("PYTEST_SENTINEL_SEED", secrets.token_hex(16))
CORE = hashlib.sha256(_SEED.encode()).hexdigest()[:24]
MAY_HOLD = ("test_an_env_file*/.env", "test_the_manifest_key*/.env", "test_the_token*/.env")
"""Files from which a test has its settings read; below the base temporary directory."""
PLUGIN = "secrets-search"
SHOWN = 8
"""Places that are named at most; one is enough to mend it."""
_CHUNK = 1 << 24


def sentinel(name: str) -> str:
    """A secret of this session, with characters that URLs and JSON write differently."""
    return f"{name}/{CORE}+"


def new_key() -> str:
    """One of any number of keys, of letters and digits."""
    return CORE + secrets.token_hex(4)


def _in_base64(core: bytes) -> Iterator[bytes]:
    """What is the same in base64 of anything that holds it: `user:password`, a whole header."""
    for before in range(3):
        whole = (before + len(core)) // 3 * 4
        yield base64.b64encode(bytes(before) + core)[(0, 2, 3)[before] : whole]


_FORMS = (CORE.encode(), *_in_base64(CORE.encode()))


def leaks(data: bytes | str) -> bool:
    """Whether a secret of this session is in there."""
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
    return any(form in raw for form in _FORMS)


def leaking_files(directory: Path, may_hold: Sequence[str] = ()) -> list[Path]:
    """Files below a directory that hold a secret or are named after one."""
    allowed = {path for pattern in may_hold for path in directory.glob(pattern)}
    walked = (Path(parent, name) for parent, _, names in os.walk(directory) for name in names)
    return sorted(
        path for path in walked if path not in allowed and (leaks(path.name) or _holds_secret(path))
    )


def _holds_secret(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    tail = b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            if leaks(tail + chunk):
                return True
            tail = chunk[-100:]
    return False


class Search:
    """A plugin of pytest that fails the session if a secret leaked in it."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.directory: Path | None = None

    def _look(self, where: str, text: str) -> None:
        if leaks(text):
            self.found.append(where)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._look(f"the traceback of {report.nodeid} ({report.when})", report.longreprtext)
        if report.when == "teardown":  # with the sections of the phases before
            self._look(f"the id of {report.nodeid}", report.nodeid)
            for title, text in report.sections:
                self._look(f"{title} of {report.nodeid}", text)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look(f"the collection of {report.nodeid}", report.longreprtext)

    def pytest_warning_recorded(self, warning_message: object, nodeid: str) -> None:
        self._look(f"a warning of {nodeid}", str(warning_message))

    @pytest.hookimpl(tryfirst=True)  # before pytest tidies its temporary directories
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.directory is not None:
            self.found += map(str, leaking_files(self.directory, MAY_HOLD))
        worker = getattr(session.config, "workeroutput", None)
        if worker is not None:
            worker[PLUGIN] = self.found
        if self.found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Take over what a process of pytest-xdist found in its files; it reported the rest."""
        told = getattr(node, "workeroutput", {}).get(PLUGIN, [])
        self.found += [place for place in told if place not in self.found]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.found:
            shown = "; ".join(self.found[:SHOWN])
            more = "; ..." if len(self.found) > SHOWN else ""
            line = f"SECRETS LEAKED in {len(self.found)} places: {shown}{more}"
            terminalreporter.write_line(line, red=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Search(), PLUGIN)


@pytest.fixture(scope="session", autouse=True)
def searched_for_secrets(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> None:
    search = pytestconfig.pluginmanager.get_plugin(PLUGIN)
    assert isinstance(search, Search)
    search.directory = tmp_path_factory.getbasetemp()
