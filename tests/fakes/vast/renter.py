"""A client of ours on a simulator's clock, and a store beside it: what renting is tested with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from tests.fakes.vast.driver import Driver
from tests.fakes.vast.options import Options
from tests.fakes.vast.server import VastSimulator
from tsgb.cloud.documents import Intent, RunDocuments
from tsgb.cloud.inventory import DeploymentRuns
from tsgb.cloud.lease import Lease, grant
from tsgb.cloud.orphans import InstanceLabel
from tsgb.cloud.provider import Provider
from tsgb.cloud.vast.client import VastClient
from tsgb.cloud.vast.convert import VastProvider


@dataclass(frozen=True, slots=True)
class Scene:
    """One account, one store, one clock."""

    sim: Driver
    vast: Provider
    runs: DeploymentRuns

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.sim.sim("clock")["now"], UTC)

    def rent(self, label: str, **body: Any) -> int:
        """An instance, rented as by another process."""
        return self.sim.rent(label=label, **body)

    def documents(self, run: str) -> RunDocuments:
        return self.runs.documents(run)

    def lease(self, run: str, attempt: int, **changes: Any) -> Lease:
        """Grant one now."""
        lease = grant(None, run=run, attempt=attempt, owner="flow", now=self.now())
        lease = lease.model_copy(update=changes)
        self.documents(run).put_lease(lease)
        return lease

    def intend(self, run: str, attempt: int, number: int | None = None) -> None:
        """What a flow writes before and after a rental."""
        intent = Intent(
            label=str(InstanceLabel("home", run, attempt)),
            ask_id=1,
            machine_id=2,
            host_id=3,
            gpu_name="RTX 4090",
            price=0.2,
            hourly=0.21,
            disk_gb=20.0,
            intended_at=self.now(),
        )
        documents = self.documents(run)
        documents.note(attempt, intent=intent.model_dump(mode="json"), instance_id=number)

    def live(self) -> set[int]:
        """The truth, whatever lists say."""
        rows = self.sim.sim("state")["instances"]
        return {row["id"] for row in rows if row["phase"] != "destroyed"}

    def deletes(self) -> list[str]:
        """The paths of all requests that would destroy something."""
        seen = self.sim.sim("requests")["requests"]
        return [one["path"] for one in seen if one["method"] == "DELETE"]


@contextmanager
def scene(store: Path, **options: Any) -> Iterator[Scene]:
    """On a virtual clock, which waiting moves."""
    with (
        VastSimulator(Options(**options), virtual=True) as simulator,
        Driver(simulator) as driver,
        client(driver, simulator.key) as vast,
    ):
        yield Scene(driver, vast, DeploymentRuns(url=str(store), deadline_seconds=0.1))


def client(driver: Driver, key: str) -> Provider:
    """Ours, on the simulator's clock."""

    def seconds() -> float:
        return float(driver.sim("clock")["now"])

    return VastProvider(
        VastClient(
            SecretStr(key),
            url=driver.vast.url,
            clock=seconds,
            sleep=driver.advance,
            now=lambda: datetime.fromtimestamp(seconds(), UTC),
        )
    )


HOUR = timedelta(hours=1)
