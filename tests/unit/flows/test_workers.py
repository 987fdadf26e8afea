"""What the traces of an arm's workers say: how many there were, and the next one's number."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.rented import ArmsWork
from flows.workers import Workers
from tsgb.checkpoint.store import CheckpointStore
from tsgb.config import Arm, make_config
from tsgb.settings import Settings


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    return Workers(Settings(cache_dir=tmp_path / "cache"), str(tmp_path / "store"), "r1")


def begun(workers: Workers) -> int:
    """As the next rented machine is numbered."""
    return ArmsWork(workers, dict.fromkeys([Arm.SELFPLAY, Arm.SFT], make_config({}))).begun()


def test_nothing_was_begun(workers: Workers) -> None:
    assert workers.attempts(Arm.SELFPLAY) == workers.highest(Arm.SELFPLAY) == begun(workers) == 0


def test_a_machine_that_never_booted_is_no_worker_but_keeps_its_number(workers: Workers) -> None:
    CheckpointStore(workers.open()).claim(2)  # machine 1 was rented, paid for, and silent
    CheckpointStore(workers.open(Arm.SFT)).claim(2)
    CheckpointStore(workers.open(Arm.SFT)).claim(3)
    assert (workers.attempts(Arm.SELFPLAY), workers.highest(Arm.SELFPLAY)) == (1, 2)
    assert (workers.attempts(Arm.SFT), workers.highest(Arm.SFT)) == (2, 3)
    assert begun(workers) == 3


def test_a_machine_that_starts_its_process_again_is_one_worker(workers: Workers) -> None:
    for _ in range(2):
        CheckpointStore(workers.open()).claim(1)
    assert workers.attempts(Arm.SELFPLAY) == 1


def test_a_local_worker_that_died_before_its_claim_keeps_its_number(workers: Workers) -> None:
    workers.open().write_json("attempts/0004.json", {"attempt": 4})
    assert (workers.attempts(Arm.SELFPLAY), workers.highest(Arm.SELFPLAY)) == (0, 4)


def test_foreign_files_are_no_attempts(workers: Workers) -> None:
    workers.open().write_json("attempts/0004.json", {"attempt": 4})
    directory = Path(workers.open().run_url) / "attempts"
    for name in (".DS_Store", "x.json", "9999999999.json", "0005 (conflicted copy).json"):
        (directory / name).write_text("{}")
    (directory / ".#0006.json").symlink_to("nowhere")
    assert workers.highest(Arm.SELFPLAY) == begun(workers) == 4
