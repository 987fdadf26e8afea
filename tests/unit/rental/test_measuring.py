"""What is left of a run, by what its arms have in the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tsgb.config import Arm, arm_overrides, arm_run_id, make_config
from tsgb.rental.archive import Archive
from tsgb.rental.measuring import measure

SIZES: dict[str, Any] = {
    "attacker": {"sft_steps": 10, "warmup_steps": 0},
    "guard": {"sft_steps": 10},
    "selfplay": {"rounds": 1, "attacker_steps": 20, "guard_steps": 20},
}
SECONDS = {"sft_attacker": 0.5, "sft_guard": 1.0, "attacker": 3.0, "guard": 2.0}


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(url=str(tmp_path / "store"))


def begin(archive: Archive, arm: Arm, **changes: Any) -> None:
    """An arm of run r1 with nothing saved, that has made one update of each of its kinds."""
    run = archive.papers(arm_run_id("r1", arm)).run
    config = make_config(SIZES, arm_overrides(arm), changes)
    run.write_text("config.json", config.canonical())
    lines = [{"phase": p.kind, "seconds": SECONDS[p.kind]} for p in config.phases()]
    run.write_text("metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))


def test_arms_train_at_once_so_the_longest_counts(archive: Archive) -> None:
    for arm in (Arm.SFT, Arm.SELFPLAY, Arm.FROZEN):
        begin(archive, arm)
    left = measure(archive, "r1")
    longest = 10 * 0.5 + 10 * 1.0 + 20 * 3.0 + 20 * 2.0
    assert left.hours == pytest.approx(longest / 3600)
    assert left.step_seconds == pytest.approx(longest / 60)
    assert left.source == (
        "130 of 130 updates of run r1, as fast as those before; its 3 arms train at once, and "
        "selfplay has the most left"
    )


def test_one_arm_is_all_there_is(archive: Archive) -> None:
    begin(archive, Arm.SFT)
    left = measure(archive, "r1")
    assert left.hours == pytest.approx((10 * 1.0 + 20 * 2.0) / 3600)
    assert left.source == "30 of 30 updates of run r1, as fast as those before"
