"""An operator at the command line: an account of the simulated service, a store, `run("reap")`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.command_line import Ended, Run
from tests.fakes.operator_scene import HOUR
from tests.fakes.vast.driver import Driver
from tests.fakes.vast.options import Options
from tests.fakes.vast.server import VastSimulator
from tsgb.cloud.inventory import DeploymentRuns


@pytest.fixture
def vast() -> Iterator[Driver]:
    """An account, an hour ago: `advance(HOUR)` is now."""
    with (
        VastSimulator(Options(boot_seconds=(60, 60)), age_seconds=HOUR) as simulator,
        Driver(simulator) as driver,
    ):
        yield driver


@pytest.fixture
def runs(tmp_path: Path) -> DeploymentRuns:
    (tmp_path / "store" / "other").mkdir(parents=True)
    return DeploymentRuns(url=str(tmp_path / "store"), deadline_seconds=0.1)


@pytest.fixture
def run(
    tsgb: Run, vast: Driver, runs: DeploymentRuns, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Ended]]:
    """`run("machines ls")`; whatever it says, the key is not in it."""
    monkeypatch.setenv("VAST_API_KEY", vast.vast.key)
    monkeypatch.setenv("TSGB_GRACE_SECONDS", "0")
    monkeypatch.setenv("TSGB_LOOK_SECONDS", "1")
    monkeypatch.setenv("TSGB_LEASE_POLL_SECONDS", "1")
    said: list[str] = []

    def command(words: str) -> Ended:
        ended = tsgb(*words.split(), "--vast-url", vast.vast.url, "--store", runs.url)
        said.extend((ended.out, ended.err))
        return ended

    yield command
    assert vast.vast.key not in "".join(said)
