"""The chain of both stages, run after run on one server, as a lab leaves it running.

Everything is real: `prefect deployment run ... --watch`, a process worker, training and evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.compose import ByHand, missing_programs
from tests.fakes.control_plane import ControlPlane, wait_for
from tests.fakes.sentinels import sentinel

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(5400)]
FINAL = {"COMPLETED", "CRASHED", "CANCELLED", "FAILED"}
PASSWORD = sentinel("database")


@contextmanager
def plane_on(database: str, home: Path) -> Iterator[ControlPlane]:
    """A server on SQLite or PostgreSQL, and its worker."""
    if database == "sqlite":
        with ControlPlane(home, trains=True) as plane:
            yield plane
        return
    (home / ".env").write_text(
        f"POSTGRES_PASSWORD={PASSWORD}\nRCLONE_WEBDAV_USER=x\nRCLONE_WEBDAV_PASS=x\n"
    )
    services = ByHand(home)
    services.start("database")
    wanted = services.environment("server")
    more = {k: v for k, v in wanted.items() if k.startswith("PREFECT_SERVER_DATABASE_")}
    try:
        with ControlPlane(home, more=more, trains=True) as plane:
            yield plane
    finally:
        services.stop()


@pytest.mark.parametrize(
    ("database", "times"),
    [
        ("sqlite", 10),
        pytest.param(
            "postgres",
            3,
            marks=pytest.mark.skipif(
                bool(missing_programs()), reason=f"not installed: {missing_programs()}"
            ),
        ),
    ],
)
def test_each_run_leads_to_one_evaluation_of_its_checkpoint(
    tmp_path: Path, database: str, times: int
) -> None:
    with plane_on(database, tmp_path) as plane:
        plane.deploy()
        for number in range(times):
            name = f"run-{number}"
            words = ["tsgb/stage1", "-p", "profile=smoke", "-p", f"run={name}"]
            done = plane.prefect("deployment", "run", *words, "--watch", seconds=900)
            assert done.returncode == 0, done.stdout + done.stderr
            wait_for(f"stage 2 of {name}", lambda: len(finished(plane)) > number, 600)  # noqa: B023
        runs = finished(plane)
        assert [run["parameters"]["run"] for run in runs] == [f"run-{n}" for n in range(times)]
        assert {run["state_type"] for run in runs} == {"COMPLETED"}
        assert len(plane.automated()) == times
        for run in runs:
            directory = tmp_path / "store" / run["parameters"]["run"] / "checkpoints"
            newest = max(path for path in directory.iterdir() if path.is_dir())
            assert run["parameters"]["checkpoint"] == str(newest)


def finished(plane: ControlPlane) -> list[dict[str, Any]]:
    """Flow runs of stage 2 that have ended, in order."""
    runs = [run for run in plane.automated() if run["state_type"] in FINAL]
    return sorted(runs, key=lambda run: run["parameters"]["run"])


def test_a_schedule_fires_and_a_paused_one_does_not(tmp_path: Path) -> None:
    with ControlPlane(tmp_path) as plane:
        plane.deploy()
        made = plane.prefect(
            *("deployment", "schedule", "create", "tsgb-reaper/reaper"),
            *("--interval", "5", "--replace", "-y"),
        )
        assert made.returncode == 0, made.stdout + made.stderr

        def fired() -> int:
            runs = plane.flow_runs("reaper")
            return sum(run["auto_scheduled"] and run["state_type"] in FINAL for run in runs)

        wait_for("two runs by the schedule", lambda: fired() >= 2, 300)
        found = httpx.get(f"{plane.url}/deployments/name/tsgb-reaper/reaper", timeout=30).json()
        [schedule] = found["schedules"]
        paused = plane.prefect(
            "deployment", "schedule", "pause", "tsgb-reaper/reaper", schedule["id"]
        )
        assert paused.returncode == 0, paused.stdout + paused.stderr

        def waiting() -> int:
            states = {"SCHEDULED", "PENDING", "RUNNING"}
            return sum(run["state_type"] in states for run in plane.find("flow_runs"))

        wait_for("the runs that were begun", lambda: waiting() == 0, 120)
        before = len(plane.find("flow_runs"))
        plane.prefect("deployment", "run", "tsgb-reaper/reaper", "--watch")
        assert len(plane.find("flow_runs")) == before + 1, "by hand alone, in a time for several"
