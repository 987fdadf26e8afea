"""Ctrl-C: the worker saves, Prefect knows, and the same command goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.flows.test_stage1 import TWO_SEGMENTS
from tsgb.errors import ExitCode

pytestmark = pytest.mark.flows

COMMAND = """
import json, sys
from flows.experiment import run_experiment
from tsgb.errors import TSGBError
from tsgb.run_options import RunOptions
try:
    document = run_experiment(
        RunOptions(
            run="ctrl-c", profile="smoke", arms=["selfplay"], overrides=json.loads(sys.argv[1])
        )
    )
except TSGBError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
print(json.dumps(document))
"""


def start(**behaviour: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, json.dumps(TWO_SEGMENTS)],
        env={**os.environ, "TSGB_FAKE": json.dumps(behaviour)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def states(cache: Path, table: str) -> list[tuple[str, str]]:
    (database,) = cache.glob("prefect/ctrl-c-*/prefect.db")
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(f"select name, state_name from {table} order by created")  # noqa: S608
        return [(name, state) for name, state in rows]


def test_ctrl_c_saves_and_the_same_command_resumes(
    store: Path, tmp_path: Path, migrated: Path
) -> None:
    run, cache = store / "ctrl-c", tmp_path / "cache"
    (cache / "prefect").mkdir(parents=True)
    shutil.copy(migrated, cache / "prefect")
    process = start(**{"ctrl-c": {"step_seconds": 0.2}})
    try:
        deadline = time.monotonic() + 240
        while not (run / "heartbeats" / "0001.json").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == ExitCode.INTERRUPTED, err
    assert "go on with --run-id ctrl-c" in err.splitlines()[-1]
    assert not out
    record = json.loads((run / "exits" / "0001.json").read_text())
    assert record["outcome"] == "interrupted"
    assert (run / "checkpoints" / record["checkpoint"]["name"]).is_dir()
    assert ("stage1-ctrl-c", "Crashed") in states(cache, "flow_run")

    process = start()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    document = json.loads(out)
    assert document["stage1"]["state"] == document["stage2"]["state"] == "COMPLETED"
    assert document["stage1"]["attempts"] == 3, "the one that was stopped, and one a segment"
    assert Path(document["stage2"]["report"]).exists()
    assert document["results"][0].keys() >= {"guard", "target", "asr", "fpr", "auroc"}
    tasks = states(cache, "task_run")
    segments = [state for name, state in tasks if name.startswith("segment-")]
    assert segments[-2:] == ["Completed", "Completed"], "the one that was stopped, and the next"
    steps = {name.rpartition("-")[0] for name, _ in tasks} - {"segment-000", "segment-001"}
    assert {"recover", "launch", "monitor", "terminate", "verify"} <= steps
