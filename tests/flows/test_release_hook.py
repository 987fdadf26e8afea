"""What the hook of a flow run that ended badly does about its machines, in whatever process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled

from flows.hooks import release_machines
from flows.rented import lock_of, owner_of
from flows.stage1 import stage1
from tests.fakes.vast.driver import Driver
from tests.fakes.vast.options import Options
from tests.fakes.vast.server import VastSimulator
from tsgb.checkpoint.run import RunLock, open_run
from tsgb.cloud.documents import RunDocuments
from tsgb.cloud.lease import grant
from tsgb.settings import load_settings

pytestmark = [pytest.mark.flows, pytest.mark.usefixtures("prefect_api")]


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A flow run that is no more, its lease and two of its instances; and somebody else's."""
    for name in list(os.environ):
        if name.startswith(("TSGB_", "RCLONE_", "VAST_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    with VastSimulator(Options(boot_seconds=(0, 0))) as simulator, Driver(simulator) as vast:
        for name, value in {
            "VAST_API_KEY": simulator.key,
            "TSGB_CACHE_DIR": str(tmp_path / "cache"),
            "TSGB_STORE": str(tmp_path / "store"),
            "TSGB_LOOK_SECONDS": "0.1",
            "TSGB_GRACE_SECONDS": "0.5",
        }.items():
            monkeypatch.setenv(name, value)
        documents = RunDocuments(open_run(str(tmp_path / "store" / "r1")))
        owner = owner_of(load_settings())
        now = datetime.now(UTC)
        documents.put_lease(grant(None, run="r1", attempt=2, owner=owner, now=now))
        ours = [vast.rent(label=f"tsgb/home/r1/{attempt}") for attempt in (1, 2)]
        other = vast.rent(label="tsgb/home/r2/1")
        parameters = {"run": "r1", "machine": "rented", "service_url": simulator.url}
        run = FlowRun(flow_id=uuid4(), name="stage1-r1", parameters=parameters)
        yield SimpleNamespace(vast=vast, run=run, ours=ours, other=other, documents=documents)


def live(vast: Driver) -> set[int]:
    return {int(n) for n, bill in vast.sim("ledger")["instances"].items() if bill["live"]}


def release(run: FlowRun) -> None:
    release_machines(stage1, run, Cancelled())


def test_its_machines_go_and_no_other(left: Any) -> None:
    release(left.run)
    assert live(left.vast) == {left.other}
    lease = left.documents.lease()
    assert lease is not None
    assert lease.ended
    assert lease.stop == "its flow run ended as Cancelled"


def test_half_an_exit_record_says_nothing(left: Any) -> None:
    left.documents.run.write_bytes("machines/0002/exit.json", b"{")
    release(left.run)
    assert live(left.vast) == {left.other}


def test_a_flow_that_lives_looks_after_its_own(left: Any, tmp_path: Path) -> None:
    with RunLock(lock_of(load_settings(), str(tmp_path / "store" / "r1"))):
        release(left.run)
    assert live(left.vast) == {*left.ours, left.other}


def test_a_local_run_asks_nothing(left: Any) -> None:
    left.run.parameters["machine"] = "local"
    release(left.run)
    assert live(left.vast) == {*left.ours, left.other}


def test_a_key_that_is_refused_is_no_error_of_the_hook(
    left: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAST_API_KEY", "not-the-key")
    release(left.run)
    assert live(left.vast) == {*left.ours, left.other}
