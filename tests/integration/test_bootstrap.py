"""From a bare container to the watcher: the code is fetched once, checked, and started."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.dav_server import PASSWORD, USER, App, dav_app, serve
from tests.fakes.scripted_http import Reply, Script
from tests.fakes.scripted_http import serve as serve_script
from tests.fakes.scripts import BOOTSTRAP, command_lines_with, started

pytestmark = pytest.mark.integration

SECONDS = 60.0
WATCHER = """
import json, os, sys
names = sorted(name for name in os.environ if name.startswith("TSGB_"))
print(json.dumps({"argv": sys.argv[1:], "path": os.environ["PYTHONPATH"], "names": names}))
"""


def archive(**files: str) -> bytes:
    """Another tsgb; double underscores in a name are slashes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as made:
        modules = ("tsgb", "tsgb/cli", "tsgb/worker", "tsgb/worker/machine")
        packages = {f"{name}/__init__.py": "" for name in modules}
        lists = {"requirements-own.txt": "", "pinned.txt": "", "pinned-torch.txt": ""}
        for name, text in {**packages, **lists, **files}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            made.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


CODE = archive(**{"tsgb/cli/__main__.py": WATCHER, "requirements.txt": "pytest>=1\nhttpx<9\n"})
SHA256 = hashlib.sha256(CODE).hexdigest()


