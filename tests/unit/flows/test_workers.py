"""How workers are started, and what their traces say: how many there were, the next number."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from flows.rented import ArmsWork
from flows.workers import Workers
from tests.fakes.chat_model import enlarge, save_chat_model
from tests.fakes.checkpoints import CONFIG, content
from tsgb.checkpoint.store import CheckpointStore
from tsgb.config import Arm, arm_overrides, make_config
from tsgb.settings import Settings


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    return Workers(Settings(cache_dir=tmp_path / "cache"), str(tmp_path / "store"), "r1")


SAYS = """
import json, sys
from pathlib import Path
from tsgb.settings import load_settings
with Path(sys.argv[1]).open("a") as file:
    file.write(json.dumps([sys.argv[2:], load_settings().memory_shares]) + chr(10))
"""
"""A worker that says what it was told, and does nothing."""


class TestSharesOfMemory:
    """Workers that run at the same time divide the memory of the machine."""

    ARMS: ClassVar = {Arm.SELFPLAY: 1, Arm.SFT: 1, Arm.FROZEN: 1}

    @pytest.fixture
    def started(self, tmp_path: Path) -> Callable[..., Workers]:
        def start(**more: Any) -> Workers:
            command = [sys.executable, "-c", SAYS, str(tmp_path / "said")]
            usual = {"cache_dir": tmp_path / "cache", "worker_command": command, "max_parallel": 2}
            settings = Settings(**{**usual, "poll_seconds": 0.05, **more})
            return Workers(settings, str(tmp_path / "store"), "r1")

        return start

    @pytest.fixture
    def shares(self, tmp_path: Path) -> Callable[[], list[int]]:
        """What each worker since the last call was told."""

        def read() -> list[int]:
            lines = (tmp_path / "said").read_text().splitlines()
            (tmp_path / "said").unlink()
            return [json.loads(line)[1] for line in lines]

        return read

    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        return save_chat_model(tmp_path / "base")

    def begin(self, workers: Workers, **more: Any) -> None:
        for arm in self.ARMS:
            config = make_config({"profile": "smoke", "env": "glyph", **more}, arm_overrides(arm))
            workers.open(arm).write_text("config.json", config.canonical())

    def test_each_is_told_how_many_there_are(
        self, started: Callable[..., Workers], shares: Callable[[], list[int]]
    ) -> None:
        workers = started()
        self.begin(workers)
        workers.train(self.ARMS, 1, "train")
        assert shares() == [2, 2, 2]
        workers.build(Arm.SELFPLAY)
        assert shares() == [2, 2]
        workers.evaluate(Arm.SELFPLAY, "e1")
        assert shares() == [2, 2]
        workers = started(max_parallel=8)
        workers.train(self.ARMS, 1, "train")
        assert shares() == [3, 3, 3]
        workers.evaluate(Arm.SELFPLAY, "e1")
        assert shares() == [8] * 8
        started(max_parallel=1).train(self.ARMS, 1, "train")
        assert shares() == [1, 1, 1]

    def test_an_arm_that_goes_on_alone_has_the_share_that_it_had(
        self, started: Callable[..., Workers], shares: Callable[[], list[int]]
    ) -> None:
        workers = started()
        self.begin(workers)
        for arm in (Arm.SELFPLAY, Arm.SFT):
            store = CheckpointStore(workers.open(arm))
            store.claim(1)
            store.publish(1, 1, content(1), CONFIG)
        workers.train(self.ARMS, 2, "train")
        assert shares() == [2]

    def test_fewer_run_where_memory_has_no_room_for_more(
        self, started: Callable[..., Workers], shares: Callable[[], list[int]], base: Path
    ) -> None:
        model = {"env": "canary", "model": {"pretrained": str(base)}}
        workers = started(memory_shares=100_000)  # a share has no room for one, which will say so
        self.begin(workers, **model)
        workers.train(self.ARMS, 1, "train")
        assert shares() == [100_000] * 3
        workers.build(Arm.SELFPLAY)
        assert shares() == [100_000]
        roomy = started()
        roomy.build(Arm.SELFPLAY)
        assert shares() == [2, 2]

    def test_each_part_of_an_evaluation_has_a_black_box(
        self, started: Callable[..., Workers], shares: Callable[[], list[int]], base: Path
    ) -> None:
        box = enlarge(save_chat_model(base.parent / "giant"))
        model = {"pretrained": str(base), "black_boxes": [str(box)]}
        workers = started()
        self.begin(workers, env="canary", model=model)
        workers.build(Arm.SELFPLAY)
        assert shares() == [2, 2]
        workers.evaluate(Arm.SELFPLAY, "e1")
        assert shares() == [1]
        for file in box.glob("*.safetensors"):
            file.unlink()  # a hole of 800 GB, which whoever looks for secrets would read


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
