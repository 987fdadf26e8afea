"""The dead-man of a rented machine: a shell that destroys it when nobody watches any more."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.fakes.scripted_http import Reply, Script, Seen, serve
from tests.fakes.scripts import ONSTART, command_lines_with, packed, started
from tests.fakes.vast.driver import until

pytestmark = pytest.mark.integration

KEY = "sentinel-instance-key-4711"
SECONDS = 60.0
ALIVE = 'while :; do : >"$TSGB_ALIVE_FILE"; sleep 0.1; done'


both_shells = pytest.mark.parametrize("scene", ["/bin/sh", "/bin/bash"], indirect=True)


class Scene:
    def __init__(self, home: Path, url: str, script: Script, shell: str) -> None:
        self.home = home
        self.script = script
        self.shell = shell
        self.environment = {
            "CONTAINER_ID": "77",
            "CONTAINER_API_KEY": KEY,
            "TSGB_VAST_URL": url,
            "TSGB_BOOT_SECONDS": "60",
            "TSGB_SILENT_SECONDS": "2",
            "TSGB_GRACE_SECONDS": "0.1",
        }

    def start(self, boot: str, **changes: str) -> AbstractContextManager[subprocess.Popen[str]]:
        environment = {**self.environment, "TSGB_BOOT_B64": packed(boot), **changes}
        return started(self.shell, ONSTART, self.home, environment)

    def deleted(self) -> Seen | None:
        return next((seen for seen in self.script.seen if seen.method == "DELETE"), None)

    def log(self) -> str:
        return (self.home / "log").read_text()


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    script = Script([Reply(body={"success": True})])
    with serve(script) as url:
        yield Scene(tmp_path, url, script, getattr(request, "param", "/bin/sh"))


@pytest.mark.parametrize("boot", ["exit 1", "exit 0", "no-such-command"])
@both_shells
def test_a_boot_that_ends_destroys_the_machine(scene: Scene, boot: str) -> None:
    with scene.start(boot):
        seen = until(scene.deleted, seconds=SECONDS)
    assert seen is not None
    assert (seen.path, seen.body) == ("/api/v0/instances/77/", {})
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert seen.headers["content-type"] == "application/json"


def test_so_does_one_that_cannot_be_read(scene: Scene) -> None:
    with scene.start("", TSGB_BOOT_B64="bm90IGd6aXA="):
        assert until(scene.deleted, seconds=SECONDS)


def test_so_does_one_that_hangs(scene: Scene) -> None:
    with scene.start("sleep 300", TSGB_BOOT_SECONDS="2"):
        assert until(scene.deleted, seconds=SECONDS)


@both_shells
def test_a_watcher_that_is_alive_is_left_alone_until_it_falls_silent(scene: Scene) -> None:
    with scene.start(f"( {ALIVE} ) & echo $! >pid; wait"):
        until((scene.home / "pid").exists, seconds=SECONDS)
        time.sleep(6)
        assert scene.deleted() is None
        os.kill(int((scene.home / "pid").read_text()), signal.SIGSTOP)
        assert until(scene.deleted, seconds=SECONDS)


def test_it_asks_until_it_works(scene: Scene) -> None:
    """The container's end ends it; an answer is no proof."""
    with scene.start("exit 1"):
        until(lambda: len(scene.script.seen) >= 2, seconds=SECONDS)


def test_a_watcher_that_is_killed(scene: Scene) -> None:
    boot = f"exec {sys.executable} -c 'import os; os.kill(os.getpid(), 9)'"
    with scene.start(boot):
        assert until(scene.deleted, seconds=SECONDS)
    assert "has ended (137)" in scene.log()


@both_shells
def test_a_container_that_is_being_stopped_is_left_to_who_stops_it(scene: Scene) -> None:
    boot = "trap 'echo saved; exit 130' TERM; echo up; while :; do sleep 0.1; done"
    with scene.start(boot) as process:
        until(lambda: "up" in scene.log(), seconds=SECONDS)
        process.terminate()
        assert process.wait(SECONDS) == 130
    assert "saved" in scene.log()
    assert scene.deleted() is None


def test_one_whose_watcher_alone_was_stopped_goes_later(scene: Scene) -> None:
    with scene.start("exit 130", TSGB_SILENT_SECONDS="3"):
        until(lambda: "has ended (130)" in scene.log(), seconds=SECONDS)
        assert scene.deleted() is None
        assert until(scene.deleted, seconds=SECONDS)


def test_without_curl_there_is_python(scene: Scene, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("base64", "gunzip", "gzip", "sleep", "rm", "sh"):
        found = shutil.which(name)
        assert found
        (tools / name).symlink_to(found)
    (tools / "python3").symlink_to(sys.executable)
    with scene.start("exit 1", PATH=str(tools)):
        seen = until(scene.deleted, seconds=SECONDS)
    assert seen is not None
    assert (seen.path, seen.body) == ("/api/v0/instances/77/", {})
    assert seen.headers["authorization"] == f"Bearer {KEY}"


def test_the_key_is_seen_by_nobody(scene: Scene) -> None:
    shown: list[str] = []

    def respond(_seen: Seen) -> Reply:
        shown.extend(command_lines_with(KEY))
        return Reply(500, "go away")

    scene.script._replies = respond
    with scene.start("exit 1"):
        until(scene.deleted, seconds=SECONDS)
    assert shown == []
    assert KEY not in scene.log()
