"""What is left of a run, by what its arms have in the store."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows.rented import ArmsWork
from flows.workers import Workers
from tsgb.checkpoint.store import CheckpointStore
from tsgb.cloud.documents import AttemptResult, saved_updates
from tsgb.cloud.forecast import workload
from tsgb.cloud.history import (
    RemainingWork,
    StateSize,
    measure,
    measured_updates,
    read_history,
    state_size,
)
from tsgb.cloud.inventory import DeploymentRuns
from tsgb.cloud.speed import MeasuredUpdates
from tsgb.cloud.termination import TerminationReason
from tsgb.config import Arm, arm_overrides, arm_run_id, make_config
from tsgb.settings import Settings

SIZES: dict[str, Any] = {
    "attacker": {"sft_steps": 10, "warmup_steps": 0},
    "guard": {"sft_steps": 10},
    "selfplay": {"rounds": 1, "attacker_steps": 20, "guard_steps": 20},
}
NOW = datetime(2026, 1, 1, tzinfo=UTC)
INTENT: dict[str, Any] = {
    "label": "tsgb/home/r1/1",
    **dict.fromkeys(("ask_id", "machine_id", "host_id"), 1),
    **dict.fromkeys(("price", "hourly", "disk_gb"), 1.0),
    "intended_at": NOW.isoformat(),
}
SECONDS = {"sft_attacker": 0.5, "sft_guard": 1.0, "attacker": 3.0, "guard": 2.0}


@pytest.fixture
def runs(tmp_path: Path) -> DeploymentRuns:
    return DeploymentRuns(url=str(tmp_path / "store"))


def begin(runs: DeploymentRuns, arm: Arm, **changes: Any) -> None:
    """An arm of run r1 with nothing saved, that has made one update of each of its kinds."""
    run = runs.documents(arm_run_id("r1", arm)).run
    config = make_config(SIZES, arm_overrides(arm), changes)
    run.write_text("config.json", config.canonical())
    lines = [{"phase": p.kind, "seconds": SECONDS[p.kind]} for p in config.phases()]
    run.write_text("metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))


def test_arms_train_at_once_so_the_longest_counts(runs: DeploymentRuns) -> None:
    for arm in (Arm.SFT, Arm.SELFPLAY, Arm.FROZEN):
        begin(runs, arm)
    left = measure(runs, "r1")
    longest = 10 * 0.5 + 10 * 1.0 + 20 * 3.0 + 20 * 2.0
    assert left.hours == pytest.approx(longest / 3600)
    assert left.step_seconds == pytest.approx(longest / 60)
    assert left.source == (
        "130 of 130 updates of run r1, as fast as those before; its 3 arms train at once, and "
        "selfplay has the most left"
    )


def test_one_arm_is_all_there_is(runs: DeploymentRuns) -> None:
    begin(runs, Arm.SFT)
    left = measure(runs, "r1")
    assert left.hours == pytest.approx((10 * 1.0 + 20 * 2.0) / 3600)
    assert left.source == "30 of 30 updates of run r1, as fast as those before"


def test_a_fixed_interval_is_that_of_the_worker(runs: DeploymentRuns) -> None:
    begin(runs, Arm.SELFPLAY)
    assert measure(runs, "r1").save_updates is None
    begin(runs, Arm.SELFPLAY, checkpoint_interval=4)
    left = measure(runs, "r1")
    assert left.save_updates == 4
    work = workload(
        left.hours, disk_gb=20, step_seconds=left.step_seconds, save_updates=left.save_updates
    )
    for mtbf in (60.0, 7200.0):
        assert work.interval(mtbf) == 4 * left.step_seconds


def test_updates_are_those_of_the_gpu_whose_attempt_saved_them(runs: DeploymentRuns) -> None:
    """The second attempt went on from update 2, so what the first did after it is lost."""
    run = runs.documents("r1").run
    seconds = [1.0, 1.0, 4.0, 4.0, 9.0]
    lines = [{"step": n, "phase": "guard", "seconds": s} for n, s in enumerate(seconds, 1)]
    run.write_text("metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    run.write_json("budget.json", {})
    for attempt, (gpu, first, last) in enumerate(
        [("RTX 3090", 0, 2), ("RTX 5090", 2, 4), ("RTX 5090", 9, 9)], start=1
    ):
        arm = {"first_step": first, "step": last + 5, "durable_step": last}
        told = saved_updates({"arms": {"selfplay": arm, "\x1b": arm, "frozen": {"step": 3}}})
        assert told == ({"selfplay": (first, last)} if last > first else {})
        result = AttemptResult(cause=TerminationReason.PREEMPTED, at=NOW, updates=told)
        runs.documents("r1").note(
            attempt,
            intent={**INTENT, "gpu_name": gpu},
            outcome=result.model_dump(mode="json"),
        )
    found = (
        MeasuredUpdates(("r1", "guard"), "RTX 3090", 2, 1.0),
        MeasuredUpdates(("r1", "guard"), "RTX 5090", 2, pytest.approx(4.0)),
    )
    assert measured_updates(runs.documents("r1")) == found
    assert read_history(runs).updates == found
    assert measured_updates(runs.documents("r2")) == ()


def save(runs: DeploymentRuns, arm: Arm, step: int, num_bytes: int, shared: bytes = b"") -> None:
    store = CheckpointStore(runs.documents(arm_run_id("r1", arm)).run)
    store.claim(None)
    files = {"a": bytes(num_bytes - 1), "b": b"x"}
    parts = {"a/one": shared, "a/same": shared} if shared else {}
    store.publish(step, step, {**files, **parts}, "0" * 64)


def traffic(left: RemainingWork) -> tuple[float, float, str]:
    return left.save_gb, left.restore_gb, left.traffic_source


def test_checkpoints_are_traffic(runs: DeploymentRuns) -> None:
    begin(runs, Arm.SELFPLAY)
    assert traffic(measure(runs, "r1")) == (0.0, 0.0, "")
    save(runs, Arm.SELFPLAY, 0, 1_000)
    save(runs, Arm.SELFPLAY, 10, 3_000_000)
    gigabytes = pytest.approx(0.003)
    source = "by the newest checkpoints of run r1"
    assert traffic(measure(runs, "r1")) == (gigabytes, gigabytes, source)

    begin(runs, Arm.SFT)  # half as long to go, and nothing is known of its size
    left = measure(runs, "r1")
    share = (10 * 1.0 + 20 * 2.0) / (10 * 1.0 + 20 * 3.0 + 20 * 2.0)
    assert (left.save_gb, left.restore_gb) == pytest.approx((0.003 * (1 + share), 0.006))

    save(runs, Arm.SFT, 30, 1_000_000)  # done: it is loaded at each start, and saves no more
    left = measure(runs, "r1")
    assert (left.save_gb, left.restore_gb) == pytest.approx((0.003, 0.004))


def test_an_offer_is_chosen_with_the_traffic_of_the_run_by_then(runs: DeploymentRuns) -> None:
    begin(runs, Arm.SELFPLAY)
    workers = Workers(Settings(), runs.url, "r1")
    work = ArmsWork(workers, {Arm.SELFPLAY: workers.config()})
    assert work.load().save_gb == 0.0
    start = 3.0 + 0.131
    assert work.load().restore_gb == pytest.approx(start), "the image, and the packages"
    save(runs, Arm.SELFPLAY, 10, 3_000_000)
    assert work.load().save_gb == pytest.approx(0.003)
    assert work.load().restore_gb == pytest.approx(start + 0.003)
    # What checkpoints share is sent no more, but a new machine fetches it.
    save(runs, Arm.SELFPLAY, 12, 3_000_000, shared=bytes(1_000_000))
    assert work.load().save_gb == pytest.approx(0.003)
    assert work.load().restore_gb == pytest.approx(start + 0.004)
    left = measure(runs, "r1")
    assert (left.save_gb, left.restore_gb) == pytest.approx((0.003, 0.004))


def test_a_damaged_checkpoint_keeps_nobody_from_choosing(runs: DeploymentRuns) -> None:
    begin(runs, Arm.SELFPLAY)
    save(runs, Arm.SELFPLAY, 10, 3_000_000)
    run = runs.documents("r1").run
    [name] = run.list("checkpoints")
    run.write_text(f"checkpoints/{name}/manifest.json", "{")
    assert state_size([run]) == StateSize()


def test_seconds_that_no_update_takes_are_not_counted(runs: DeploymentRuns) -> None:
    begin(runs, Arm.SELFPLAY)
    plain = measure(runs, "r1").hours
    run = runs.documents("r1").run
    strange = ["1e999", "-1", '"x"', "[]", "1" + "0" * 400]
    lines = [f'{{"phase": "guard", "seconds": {value}}}' for value in strange]
    run.write_text("metrics.jsonl", run.read_text("metrics.jsonl") + "\n".join([*lines, "5", "["]))
    assert measure(runs, "r1").hours == plain
