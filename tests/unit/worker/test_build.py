"""`tsgb worker build` says which model it is at, and how far; parts share the models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.contexts import signalled, worker_context
from tests.fakes.miniature import TRUST, miniature_config
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.errors import Interrupted
from tsgb.worker.build import build, make_registry

pytestmark = pytest.mark.usefixtures("handlers")


@pytest.fixture
def run(tmp_path: Path) -> RunStore:
    made = open_run(str(tmp_path / "r1"))
    made.write_text("config.json", miniature_config().canonical())
    return made


def test_a_heartbeat_names_the_model_and_its_updates(run: RunStore, tmp_path: Path) -> None:
    build(worker_context(tmp_path / "cache", trust=TRUST), run.run_url, 0, 1)
    heartbeat = run.read_json("builds/progress-0.json")
    assert heartbeat["built"] == heartbeat["build_total"] > 0
    assert heartbeat["phase"].startswith("build ")


def test_parts_build_every_model_once(run: RunStore, tmp_path: Path) -> None:
    context = worker_context(tmp_path / "cache", trust=TRUST)
    built: list[str] = []

    def on_build(model: str, done: int, total: int) -> None:
        built.extend([model] * (done == total))

    for part in range(2):
        build(context, run.run_url, part, 2)
    registry = make_registry(miniature_config(), context, on_build)
    for name in (name for names in registry.parts(1) for name in names):
        registry.build(name)
    assert built == [], "both parts together left nothing to build"


def test_a_signal_ends_it_before_the_next_update(run: RunStore, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        build(signalled(tmp_path / "cache", trust=TRUST), run.run_url, 0, 1)
    assert run.list_if_present("builds") == []
