"""A run on rented machines in virtual time: a service, a store, and flows that rent there."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.filesystems import FaultyFiles, MemoryFiles
from tests.fakes.second_provider import MeadowCloud
from tsgb.checkpoint.run import RunStore
from tsgb.cloud.documents import RunDocuments
from tsgb.cloud.forecast import workload
from tsgb.cloud.launch import find_offer, intend, rent
from tsgb.cloud.policy import LaunchPolicy
from tsgb.cloud.pricing import microdollars
from tsgb.cloud.provider import LaunchSpec
from tsgb.cloud.running import RunningInstance
from tsgb.cloud.session import Session
from tsgb.errors import StoreUnreachable


class Renting:
    """The service, the run's documents, and all that its flows told a person."""

    session: Session

    def __init__(self, run: str = "r1") -> None:
        self.cloud = MeadowCloud()
        self.files = MemoryFiles(f"memory://fake/{run}")
        self.exchange = MemoryFiles("memory://exchange/r1")
        self.told: list[str] = []
        self.is_store_away = False
        self.is_exchange_away = False
        store = FaultyFiles(self.files, self._before)
        store_of_run = RunStore(store, store.url, sleep=lambda _: None)
        self.documents = RunDocuments(store_of_run, self.seen)

    def _before(self, _operation: str, _path: str) -> None:
        if self.is_store_away:
            raise StoreUnreachable("the store is away")

    def seen(self, folder: str) -> RunStore:
        """The run as machines see it: another place, which may be away while the store answers."""

        def before(operation: str, path: str) -> None:
            if self.is_exchange_away or self.is_store_away:
                raise StoreUnreachable("the exchange is away")

        files = FaultyFiles(self.exchange, before)
        return RunStore(files, f"{files.url}/{folder}", sleep=lambda _: None)

    def flow(self, owner: str = "flow", budget: str = "5", **options: Any) -> Session:
        """A new process of a flow: the same `owner` is the same flow, started again."""
        return Session(
            documents=self.documents,
            provider=self.cloud,
            launch_policy=LaunchPolicy(budget=microdollars(budget), cap=0.3),
            owner=owner,
            now=self.cloud.now,
            clock=self.cloud.clock,
            sleep=self.cloud.sleep,
            note=self.told.append,
            **options,
        )

    def rent(self, session: Session, attempt: int = 1, start_gb: float = 0.0) -> RunningInstance:
        """Rent a machine for an attempt as a flow does."""
        chosen = find_offer(session, workload(0.2, disk_gb=20))
        intent = intend(session, chosen, attempt, start_gb=start_gb)
        return rent(session, attempt, intent, self.spec(intent.label, intent.price))

    def spec(self, label: str, price: float = 0.2) -> LaunchSpec:
        return LaunchSpec(image="img", label=label, price=price, disk_gb=20)

    def says(self, attempt: int, step: int, outcome: str | None = None, **more: Any) -> None:
        """Write what a machine writes: a heartbeat, or with an outcome its exit record."""
        word = {"arms": {"selfplay": {"step": step}}, "updated_at": f"{self.cloud.at}", **more}
        if outcome is not None:
            word |= {"outcome": outcome, "ended_at": f"{self.cloud.at}"}
        name = "beat.json" if outcome is None else "exit.json"
        self.documents.run.write_json(f"machines/{attempt:04d}/{name}", word)

    def end_of(self, attempt: int) -> str | None:
        """Why an attempt ended, by its document."""
        found = self.documents.attempt(attempt)
        return None if found is None or found.result is None else found.result.cause.value


@pytest.fixture
def renting() -> Renting:
    return Renting()
