"""The deployments on a real server with a process worker.

Stage 2 follows stage 1, exactly once; the reaper looks on its schedule, and does its part of the
work where nobody gave it a key.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.fakes.control_plane import TINY, ControlPlane, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def test_stage_2_follows_stage_1_exactly_once(tmp_path: Path) -> None:
    with ControlPlane(tmp_path, {"deployed": {"vanish": [1]}}) as plane:
        plane.deploy()
        parameters = json.dumps({"run": "deployed", "targets": ["T_s"], **TINY})
        started = plane.prefect("deployment", "run", "tsgb/stage1", "--params", parameters)
        assert started.returncode == 0, started.stdout + started.stderr
        wait_for(
            "both stages",
            lambda: any(run["state_type"] == "COMPLETED" for run in plane.automated()),
            400,
        )
        plane.run("tsgb-reaper/reaper")
        wait_for(
            "the reaper",
            lambda: any(run["state_type"] == "COMPLETED" for run in plane.flow_runs("reaper")),
            200,
        )
        schedules = plane.intervals("tsgb-reaper/reaper")
        # The server has made runs of it: with some of its dependencies it makes none.
        wait_for(
            "the schedule", lambda: any(run["auto_scheduled"] for run in plane.flow_runs()), 120
        )
        time.sleep(5)  # a second one would have been created by now

        (first,) = plane.flow_runs("stage1-deployed")
        (second,) = plane.automated()
    assert first["state_type"] == "COMPLETED"
    assert schedules == [600]
    assert second["name"] == "stage2-deployed"
    given = second["parameters"]
    assert given["targets"] == ["T_s"], "a list, not a string"
    assert given["store"] == str(tmp_path / "store")
    run = tmp_path / "store" / "deployed"
    assert given["checkpoint"].startswith(f"{run}/checkpoints/step-00000008-")
    assert len(list((run / "attempts").iterdir())) == 3, "one was lost, one ended each segment"
    (report,) = (run / "reports").iterdir()
    assert (report / "summary.json").exists()
