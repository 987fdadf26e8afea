"""The bad network does what it says, and counts it; the store gets over what can be got over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.fakes.dav_server import PASSWORD, USER, dav_app, serve
from tests.fakes.fault_proxy import FaultProxy, Rates
from tests.fakes.vast.driver import until
from tsgb.checkpoint.filesystem import FileSystem, open_filesystem
from tsgb.errors import StoreFull, StoreUnreachable

pytestmark = pytest.mark.integration

DATA = bytes(range(256)) * 400
Network = Callable[[Rates], FaultProxy]


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """Makes proxies before one server, whose directory is `tmp_path`."""
    with serve(dav_app(tmp_path)) as url:
        yield lambda rates: FaultProxy(url, rates, seed=5, delay_seconds=0.3)


def opened(proxy: FaultProxy, deadline_seconds: float = 0) -> FileSystem:
    return open_filesystem(
        f"{proxy.url}/r1/checkpoints",
        USER,
        SecretStr(PASSWORD),
        deadline_seconds=deadline_seconds,
        sleep=lambda seconds: time.sleep(seconds / 100),
    )


def test_without_faults_it_changes_nothing(network: Network, tmp_path: Path) -> None:
    with network(Rates()) as proxy:
        files = opened(proxy)
        files.write("a/b-c.bin", DATA)
        files.write("a/empty", b"")
        assert files.read("a/b-c.bin") == DATA
        assert [(entry.name, entry.size) for entry in files.entries("a")] == [
            ("b-c.bin", len(DATA)),
            ("empty", 0),
        ]
        files.delete_dir("a")
        with pytest.raises(FileNotFoundError):
            files.read("a/empty")
    assert proxy.faults == 0
    assert proxy.counts["requests"] >= 6


def test_what_happens_to_uploads(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "r1" / "checkpoints" / "x"
    with network(Rates()) as proxy:
        opened(proxy).write("before", b"")
    with network(Rates(unavailable=1)) as proxy:
        with pytest.raises(StoreUnreachable, match="HTTP 503"):
            opened(proxy).write("x", DATA)
        assert not path.exists()
    with network(Rates(put_full=1)) as proxy:
        with pytest.raises(StoreFull):
            opened(proxy).write("x", DATA)
        assert not path.exists()
    with network(Rates(put_cut=1)) as proxy:
        with pytest.raises(StoreUnreachable):
            opened(proxy).write("x", DATA)
        # The server may still be writing.
        until(lambda: path.exists() and path.read_bytes() == DATA[: len(DATA) // 2])
        assert proxy.counts["put_cut"] == 1
    with network(Rates(answer_lost=1)) as proxy:
        with pytest.raises(StoreUnreachable):
            opened(proxy).write("x", DATA)
        assert path.read_bytes() == DATA


def test_what_happens_to_reads(network: Network, tmp_path: Path) -> None:
    with network(Rates(delayed=1)) as proxy:
        begin = time.monotonic()
        opened(proxy).write("x", DATA)
        assert time.monotonic() - begin >= 0.3
    with network(Rates(read_flipped=1)) as proxy:
        read = opened(proxy).read("x")
        assert sum((a ^ b).bit_count() for a, b in zip(read, DATA, strict=True)) == 1
    with network(Rates(read_cut=1)) as proxy, pytest.raises(StoreUnreachable, match="Remote"):
        opened(proxy).read("x")


def test_what_heals_is_retried(network: Network) -> None:
    rates = Rates(unavailable=0.2, put_cut=0.2, answer_lost=0.2, read_cut=0.2)
    with network(Rates()) as proxy:
        files = opened(proxy, deadline_seconds=60)
        files.write("0", b"")  # a server that has never answered is given up far sooner
        proxy.rates = rates
        for number in range(5):
            files.write(f"{number}", DATA)
        for number in range(5):
            assert files.read(f"{number}") == DATA
            files.delete(f"{number}")
        assert files.entries("") == []
    assert proxy.faults >= 5
