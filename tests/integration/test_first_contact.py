"""What a command hears at its first contact with a store, long before it builds a model.

Commands as a person starts them, and servers on loopback. That a server which has answered once is
waited for is shown in `tests/unit/checkpoint/test_filesystem.py`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from flows.workers import Workers
from tests.fakes.dav_server import PASSWORD, USER, dav_app, serve
from tests.fakes.miniature import miniature_config
from tests.fakes.sentinels import leaks
from tsgb.checkpoint.failures import FIRST_CONTACT_SECONDS
from tsgb.checkpoint.filesystem import DEADLINE_SECONDS
from tsgb.config import Arm
from tsgb.errors import ExitCode, StoreError
from tsgb.settings import Settings

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "worker": "worker run --resume-path {url}/r1",
    "ls": "checkpoint ls {url}/r1",
    "export": "export-guard {url}/r1/latest out",
    "experiment": "experiment --store {url} --run-id r1 --profile smoke",
}
EVALUATE = "worker evaluate --resume-path {url}/r1 --eval-id e1"


def start(command: str, here: Path) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TSGB_", "RCLONE_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "tsgb.cli", *command.split()],
        cwd=here,
        env={
            **kept,
            "PYTHONPATH": str(ROOT),
            "TSGB_CACHE_DIR": str(here / "cache"),
            "RCLONE_WEBDAV_USER": USER,
            "RCLONE_WEBDAV_PASS": PASSWORD,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and the one line on stderr."""
    try:
        out, err = process.communicate(timeout=280)
    finally:
        process.kill()
    assert out == ""
    assert err.count("\n") == 1, err
    assert not leaks(err)
    return process.returncode, err


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which connections are refused."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, never listening
        yield f"http://127.0.0.1:{closed.getsockname()[1]}"


@pytest.fixture
def silence() -> Iterator[str]:
    """Something that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_no_command_waits_long_for_a_store_that_never_answered(
    tmp_path: Path, nobody: str, silence: str
) -> None:
    assert FIRST_CONTACT_SECONDS <= 30 < DEADLINE_SECONDS
    cases = {name: (nobody, command) for name, command in COMMANDS.items()}
    cases["silence"] = silence, COMMANDS["ls"]
    cases["host"] = "https://no-such-host.invalid", COMMANDS["ls"]
    running = {
        name: (url, start(command.format(url=url), tmp_path))
        for name, (url, command) in cases.items()
    }
    for name, (url, process) in running.items():
        code, line = ended(process)
        assert (name, code) == (name, ExitCode.STORE_UNREACHABLE), line
        assert line.startswith(f"tsgb: {url}/"), name
        reason = "ReadTimeout" if name == "silence" else "ConnectError"
        assert f"cannot be reached: {reason}" in line
        assert f"gave up after retrying for {FIRST_CONTACT_SECONDS:g} s. Check the address" in line
    assert not (tmp_path / "cache" / "models").exists()


def test_a_store_that_may_only_be_read_is_said_before_models_are_built(tmp_path: Path) -> None:
    run = tmp_path / "dav" / "r1"
    run.mkdir(parents=True)
    (run / "config.json").write_text(miniature_config().canonical())
    with serve(dav_app(tmp_path / "dav", readonly=True)) as url:
        for command in (COMMANDS["worker"], EVALUATE):
            code, line = ended(start(command.format(url=url), tmp_path))
            assert code == ExitCode.USAGE
            assert "this user may not do that (HTTP 403): grant read and write" in line
        # A flow that resumes a run: it has written nothing when it starts those who build.
        settings = Settings(
            webdav_user=USER, webdav_pass=SecretStr(PASSWORD), worker_command=["false"]
        )
        with pytest.raises(StoreError, match="HTTP 403"):
            Workers(settings, url, "r1").build(Arm.SELFPLAY)
    assert not (tmp_path / "cache" / "models").exists()
