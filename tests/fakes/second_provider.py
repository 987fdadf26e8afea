"""A second service that rents machines, in memory, with words of its own for everything.

It exists to show that renting knows no service but through `tsgb.cloud.provider`. Time is virtual:
whoever sleeps moves it, and its servers work meanwhile. It fails in the ways that it is told to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Self

from tsgb.cloud.provider import AccountFacts, Instance, InstanceState, LaunchSpec, Offer, SearchSpec
from tsgb.errors import ProviderError, ProviderGone

_STATES = {
    "BOOTING": InstanceState.PROVISIONING,
    "LIVE": InstanceState.RUNNING,
    "EVICTED": InstanceState.STOPPED,
    "LOST CONTACT": InstanceState.UNREACHABLE,
}
BOOT_SECONDS = 60.0


@dataclass(slots=True)
class Server:
    """A machine as this service speaks of it."""

    number: int
    name: str
    cents_an_hour: float
    rack: int
    made_at: datetime
    phase: str = "BOOTING"


@dataclass(slots=True)
class MeadowCloud:
    """One account, and the clock of everybody."""

    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    servers: dict[int, Server] = field(default_factory=dict[int, Server])
    ended: list[int] = field(default_factory=list[int])
    work: Callable[[Server], object] = lambda _server: None
    """What a live server does in every second."""
    racks: int = 3
    dollars_per_gb: float = 0.0
    """What its servers pay for what they receive."""
    name: str = "meadow"
    dollars: float = 20.0
    errors: dict[str, ProviderError] = field(default_factory=dict[str, ProviderError])
    """What a method raises, by its name."""
    stubborn: set[int] = field(default_factory=set[int])
    """Servers whose end is accepted, and never comes."""
    unlisted: set[int] = field(default_factory=set[int])
    """Servers that the list does not show yet."""
    contract_ends: datetime | None = None
    """When all contracts end; None without a limit."""
    ghosts: dict[int, Server] = field(default_factory=dict[int, Server])
    """Servers that only the list still shows."""

    def now(self) -> datetime:
        return self.at

    def clock(self) -> float:
        return self.at.timestamp()

    def sleep(self, seconds: float) -> None:
        for _ in range(max(1, round(seconds))):
            self.at += timedelta(seconds=1)
            for server in list(self.servers.values()):
                if server.phase == "BOOTING" and self.age(server) >= BOOT_SECONDS:
                    server.phase = "LIVE"
                if server.phase == "LIVE":
                    self.work(server)

    def _answer(self, method: str) -> None:
        if method in self.errors:
            raise self.errors[method]

    def age(self, server: Server) -> float:
        return (self.at - server.made_at).total_seconds()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def credit(self) -> float:
        self._answer("credit")
        return self.dollars

    def facts(self) -> AccountFacts:
        return AccountFacts(self.credit())

    def search(self, spec: SearchSpec, /) -> list[Offer]:
        taken = {server.rack for server in self.servers.values()}
        return [
            Offer(
                id=1000 + rack,
                machine_id=rack,
                host_id=rack,
                gpu_name="Meadow G1",
                gpu_ram=spec.min_gpu_ram_gb * 1000,
                disk_space=spec.disk_gb,
                min_bid=0.1 + rack / 100,
                inet_down_cost=self.dollars_per_gb,
                reliability=1.0,
            )
            for rack in range(self.racks)
            if rack not in taken
        ]

    def create(self, offer_id: int, spec: LaunchSpec, /) -> int:
        self._answer("create")
        rack = offer_id - 1000
        if rack in {server.rack for server in self.servers.values()}:
            raise ProviderGone(f"meadow: rack {rack} is taken")
        number = len(self.servers) + len(self.ended) + 1
        self.servers[number] = Server(number, spec.label, spec.price * 100, rack, self.at)
        return number

    def list(self) -> list[Instance]:
        self._answer("list")
        shown = {**self.ghosts, **self.servers}
        return [self._instance(shown[number]) for number in shown.keys() - self.unlisted]

    def show(self, instance_id: int, /) -> Instance | None:
        self._answer("show")
        server = self.servers.get(instance_id)
        return None if server is None else self._instance(server)

    def stop(self, instance_id: int, /) -> None:
        self.servers[instance_id].phase = "EVICTED"

    def destroy(self, instance_id: int, /) -> None:
        self._answer("destroy")
        if instance_id not in self.stubborn and self.servers.pop(instance_id, None) is not None:
            self.ended.append(instance_id)

    def _instance(self, server: Server) -> Instance:
        return Instance(
            id=server.number,
            label=server.name,
            state=_STATES[server.phase],
            status=server.phase,
            gpu_billed=server.phase == "LIVE",
            machine_id=server.rack,
            is_bid=True,
            hourly=server.cents_an_hour / 100,
            created_at=server.made_at,
            ends_at=self.contract_ends,
        )
