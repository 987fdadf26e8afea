"""Heartbeats of a machine: what they count."""

from __future__ import annotations

from pathlib import Path

from tsgb.worker.heartbeat import Traffic, read_traffic


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
