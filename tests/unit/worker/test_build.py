"""`tsgb worker build` says which model it is at, and how far."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.contexts import worker_context
from tests.fakes.miniature import TRUST, miniature_config
from tsgb.checkpoint.run import open_run
from tsgb.worker.build import build


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A worker takes the signals over for the life of its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_heartbeat_names_the_model_and_its_updates(tmp_path: Path) -> None:
    run = open_run(str(tmp_path / "r1"))
    run.write_text("config.json", miniature_config().canonical())
    build(worker_context(tmp_path / "cache", trust=TRUST), run.run_url, 0, 1)
    heartbeat = run.read_json("builds/progress-0.json")
    assert heartbeat["built"] == heartbeat["build_total"] > 0
    assert heartbeat["phase"].startswith("build ")
