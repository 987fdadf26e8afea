"""Cancels and kills of deployed runs that rent machines: none is left, and what was done counts.

Server, worker, flows, store and the machines' processes are real; the service is the simulated one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.fakes.control_plane import ControlPlane, wait_for
from tests.fakes.dav_server import PASSWORD, USER
from tests.fakes.manager import BUDGET, Manager
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.cloud.budget import Ledger
from tsgb.cloud.documents import RunDocuments
from tsgb.cloud.orphans import InstanceLabel
from tsgb.cloud.pricing import microdollars

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1500)]
CENT = Decimal("0.01")
FINAL = {"COMPLETED", "CRASHED", "CANCELLED", "FAILED"}
LEASE = 40.0


class RentingPlane:
    """A control plane whose runs rent machines of a simulated service."""

    def __init__(self, plane: ControlPlane, manager: Manager) -> None:
        self.plane, self.manager = plane, manager

    def train(self, name: str) -> str:
        """Start stage 1; return its flow run once a machine trains."""
        number = self.plane.run(
            "tsgb/stage1",
            run=name,
            profile="smoke",
            arms=["selfplay"],
            targets=["T_s"],
            machine="rented",
            service_url=self.manager.simulator.url,
            overrides={"selfplay": {"rounds": 12}},
        )
        wait_for("a machine to train", lambda: self._trains(name), 300)
        return number

    def _trains(self, name: str) -> bool:
        for row in self.manager.vast.sim("state")["instances"]:
            label = InstanceLabel.parse(row["label"])
            if label is not None and label.run == name:
                beat = self._documents(name).heartbeat(label.attempt) or {}
                return any((arm.get("step") or 0) > 0 for arm in (beat.get("arms") or {}).values())
        return False

    def _documents(self, name: str) -> RunDocuments:
        return RunDocuments(self._open(name), self.manager.exchange.opener(name, 30))

    def _open(self, name: str) -> RunStore:
        return open_run(f"{self.manager.dav}/runs/{name}", USER, SecretStr(PASSWORD))

    def bill(self, name: str = "") -> dict[str, Any]:
        """The service's own bill of a run, or of all."""
        return self.manager.vast.sim(f"ledger?label_prefix=tsgb/home/{name}")

    def live(self) -> int:
        """Number of instances that cost money."""
        return sum(one["live"] for one in self.bill()["instances"].values())

    def ended(self, number: str, seconds: float = 300) -> str:
        """State of a flow run at its end."""
        wait_for("the end", lambda: self.plane.state(number) in FINAL, seconds)
        return self.plane.state(number)

    def engine(self, number: str) -> int:
        """The process in which a flow runs."""
        found = [
            process
            for process in self.plane.processes()
            if number.encode() in Path(f"/proc/{process}/environ").read_bytes()
            and not Path(f"/proc/{process}/task/{process}/children").read_text()
        ]
        assert len(found) == 1, found
        return found[0]

    def evaluations(self, name: str) -> list[str]:
        """States of the flow runs of stage 2."""
        runs = self.plane.automated()
        return [run["state_type"] for run in runs if run["parameters"]["run"] == name]

    def reap(self) -> None:
        """Let the reaper look."""
        number = self.plane.run("tsgb-reaper/reaper")
        wait_for("the reaper", lambda: self.plane.state(number) in FINAL, 200)

    def spent(self, name: str) -> Decimal:
        """Dollars in the books of a run."""
        return Decimal(Ledger.open(self._open(name), microdollars(BUDGET)).spent) / 10**6


@pytest.fixture(scope="module")
def renting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RentingPlane]:
    home = tmp_path_factory.mktemp("renting")
    with Manager(home) as manager:
        settings = manager.environment(
            TSGB_LEASE_SECONDS=str(LEASE), TSGB_STORE="", TSGB_GRACE_SECONDS="5"
        )
        own = {n: v for n, v in settings.items() if n.startswith(("TSGB_", "RCLONE_", "VAST_"))}
        with ControlPlane(home, more=own, trains=True) as plane:
            plane.deploy()
            yield RentingPlane(plane, manager)


def test_a_cancelled_run_leaves_no_machine(renting: RentingPlane) -> None:
    number = renting.train("unwanted")
    renting.plane.prefect("flow-run", "cancel", number)
    assert renting.ended(number) == "CANCELLED"
    wait_for("the machines to go", lambda: renting.live() == 0, 60)
    assert renting.evaluations("unwanted") == []


def test_a_killed_flow_leaves_no_machine_and_is_finished(renting: RentingPlane) -> None:
    number = renting.train("mourned")
    os.kill(renting.engine(number), signal.SIGKILL)
    wait_for("the crash", lambda: renting.plane.state(number) == "CRASHED", 60)
    wait_for("the hook to end the machine", lambda: renting.live() == 0, 120)
    time.sleep(31)  # a younger crash may be reported a second time
    renting.reap()
    wait_for("the second start", lambda: renting.plane.state(number) != "CRASHED", 60)
    assert renting.ended(number, 400) == "COMPLETED"
    wait_for("stage 2", lambda: bool(set(renting.evaluations("mourned")) & FINAL), 400)
    assert renting.evaluations("mourned") == ["COMPLETED"]
    assert renting.live() == 0
    billed = Decimal(renting.bill("mourned/")["spent"])
    assert abs(renting.spent("mourned") - billed) < CENT


def test_a_stopped_worker_leaves_no_machine(renting: RentingPlane) -> None:
    """It kills its flows, so that nobody but the lease and the reaper is left."""
    renting.train("stopped")
    renting.plane.end_worker()
    renting.plane.start_worker()

    def gone() -> bool:
        renting.reap()
        return renting.live() == 0

    wait_for("the lease to end", gone, 400)
