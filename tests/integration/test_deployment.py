"""The deployments on a real server with a process worker.

Stage 2 follows stage 1, exactly once; the reaper looks on its schedule, and does its part of the
work where nobody gave it a key.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
PREFECT = [sys.executable, "-m", "prefect"]
TINY = {
    "segments": 2,
    "attacker": {"sft_steps": 2, "warmup_steps": 0},
    "guard": {"sft_steps": 2},
    "selfplay": {"rounds": 1, "attacker_steps": 2, "guard_steps": 2},
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(what: str, condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} took more than {seconds} s"
        time.sleep(0.3)


@contextmanager
def running(
    arguments: list[str], environment: Mapping[str, str], log: Path
) -> Generator[subprocess.Popen[bytes]]:
    """A server process that is ended with the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*PREFECT, *arguments], env=environment, cwd=ROOT, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Api:
    def __init__(self, url: str) -> None:
        self.url = url

    def healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def has_pool(self) -> bool:
        return httpx.get(f"{self.url}/work_pools/tsgb-local", timeout=30).status_code == 200

    def flow_runs(self, prefix: str) -> list[dict[str, Any]]:
        answer = httpx.post(
            f"{self.url}/flow_runs/filter", json={"sort": "EXPECTED_START_TIME_ASC"}, timeout=30
        )
        return [run for run in answer.json() if run["name"].startswith(prefix)]

    def schedules(self, deployment: str) -> list[float]:
        """Seconds between two runs."""
        answer = httpx.get(f"{self.url}/deployments/name/{deployment}", timeout=30).json()
        return [entry["schedule"]["interval"] for entry in answer["schedules"] if entry["active"]]

    def automated(self) -> list[dict[str, Any]]:
        """Flow runs that an automation has created, whatever their name is by now."""
        return [
            run
            for run in self.flow_runs("")
            if (run["created_by"] or {}).get("type") == "AUTOMATION"
        ]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT_", "TSGB_", "RCLONE_", "VAST_"))
    }
    return {
        **kept,
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_CLI_COLORS": "false",
        "TSGB_STORE": str(tmp_path / "store"),
        "TSGB_CACHE_DIR": str(tmp_path / "cache"),
        "TSGB_RETRY_DELAY_SECONDS": "0",
        "TSGB_WORKER_COMMAND": shlex.join(
            [sys.executable, str(ROOT / "tests" / "fakes" / "worker.py")]
        ),
        "TSGB_FAKE": json.dumps({"deployed": {"vanish": [1]}}),
        "PYTHONPATH": str(ROOT),
    }


def prefect(environment: Mapping[str, str], *arguments: str) -> None:
    done = subprocess.run(
        [*PREFECT, *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_stage_2_follows_stage_1_exactly_once(environment: dict[str, str], tmp_path: Path) -> None:
    api = Api(environment["PREFECT_API_URL"])
    port = httpx.URL(api.url).port
    serve = ["server", "start", "--no-ui", "--host", "127.0.0.1", "--port", str(port)]
    work = ["worker", "start", "--pool", "tsgb-local", "--type", "process"]
    with running(serve, environment, tmp_path / "server.log"):
        wait_for("the server", api.healthy, 180)
        with running(work, environment, tmp_path / "worker.log"):
            wait_for("the worker to make its pool", api.has_pool, 120)
            prefect(environment, "deploy", "--prefect-file", "deployments/prefect.yaml", "--all")
            parameters = {
                "run": "deployed",
                "profile": "smoke",
                "arms": ["selfplay"],
                "targets": ["T_s"],
                "overrides": TINY,
            }
            prefect(
                environment, "deployment", "run", "tsgb/stage1", "--params", json.dumps(parameters)
            )
            wait_for(
                "both stages",
                lambda: any(run["state_type"] == "COMPLETED" for run in api.automated()),
                400,
            )
            prefect(environment, "deployment", "run", "tsgb-reaper/reaper")
            wait_for(
                "the reaper",
                lambda: any(run["state_type"] == "COMPLETED" for run in api.flow_runs("reaper")),
                200,
            )
            schedules = api.schedules("tsgb-reaper/reaper")
            # The server has made runs of it: with some of its dependencies it makes none.
            wait_for(
                "the schedule",
                lambda: any(run["auto_scheduled"] for run in api.flow_runs("")),
                120,
            )
            time.sleep(5)  # a second one would have been created by now

            (first,) = api.flow_runs("stage1-deployed")
            (second,) = api.automated()
    assert first["state_type"] == "COMPLETED"
    assert schedules == [600]
    assert second["name"] == "stage2-deployed"
    given = second["parameters"]
    assert given["targets"] == ["T_s"], "a list, not a string"
    assert given["store"] == environment["TSGB_STORE"]
    run = tmp_path / "store" / "deployed"
    assert given["checkpoint"].startswith(f"{run}/checkpoints/step-00000008-")
    assert len(list((run / "attempts").iterdir())) == 3, "one was lost, one ended each segment"
    (report,) = (run / "reports").iterdir()
    assert (report / "summary.json").exists()
