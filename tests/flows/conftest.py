"""One embedded Prefect API for all flow tests, and a fake worker that computes nothing."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows import embedded
from tsgb.settings import child_environment

ROOT = Path(__file__).parents[2]
FAKE_WORKER = ROOT / "tests" / "fakes" / "worker.py"

Behave = Callable[[dict[str, object]], None]


@pytest.fixture(scope="session")
def worker_environment() -> dict[str, str]:
    """What makes a process of ours use the fake worker, and not wait for anything."""
    return {
        "TSGB_WORKER_COMMAND": shlex.join([sys.executable, str(FAKE_WORKER)]),
        "TSGB_RETRY_DELAY_SECONDS": "0",
        "TSGB_POLL_SECONDS": "0.05",
        "TSGB_MAX_PARALLEL": "1",  # a worker costs a second of imports; parts are for speed
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="session")
def migrated(pytestconfig: pytest.Config) -> Path:
    """A migrated database, kept between sessions: making one takes 6 of 15 seconds of CPU time."""
    cache = pytestconfig.cache
    assert cache is not None
    home = cache.mkdir("prefect-api")
    found = home / embedded.TEMPLATE
    if not found.exists():
        with embedded.start(home, "first", child_environment()) as api:
            api.wait()
    return found


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[None]:
    home = tmp_path_factory.mktemp("prefect")
    shutil.copy(migrated, home)
    with embedded.start(home, "tests", child_environment()) as api, embedded.connected(api):
        yield


@pytest.fixture
def store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker_environment: dict[str, str]
) -> Path:
    """Settings of this test; an empty store."""
    for name in list(os.environ):
        if name.startswith(("TSGB_", "RCLONE_WEBDAV_")):
            monkeypatch.delenv(name)
    for name, value in worker_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TSGB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TSGB_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)  # no .env of the developer's
    return tmp_path / "store"


@pytest.fixture
def behave(monkeypatch: pytest.MonkeyPatch) -> Behave:
    """Tell the fake worker what the attempts of a run do."""
    return lambda plan: monkeypatch.setenv("TSGB_FAKE", json.dumps(plan))
