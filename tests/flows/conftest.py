"""Settings of flow tests, and a fake worker that computes nothing."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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
