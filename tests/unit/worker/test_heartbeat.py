"""Heartbeats of a machine: what they count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.filesystems import MemoryFiles
from tests.fakes.miniature import miniature_config
from tsgb.checkpoint.run import RunStore
from tsgb.worker.heartbeat import ArmMonitor, Traffic, read_traffic


def test_traffic_is_what_the_kernel_counts_without_the_loopback(tmp_path: Path) -> None:
    path = tmp_path / "dev"
    path.write_text(
        "Inter-|   Receive                            |  Transmit\n"
        " face |bytes packets errs drop fifo frame compressed multicast|bytes packets\n"
        "    lo: 9999 9 0 0 0 0 0 0 9999 9 0 0 0 0 0 0\n"
        "  eth0: 1000 1 0 0 0 0 0 0 200 1 0 0 0 0 0 0\n"
        "  eth1:   30 1 0 0 0 0 0 0   4 1 0 0 0 0 0 0\n"
    )
    assert read_traffic(path) == Traffic(up=204, down=1030)
    assert read_traffic(path).since(Traffic(up=200, down=1000)) == Traffic(up=4, down=30)
    assert read_traffic(path).since(Traffic(up=900, down=0)) == Traffic(up=204, down=1030)
    assert read_traffic(tmp_path / "none") == Traffic(0, 0)


@pytest.mark.parametrize("stored", ["[]", '"x"', "1e999", "null", "{", "5"])
def test_a_strange_heartbeat_ends_no_machine(stored: str) -> None:
    run = RunStore(files := MemoryFiles(), files.url, sleep=lambda _seconds: None)
    run.write_text("config.json", miniature_config().canonical())
    value: Any = {"useful_seconds": stored, "first_step": stored}
    arms = ArmMonitor({"sft": run}, 1)
    for before in ({"arms": stored}, {"arms": {"sft": stored}}, {"arms": {"sft": value}}):
        arms.begin(before)
    run.write_text("heartbeats/0001.json", f'{{"step": {stored}, "total_steps": 9}}')
    arms.read()
    assert arms.progress["sft"].step in {0, 5}
