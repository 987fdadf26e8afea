"""The work of rented machines, as their flow sees it in the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.rented import ArmsWork
from flows.workers import Workers
from tests.fakes.checkpoints import CONFIG, content
from tsgb.checkpoint.store import CheckpointStore
from tsgb.config import Arm, make_config
from tsgb.errors import Preempted
from tsgb.settings import Settings

SIZES = {
    "segments": 2,
    "attacker": {"sft_steps": 10, "warmup_steps": 0},
    "guard": {"sft_steps": 10},
    "selfplay": {"rounds": 1, "attacker_steps": 20, "guard_steps": 20},
}


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    return Workers(Settings(cache_dir=tmp_path / "cache"), str(tmp_path / "store"), "r1")


@pytest.fixture
def work(workers: Workers) -> ArmsWork:
    return ArmsWork(workers, {Arm.SELFPLAY: make_config(SIZES)})


def save(workers: Workers, step: int) -> Path:
    run = workers.open()
    store = CheckpointStore(run)
    store.claim(None)
    ref = store.publish(step, step, content(step), CONFIG)
    return Path(run.run_url) / "checkpoints" / ref.name


def test_a_segment_is_reached_by_its_checkpoint(workers: Workers, work: ArmsWork) -> None:
    assert not work.is_reached(0)
    with pytest.raises(Preempted, match="no checkpoint of selfplay at step 30"):
        work.verify(0)
    save(workers, 30)
    assert work.is_reached(0)
    assert work.verify(0)[Arm.SELFPLAY].step == 30
    assert not work.is_reached(1)


def test_a_last_checkpoint_that_rotted_is_trained_again(workers: Workers, work: ArmsWork) -> None:
    save(workers, 30)
    newest = save(workers, 60)
    assert work.is_reached(1)
    (newest / "guard.safetensors").write_bytes(b"rotten")
    assert not work.is_reached(1), "or it would be verified, in vain, for ever"
    with pytest.raises(Preempted):
        work.verify(1)
