"""`tsgb manager loop` on a real Prefect server: a run is done, then each start ends at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.fakes.manager import RUN, Manager
from tests.fakes.miniature import MINIATURE
from tests.integration.test_deployment import Api, free_port, running, wait_for
from tests.integration.test_manager_ends import set_options

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_run_is_started_until_it_is_done(tmp_path: Path) -> None:
    api = Api(f"http://127.0.0.1:{free_port()}/api")
    prefect = {
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": api.url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_RUNNER_POLL_FREQUENCY": "2",
    }
    port = str(httpx.URL(api.url).port)
    serve = ["server", "start", "--no-ui", "--host", "127.0.0.1", "--port", port]
    with (
        Manager(tmp_path) as manager,
        running(serve, manager.environment(**prefect), tmp_path / "server.log"),
    ):
        wait_for("the server", api.healthy, 180)
        environment = manager.environment(**prefect)
        command = [sys.executable, "-m", "tsgb.cli", "manager", "loop", "--interval", "10"]
        command += ["--run-id", RUN, "--profile", "smoke", "--env", MINIATURE["env"]]
        command += ["--arms", "selfplay", "--vast-url", manager.simulator.url]
        command += set_options({k: v for k, v in MINIATURE.items() if k not in {"profile", "env"}})
        with (tmp_path / "loop.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=environment, cwd=tmp_path, stdout=log, stderr=log
            )
        try:
            wait_for("three starts", lambda: _completed(api) >= 3, 480)
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


def _completed(api: Api) -> int:
    return sum(run["state_type"] == "COMPLETED" for run in api.flow_runs("stage1-"))
