"""`tsgb manager loop` on a real Prefect server: a run is done, then each start ends at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes.control_plane import ControlPlane, wait_for
from tests.fakes.manager import RUN, Manager
from tests.fakes.miniature import MINIATURE
from tests.integration.test_manager_ends import set_options

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_run_is_started_until_it_is_done(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    prefect = {k: v for k, v in plane.environment.items() if k.startswith("PREFECT_")}
    with Manager(tmp_path) as manager, closing_server(plane):
        environment = manager.environment(**prefect, PREFECT_RUNNER_POLL_FREQUENCY="2")
        command = [sys.executable, "-m", "tsgb.cli", "manager", "loop", "--interval", "10"]
        command += ["--run-id", RUN, "--profile", "smoke", "--env", MINIATURE["env"]]
        command += ["--arms", "selfplay", "--vast-url", manager.simulator.url]
        command += set_options({k: v for k, v in MINIATURE.items() if k not in {"profile", "env"}})
        with (tmp_path / "loop.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=environment, cwd=tmp_path, stdout=log, stderr=log
            )
        try:
            wait_for("three starts", lambda: _completed(plane) >= 3, 480)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        time.sleep(1)
        bill = manager.vast.sim("ledger")
    assert len(bill["instances"]) == 1, "one machine did it; the later starts rented none"
    assert not any(one["live"] for one in bill["instances"].values())


def _completed(plane: ControlPlane) -> int:
    return sum(run["state_type"] == "COMPLETED" for run in plane.flow_runs("stage1-"))


@contextmanager
def closing_server(plane: ControlPlane) -> Generator[None]:
    plane.start_server()
    try:
        yield
    finally:
        plane.stop_server()
