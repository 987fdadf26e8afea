"""Renting, the reaper and the commands about machines, on a service that is not Vast.ai."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from tests.fakes.second_provider import MeadowCloud, Server
from tsgb.cloud.documents import Intent, RunDocuments
from tsgb.cloud.forecast import workload
from tsgb.cloud.inventory import Coverage, DeploymentRuns, take_inventory
from tsgb.cloud.lease import SKEW
from tsgb.cloud.orphans import InstanceLabel
from tsgb.cloud.policy import LaunchPolicy
from tsgb.cloud.preemption import Workload
from tsgb.cloud.pricing import microdollars
from tsgb.cloud.provider import LaunchSpec, Provider, is_loopback
from tsgb.cloud.reaper import reap
from tsgb.cloud.rented_machine import RentedMachine
from tsgb.cloud.running import RunningInstance
from tsgb.cloud.session import Session
from tsgb.cloud.terminate_by_hand import pick, terminate_by_hand
from tsgb.errors import Preempted

STEPS = 300


class Work:
    """A run of `STEPS` updates, one a second, which a server reports as a worker does."""

    def __init__(self, cloud: MeadowCloud, documents: RunDocuments) -> None:
        self.cloud, self.documents, self.done = cloud, documents, 0
        cloud.work = self.update

    def update(self, server: Server) -> None:
        label = InstanceLabel.parse(server.name)
        assert label is not None
        self.done = min(STEPS, self.done + 1)
        name = "exit.json" if self.done == STEPS else "beat.json"
        word = {"arms": {"selfplay": {"step": self.done}}, "updated_at": f"{self.cloud.at}"}
        word |= {"outcome": "done", "ended_at": f"{self.cloud.at}"} if self.done == STEPS else {}
        if self.done % 10 == 0:
            self.documents.run.write_json(f"machines/{label.attempt:04d}/{name}", word)

    def begun(self) -> int:
        return 0

    def is_reached(self, segment: int) -> bool:
        del segment
        return self.done == STEPS

    def load(self) -> Workload:
        return workload(0.2, disk_gb=20)

    def card_gb(self) -> float:
        return 0.0

    def request(self, attempt: int, intent: Intent) -> LaunchSpec:
        del attempt
        return LaunchSpec(
            image="img", label=intent.label, price=intent.price, disk_gb=intent.disk_gb
        )

    def promote(self, attempt: int, tick: Callable[[], object]) -> None:
        """The machines of this cloud save into the run."""

    def collect(self, working: int | None) -> None:
        """Likewise."""

    def updates(self) -> int:
        return self.done

    def has_saved(self, segment: int, running: RunningInstance) -> bool:
        del segment, running
        return False

    def verify(self, segment: int) -> int:
        del segment
        return self.done

    def show(self, running: RunningInstance) -> None:
        """Show nothing."""


@pytest.fixture
def runs(tmp_path: Path) -> DeploymentRuns:
    (tmp_path / "r1").mkdir()
    return DeploymentRuns(url=str(tmp_path))


def session(provider: MeadowCloud, documents: RunDocuments) -> Session:
    return Session(
        documents=documents,
        provider=provider,
        launch_policy=LaunchPolicy(budget=microdollars(5), cap=0.3),
        owner="flow",
        now=provider.now,
        clock=provider.clock,
        sleep=provider.sleep,
    )


def test_a_preempted_run_ends_on_a_second_machine(runs: DeploymentRuns) -> None:
    cloud = MeadowCloud()
    documents = runs.documents("r1")
    work = Work(cloud, documents)
    machine = RentedMachine(session(cloud, documents), work)
    beat = cloud.work

    def evict(server: Server) -> None:
        beat(server)
        if server.number == 1 and work.done >= 100:
            cloud.stop(1)

    cloud.work = evict
    with pytest.raises(Preempted, match="preempted"):
        machine.attempt(0)
    assert machine.attempt(0) == STEPS
    assert (cloud.ended, cloud.servers) == ([1, 2], {})
    ends = [found.result.cause.value for found in documents.attempts() if found.result]
    assert ends == ["preempted", "done"]
    assert documents.run.read_json("attempts/0001.json")["machine"] == "meadow"
    assert not any(account.is_open for account in machine.session.ledger.accounts.values())


def rented(cloud: Provider, label: str, offer: int) -> int:
    return cloud.create(offer, LaunchSpec(image="img", label=label, price=0.2, disk_gb=20))


def test_the_reaper_and_the_end_by_hand(runs: DeploymentRuns) -> None:
    cloud = MeadowCloud()
    orphan = rented(cloud, "tsgb/home/r1/1", 1000)
    other = rented(cloud, "web-server", 1001)
    cloud.sleep(600)
    found = reap(cloud, runs, "home", now=cloud.now, sleep=cloud.sleep)
    assert cloud.ended == [orphan]
    assert found.lines()[-1] == (
        "2 instances: 1 destroyed, 0 leased, 0 left to look after, 1 of others"
    )

    session(cloud, runs.documents("r1")).grant(2)
    leased = rented(cloud, "tsgb/home/r1/2", 1002)
    inventory = take_inventory(cloud, runs, "home", now=cloud.now)
    assert {
        item.instance.id: (item.coverage, item.instance.status) for item in inventory.items
    } == {
        other: (Coverage.FOREIGN, "LIVE"),
        leased: (Coverage.COVERED, "BOOTING"),
    }
    picked = pick(inventory, [leased], force=True, deployment="home", skew=SKEW)
    [ended] = terminate_by_hand(
        cloud,
        runs,
        picked,
        now=cloud.now,
        sleep=cloud.sleep,
        grace=timedelta(seconds=30),
        skew=SKEW,
        note=lambda _line: None,
    )
    assert ended.gone
    assert list(cloud.servers) == [other]


def test_which_addresses_are_on_this_machine() -> None:
    assert all(map(is_loopback, ("http://127.0.0.1:8765", "http://[::1]/", "http://localhost")))
    assert not any(map(is_loopback, ("https://console.vast.ai", "http://10.0.0.1", "nowhere")))
