"""Preemption heals through Prefect's retries alone; nothing else is retried, and nothing twice."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, TaskRun

from flows.stage1 import stage1
from tests.flows.conftest import Behave
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import open_run
from tsgb.cloud.documents import RunDocuments
from tsgb.config import Profile
from tsgb.errors import WorkerFailed
from tsgb.types import CheckpointRef

pytestmark = [pytest.mark.flows, pytest.mark.usefixtures("prefect_api")]

TINY: dict[str, Any] = {
    "segments": 1,
    "attacker": {"sft_steps": 2, "warmup_steps": 0},
    "guard": {"sft_steps": 2},
    "selfplay": {"rounds": 1, "attacker_steps": 2, "guard_steps": 2},
}


TWO_SEGMENTS = {**TINY, "segments": 2}


def train(run: str, **parameters: Any) -> State[dict[str, Any]]:
    options: dict[str, Any] = {"profile": Profile.SMOKE, "arms": ["selfplay"], "overrides": TINY}
    return stage1(run=run, return_state=True, **{**options, **parameters})


def task_runs(state: State[Any]) -> dict[str, TaskRun]:
    """By name without Prefect's random end, as the UI shows them.

    They are told as events, which the server may still be reading when the flow has ended.
    """
    flow_run_id = state.state_details.flow_run_id
    runs: list[TaskRun] = []
    with get_client(sync_client=True) as client:
        for _ in range(150):
            runs = client.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
            )
            if runs and all(run.state and run.state.is_final() for run in runs):
                break
            time.sleep(0.2)
    return {run.name.removesuffix(f"-{run.dynamic_key[:3]}"): run for run in runs}


def test_three_lost_machines_heal_by_retries(store: Path, behave: Behave) -> None:
    behave({"lost": {"vanish": [1, 2, 3]}})

    state = train("lost", overrides=TWO_SEGMENTS)

    assert state.is_completed()
    result = state.result()
    assert result["step"] == 8
    assert result["attempts"]["selfplay"] == 5, "three were lost, one ended each segment"
    segment = task_runs(state)["segment-000"]
    assert segment.run_count == 4
    ref = CheckpointRef(**result["checkpoints"]["selfplay"])
    assert ref.url == result["checkpoint"]
    assert CheckpointReader(open_run(ref.run_url)).read(ref) == {"guard.safetensors": b"weights 8"}
    assert ref.run_url == str(store / "lost")


def test_a_lost_machine_lets_the_others_save(
    store: Path, behave: Behave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSGB_MAX_PARALLEL", "2")
    behave({"save": {"vanish": [1], "step_seconds": 0.5}, "save.sft": {"step_seconds": 0.2}})
    assert train("save", arms=["selfplay", "sft"]).is_completed()
    exits = store / "save.sft" / "exits"
    first = json.loads((exits / "0001.json").read_text())
    assert first["outcome"] in {"interrupted", "done"}
    assert first["checkpoint"]["step"] == first["step"]


def test_a_crash_is_not_retried(store: Path, behave: Behave) -> None:
    behave({"crash": {"crash": [1]}})

    state = train("crash")

    assert state.is_failed()
    with pytest.raises(WorkerFailed, match=r"segment 0: selfplay: ValueError: the fake crashes"):
        state.result()
    assert task_runs(state)["segment-000"].run_count == 1
    assert [path.name for path in (store / "crash" / "attempts").iterdir()] == ["0001.json"]


def test_what_is_finished_is_cached(store: Path) -> None:
    first, second = (train("again", overrides=TWO_SEGMENTS) for _ in range(2))
    assert first.is_completed()
    assert {run.state_name for run in task_runs(first).values()} == {"Completed"}
    assert {run.state_name for run in task_runs(second).values()} == {"Cached"}
    assert second.result() == first.result()

    shutil.rmtree(store / "again")
    third = train("again")
    assert {run.state_name for run in task_runs(third).values()} == {"Completed"}, (
        "a deleted run is not finished, whatever Prefect remembers"
    )


STEPS = {"recover", "launch", "monitor", "terminate", "verify"}


def test_a_segment_is_five_steps_and_its_attempt_is_written_down(
    store: Path, behave: Behave
) -> None:
    behave({"steps": {"vanish": [1]}})
    state = train("steps")
    assert state.is_completed()
    assert {name.partition("-")[0] for name in task_runs(state)} == {"segment", *STEPS}
    assert task_runs(state)["segment-000"].state_name == "Completed"
    lost, done = RunDocuments(open_run(str(store / "steps"))).attempts()
    assert lost.result is not None
    assert done.result is not None
    assert (lost.result.cause, done.result.cause) == ("preempted", "done")
    assert done.result.step == 8


def test_an_attempt_whose_flow_was_killed_is_closed_by_the_next(store: Path) -> None:
    documents = RunDocuments(open_run(str(store / "closed")))
    documents.note(1, machine="local")
    assert train("closed").is_completed()
    died, done = documents.attempts()
    assert died.result is not None
    assert done.result is not None
    assert (died.result.cause, died.result.message) == ("stopped", "its flow had died")
    assert done.result.cause == "done"