class Scene:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.url = f"file://{home}/a b/r1"
        (home / "code.tar.gz").write_bytes(CODE)

    def run(self, **changes: str) -> int:
        """Its exit code; what it said is in the log."""
        environment = {
            "TSGB_PYTHON": sys.executable,
            "TSGB_BOOT_SECONDS": "20",
            "TSGB_BOOT_B64": "x",
            "TSGB_CODE_URL": f"file://{self.home}/code.tar.gz",
            "TSGB_CODE_SHA256": SHA256,
            "TSGB_RUN_URL": self.url,
            "TSGB_ATTEMPT": "3",
            "TSGB_ARMS": "selfplay,sft",
            **changes,
        }
        with started("/bin/sh", BOOTSTRAP, self.home, environment) as process:
            return process.wait(SECONDS)

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()

    @property
    def code(self) -> Path:
        return self.home / "tsgb-code" / SHA256

    def told(self) -> tuple[str, str]:
        """What the flow finds in place of a watcher's word."""
        word = json.loads(
            (self.home / "a b" / "r1" / "machines" / "0003" / "exit.json").read_text()
        )
        assert word["attempt"] == 3
        return word["outcome"], word["message"]

    def watcher(self) -> dict[str, Any]:
        return json.loads(self.log.splitlines()[-1])


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture
def dav(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A WebDAV store, and the command lines with its password while it was asked."""
    (tmp_path / "dav").mkdir()
    (tmp_path / "dav" / "code.tar.gz").write_bytes(CODE)
    inner, shown = dav_app(tmp_path / "dav"), list[str]()

    def watched(environ: Any, start: Any) -> Any:
        shown.extend(command_lines_with(PASSWORD))
        return inner(environ, start)

    app: App = watched
    with serve(app) as url:
        yield url, shown


def test_it_starts_the_watcher_of_the_wanted_code(scene: Scene) -> None:
    assert scene.run(PYTHONPATH="/elsewhere") == 0
    said = scene.watcher()
    assert said["argv"] == [
        *("worker", "machine", "--resume-path", scene.url),
        *("--attempt", "3", "--arms", "selfplay,sft"),
    ]
    assert said["path"] == f"{scene.code}:{scene.code}.packages:/elsewhere"
    assert "TSGB_BOOT_B64" not in said["names"]


def test_it_fetches_once(scene: Scene) -> None:
    assert scene.run() == 0
    (scene.home / "code.tar.gz").unlink()
    assert scene.run() == 0
    assert len(scene.log.splitlines()) == 2


def test_it_fetches_from_webdav_and_shows_no_password(
    scene: Scene, dav: tuple[str, list[str]]
) -> None:
    url, shown = dav
    access = {"RCLONE_WEBDAV_USER": USER, "RCLONE_WEBDAV_PASS": PASSWORD}
    assert scene.run(TSGB_CODE_URL=f"webdav+{url}/code.tar.gz", **access) == 0
    assert shown == []
    wrong = {**access, "RCLONE_WEBDAV_PASS": "sentinel-wrong", "TSGB_CODE_DIR": str(scene.home)}
    assert scene.run(TSGB_CODE_URL=f"{url}/code.tar.gz", **wrong) == 1
    assert "HTTP 401" in scene.log
    assert PASSWORD not in scene.log
    assert "sentinel-wrong" not in scene.log


def test_the_password_is_for_this_server_only(scene: Scene) -> None:
    other = Script([Reply(404)])
    with serve_script(other) as there:
        script = Script([Reply(302, headers={"Location": f"{there}/x"})])
        with serve_script(script) as url:
            access = {"RCLONE_WEBDAV_USER": USER, "RCLONE_WEBDAV_PASS": PASSWORD}
            assert scene.run(TSGB_CODE_URL=f"{url}/x", **access) == 1
    assert "authorization" in script.seen[0].headers
    assert "authorization" not in other.seen[0].headers


def test_what_may_heal_is_tried_again(scene: Scene) -> None:
    replies = iter([Reply(503), Reply(200, "half"), Reply(404)])
    script = Script(lambda _seen: next(replies))
    with serve_script(script) as url:
        assert scene.run(TSGB_CODE_URL=f"{url}/code.tar.gz") == 1
    assert len(script.seen) == 3
    assert [word in scene.log for word in ("HTTP 503", "not what was published", "HTTP 404")]


@pytest.mark.parametrize(
    ("what", "outcome", "reason"),
    [
        ("absent", "config", "there is no such file"),
        ("another", "bad_host", "is not what was published"),
        ("refused", "bad_host", "Connection refused"),
    ],
)
def test_without_the_code_it_ends(scene: Scene, what: str, outcome: str, reason: str) -> None:
    changes = {"TSGB_BOOT_SECONDS": "4"}
    if what == "absent":
        (scene.home / "code.tar.gz").unlink()
    elif what == "another":
        (scene.home / "code.tar.gz").write_bytes(CODE + b"!")
    else:
        changes["TSGB_CODE_URL"] = "http://127.0.0.1:9/code.tar.gz"
    assert scene.run(**changes) == 1
    assert "the code cannot be fetched" in scene.log
    assert not scene.code.exists()
    assert scene.told()[0] == outcome
    assert reason in scene.told()[1]


def test_it_installs_only_what_is_missing(scene: Scene) -> None:
    """This Python has no pip; one that notes what it was asked for stands in."""
    noting = scene.home / "python"
    noting.write_text(
        f'#!/bin/sh\ncase "$*" in "-m pip "*) echo "$*" >>pip; exit 0 ;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    noting.chmod(0o755)
    assert scene.run(TSGB_PYTHON=str(noting)) == 0
    assert not (scene.home / "pip").exists()
    needy = archive(
        **{
            "tsgb/cli/__main__.py": WATCHER,
            "requirements.txt": "pytest>=900\nno-such-thing\n",
            "requirements-own.txt": "own-world==1\n",
            "pinned.txt": f"no-such-thing==1 \\\n    --hash=sha256:1\nhttpx=={version('httpx')} "
            '--hash=sha256:2\nanyio==1 ; python_version == "2.7" --hash=sha256:3\n',
            "pinned-torch.txt": "triton==1 --hash=sha256:4\n",
        }
    )
    (scene.home / "code.tar.gz").write_bytes(needy)
    digest = hashlib.sha256(needy).hexdigest()
    assert scene.run(TSGB_PYTHON=str(noting), TSGB_CODE_SHA256=digest) == 0
    assert "not in this image: pytest>=900, no-such-thing, own-world==1" in scene.log
    first, second = [line.split() for line in (scene.home / "pip").read_text().splitlines()]
    assert first[:3] == second[:3] == ["-m", "pip", "install"]
    folder = f"{os.fspath(scene.code.parent)}/{digest}"
    assert {"--require-hashes", "--no-deps", "--only-binary"} < set(first)
    assert first[-4:] == ["--target", f"{folder}.packages", "-r", f"{folder}.packages.txt"]
    chosen = Path(f"{folder}.packages.txt").read_text().split()
    assert chosen == ["no-such-thing==1", "--hash=sha256:1"], "what is there, and torch, stays"
    assert second[-2:] == ["-r", f"{folder}/requirements-own.txt"]
    assert "--require-hashes" not in second
    path = scene.watcher()["path"].split(":")
    assert path[:2] == [folder, f"{folder}.packages"]

    torch = archive(**{"requirements.txt": "torch>=900\n", "pinned-torch.txt": "triton==1\n"})
    (scene.home / "code.tar.gz").write_bytes(torch)
    digest = hashlib.sha256(torch).hexdigest()
    scene.run(TSGB_PYTHON=str(noting), TSGB_CODE_SHA256=digest)
    assert Path(f"{scene.code.parent}/{digest}.packages.txt").read_text() == "triton==1\n"


def test_what_cannot_be_installed_or_started_is_told(
    scene: Scene, dav: tuple[str, list[str]]
) -> None:
    """The container is gone a moment later, and its log with it."""
    needy = archive(**{"requirements.txt": "no-such-thing\n"})
    (scene.home / "code.tar.gz").write_bytes(needy)
    assert scene.run(TSGB_CODE_SHA256=hashlib.sha256(needy).hexdigest()) == 1
    outcome, message = scene.told()
    assert outcome == "bad_host"
    assert message.startswith("its requirements cannot be installed: ")
    assert message.endswith("No module named pip"), "in this Python there is none"
    broken = archive(
        **{"requirements.txt": "", "tsgb/worker/machine/__init__.py": "import no_such"}
    )
    (scene.home / "code.tar.gz").write_bytes(broken)
    url, shown = dav
    changes = {"RCLONE_WEBDAV_USER": USER, "RCLONE_WEBDAV_PASS": PASSWORD, "TSGB_RUN_URL": url}
    assert scene.run(TSGB_CODE_SHA256=hashlib.sha256(broken).hexdigest(), **changes) == 1
    told = json.loads((scene.home / "dav" / "machines" / "0003" / "exit.json").read_text())
    assert told["message"] == (
        "its code cannot be started: ModuleNotFoundError: No module named 'no_such'"
    )
    assert shown == []


def test_a_package_with_another_hash_is_told_by_its_name(scene: Scene) -> None:
    """As pip 26 says it; that pip refuses it is pip's."""
    refusing = scene.home / "python"
    refusing.write_text(
        '#!/bin/sh\ncase "$*" in "-m pip "*) printf "Collecting x\\nERROR: THESE PACKAGES DO NOT '
        'MATCH THE HASHES\\n    x==1 (line 1):\\n        Got 77\\n"; exit 1 ;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    refusing.chmod(0o755)
    needy = archive(**{"requirements.txt": "x>=1\n", "pinned.txt": "x==1 --hash=sha256:78\n"})
    (scene.home / "code.tar.gz").write_bytes(needy)
    digest = hashlib.sha256(needy).hexdigest()
    assert scene.run(TSGB_PYTHON=str(refusing), TSGB_CODE_SHA256=digest) == 1
    outcome, message = scene.told()
    assert outcome == "bad_host"
    assert message == (
        "its requirements cannot be installed: ERROR: THESE PACKAGES DO NOT MATCH THE HASHES "
        "x==1 (line 1): Got 77"
    )


def test_a_store_that_is_away_too_is_said_in_the_log(scene: Scene) -> None:
    away = {"TSGB_CODE_URL": "http://127.0.0.1:9/x", "TSGB_RUN_URL": "http://127.0.0.1:9/r1"}
    assert scene.run(TSGB_BOOT_SECONDS="2", **away) == 1
    assert "tsgb: no exit record: " in scene.log
    assert "tsgb: the code cannot be fetched" in scene.log
