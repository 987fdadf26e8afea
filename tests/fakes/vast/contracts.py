"""One rented instance: what is true of it, and the row that the API shows.

The words of its states are the service's: `actual` is of the container, `cur` and `next` are of the
contract, `intended` is what the user asked for. It holds no transitions: the world makes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

from tests.fakes.vast.clock import SECOND, Moment
from tests.fakes.vast.ledger import decimal, storage_per_hour
from tests.fakes.vast.offers import Machine
from tests.fakes.vast.processes import Container


class Phase(StrEnum):
    """What the simulator knows; the API shows less, and later."""

    QUEUED = "queued"
    """Waits for its GPU, and starts by itself."""
    BOOTING = "booting"
    RUNNING = "running"
    EXITED = "exited"
    """The container ended by itself; the contract holds the GPU."""
    BROKEN = "broken"
    """It will never boot."""
    OUTBID = "outbid"
    STOPPED = "stopped"
    DESTROYED = "destroyed"

    def holds_gpu(self) -> bool:
        return self in {Phase.BOOTING, Phase.RUNNING, Phase.EXITED, Phase.BROKEN}


class Status(NamedTuple):
    """The five fields by which the API tells a state."""

    actual: str | None
    intended: str
    cur: str
    next: str
    message: str | None = None


@dataclass(slots=True, kw_only=True)
class Contract:
    """An instance, from its creation on; it stays in the books when it is destroyed."""

    id: int
    machine: Machine
    label: str | None
    image: str
    disk_gb: Decimal
    bid: Decimal | None
    """$/h; None on demand."""
    env: list[tuple[str, str]]
    body: dict[str, Any]
    """As it was created."""
    key: str
    container: Container
    created_at: Moment
    created_turn: int
    """Of several things at one moment, a virtual clock does not tell which came first."""
    phase: Phase = Phase.STOPPED
    wants_running: bool = False
    """What the user asked for, whatever `intended` says."""
    offline: bool = False
    epoch: int = 0
    """Number of its transitions; an event that was planned in another one is void."""
    num_starts: int = 0
    running_since: Moment | None = None
    ready_at: Moment | None = None
    """When its command begins, after its downloads."""
    downloaded_gb: Decimal = Decimal(0)
    """By its container, the image apart."""
    destroyed_at: Moment | None = None
    destroyed_turn: int | None = None
    history: list[tuple[Moment, Status]] = field(default_factory=list)

    @property
    def status(self) -> Status:
        return self.history[-1][1]

    @property
    def gpu_per_hour(self) -> Decimal:
        """What a bid pays: itself, at most the price on demand."""
        base = self.machine.dph_base
        return base if self.bid is None else min(self.bid, base)

    @property
    def has_door(self) -> bool:
        """Whether the service runs an SSH server in it, and opens a port."""
        return self.body.get("runtype") != "args"

    @property
    def is_live(self) -> bool:
        return self.phase is not Phase.DESTROYED

    def seen_status(self, now: Moment, lag: int) -> Status:
        """The container's part is late by the lag, the contract's part is not."""
        late = self.history[0][1]
        for moment, status in self.history:
            if moment <= now - lag:
                late = status
        return self.status._replace(actual=late.actual, message=late.message)

    def row(self, now: Moment, lag: int = 0) -> dict[str, Any]:
        """As the API shows it."""
        machine = self.machine
        status = self.seen_status(now, lag)
        storage = decimal(storage_per_hour(self.disk_gb, machine.storage_cost))
        base = self.gpu_per_hour
        since = self.running_since
        return {
            **machine.hardware(),
            "id": self.id,
            "actual_status": status.actual,
            "intended_status": status.intended,
            "cur_state": status.cur,
            "next_state": status.next,
            "status_msg": status.message,
            "label": self.label,
            "image_uuid": self.image,
            "image_args": self.body.get("args") or [],
            "image_runtype": self.body.get("runtype"),
            "extra_env": [list(pair) for pair in self.env],
            "onstart": self.body.get("onstart"),
            "gpu_totalram": machine.card.ram_mb * machine.num_gpus,
            "gpu_util": 0.0,
            "gpu_temp": 40.0,
            "cpu_util": 0.0,
            "mem_limit": None,
            "mem_usage": None,
            "vmem_usage": None,
            "disk_space": float(self.disk_gb),
            "disk_usage": -1,
            "disk_util": -1,
            "ssh_host": "ssh5.vast.ai",
            "ssh_port": 10882,
            "ssh_idx": "5",
            "local_ipaddrs": "10.0.0.5 172.17.0.2\n",
            "ports": None,
            "direct_port_start": -1,
            "direct_port_end": -1,
            "is_bid": self.bid is not None,
            "dph_base": float(base),
            "dph_total": float(base + storage),
            "storage_total_cost": float(storage),
            "start_date": self.created_at / SECOND,
            "uptime_mins": None if since is None else (now - since) / SECOND / 60,
            "duration": (machine.end_date - now) / SECOND,
            "rentable": False,
            "template_id": None,
            "template_hash_id": self.body.get("template_hash_id"),
            "template_name": None,
            "volume_info": [],
            "jupyter_token": "x",
            "search": {},
            "instance": {},
        }
