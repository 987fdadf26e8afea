"""The reaper as a flow: loud where it could not look, and a second chance for crashed runs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactCollectionFilter, ArtifactCollectionFilterKey
from prefect.client.schemas.objects import State
from prefect.states import Completed, Crashed, Running

from flows.flow_runs import LEAST_AGE, MAX_AGE, MAX_RUNS, resume
from flows.reaper import reaper
from flows.stage1 import stage1
from flows.tasks import segment
from tests.fakes.vast.driver import Driver
from tests.fakes.vast.options import Options
from tests.fakes.vast.server import VastSimulator

pytestmark = [pytest.mark.flows, pytest.mark.usefixtures("prefect_api")]

HOUR = 3600


@pytest.fixture
def vast(store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """An account an hour ago; `advance(HOUR)` is now."""
    (store / "other").mkdir(parents=True)
    with (
        VastSimulator(Options(), age_seconds=HOUR) as simulator,
        Driver(simulator) as driver,
    ):
        monkeypatch.setenv("VAST_API_KEY", simulator.key)
        monkeypatch.setenv("TSGB_VAST_URL", simulator.url)
        yield driver


def look() -> State[dict[str, Any]]:
    return reaper(deployments=[], return_state=True)


def live(vast: Driver) -> set[int]:
    rows = vast.sim("state")["instances"]
    return {row["id"] for row in rows if row["phase"] != "destroyed"}


def told() -> str:
    """The newest words of the reaper in Prefect's UI."""
    with get_client(sync_client=True) as client:
        wanted = ArtifactCollectionFilter(key=ArtifactCollectionFilterKey(any_=["reaper"]))
        [newest] = client.read_latest_artifacts(artifact_filter=wanted)
    return str(newest.data)


def test_it_ends_an_orphan_and_nothing_else(vast: Driver) -> None:
    orphan, other = vast.rent(label="tsgb/home/r1/1"), vast.rent(label="mytool/1")
    vast.advance(HOUR)
    state = look()
    assert state.is_completed()
    machines = state.result()["machines"]
    assert (machines["destroyed"], machines["foreign"]) == (1, 1)
    assert live(vast) == {other}
    assert f"destroyed instance {orphan}" in told()


def test_it_fails_where_it_could_not_look(vast: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    number = vast.rent(label="tsgb/home/r1/1")
    vast.advance(HOUR)
    monkeypatch.setenv("VAST_API_KEY", "revoked")
    state = look()
    assert state.is_failed()
    assert "the list of instances: auth_error" in (state.message or "")
    assert live(vast) == {number}


def test_it_fails_where_something_is_left(vast: Driver) -> None:
    numbers = [vast.rent(label=f"tsgb/home/latest/{n}") for n in (1, 2)]
    vast.advance(HOUR)
    state = look()
    assert state.is_failed()
    assert "its lease could not be read" in (state.message or "")
    assert "2 left to look after" in told()
    assert live(vast) == set(numbers)


@pytest.mark.usefixtures("store")
def test_without_a_key_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAST_API_KEY", raising=False)
    state = look()
    assert state.is_completed()
    assert state.result() == {"machines": None, "resumed": []}
    assert "No `VAST_API_KEY`" in told()


def test_crashed_runs_of_a_deployment_start_again() -> None:
    name = f"crashes-{uuid4().hex[:6]}"
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(stage1)
        mine = client.create_deployment(flow_id, name)
        others = client.create_deployment(flow_id, f"{name}-not")
        crashed = _run(client, mine, Running(), Crashed())
        done = _run(client, mine, Running(), Completed())
        foreign = _run(client, others, Running(), Crashed())
        now = datetime.now(UTC)
        assert resume(client, [name], now) == [], f"younger than {LEAST_AGE}"
        assert resume(client, [name], now + MAX_AGE + timedelta(minutes=1)) == []
        assert resume(client, [name], now + LEAST_AGE) == [str(crashed)]
        assert resume(client, [name], now + LEAST_AGE) == [], "it waits for a worker now"
        names = {one: client.read_flow_run(one).state_name for one in (crashed, done, foreign)}
        assert names == {crashed: "AwaitingRetry", done: "Completed", foreign: "Crashed"}


def test_tasks_of_a_crashed_run_do_not_seem_to_run() -> None:
    name = f"crashes-{uuid4().hex[:6]}"
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(stage1), name)
        number = _run(client, deployment, Running(), Crashed())
        tasks = [
            client.create_task_run(segment, number, dynamic_key=key, state=state)
            for key, state in {"killed": Running(), "done": Completed()}.items()
        ]
        resume(client, [name], datetime.now(UTC))
        states = [client.read_task_run(one.id).state for one in tasks]
    assert [state and state.type.value for state in states] == ["CRASHED", "COMPLETED"]


def test_a_run_that_crashes_for_ever_is_left() -> None:
    name = f"crashes-{uuid4().hex[:6]}"
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(stage1), name)
        number = _run(client, deployment, *[Running(), Crashed()] * MAX_RUNS)
        assert client.read_flow_run(number).run_count == MAX_RUNS
        assert resume(client, [name], datetime.now(UTC) + LEAST_AGE) == []


def _run(client: SyncPrefectClient, deployment: UUID, *states: State[Any]) -> UUID:
    """A flow run that went through these states."""
    number = client.create_flow_run_from_deployment(deployment).id
    for state in states:
        client.set_flow_run_state(number, state.model_copy(update={"id": uuid4()}), force=True)
    return number
