"""On which terms machines are rented for a run, and how patiently they are watched."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from tsgb.cloud.budget import WINDOW
from tsgb.cloud.lease import SKEW, TTL
from tsgb.cloud.offers import Needs
from tsgb.cloud.provider import SearchSpec
from tsgb.cloud.retry_policy import Avoided, Limits
from tsgb.cloud.termination import Deadlines


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What may be rented, for how much.

    Example: `Terms(budget=microdollars("20"), cap=0.25)`
    """

    budget: int
    """Micro-dollars for the whole run."""
    cap: float
    """$/h for one machine, storage included."""
    deployment: str = "home"
    """Part of every label; instances of another one are never touched."""
    image: str = "python:3.11-slim"
    image_gb: float = 0.05
    """What a host downloads of it."""
    disk_gb: float = 20.0
    gpus: tuple[str, ...] = ()
    """Names as the service writes them; any if empty."""
    gpu_ram_gb: float = 8.0
    reliability: float = 0.9
    duration_hours: float = 4.0
    """Least time until the contract's own limit."""
    least_minutes: float = 10.0
    """A machine is not rented with money for less: it would be gone before a first checkpoint."""
    limits: Limits = field(default_factory=Limits)

    def search(self) -> SearchSpec:
        """What the service is asked for."""
        return SearchSpec(
            disk_gb=self.disk_gb,
            gpu_names=self.gpus,
            min_gpu_ram_gb=self.gpu_ram_gb,
            min_reliability=self.reliability,
            min_duration_seconds=self.duration_hours * 3600,
        )

    def needs(self, avoided: Avoided, disk_gb: float) -> Needs:
        """What is checked again here, and what is not to be rented now."""
        return Needs(
            cap=self.cap,
            gpu_ram=self.gpu_ram_gb * 1000,
            disk_space=disk_gb,
            reliability=self.reliability,
            duration=self.duration_hours * 3600,
            machines_out=avoided.machine_ids,
            hosts_out=avoided.host_ids,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often is looked, and after how long waiting ends. All of it is this machine's time.

    Example: `Patience(look_seconds=0.2, lag_seconds=1.0)` for a service on this machine
    """

    look_seconds: float = 20.0
    """Between two looks at a machine."""
    list_seconds: float = 300.0
    """Between two lists of all instances, which show what one that is looked at by id hides."""
    lag_seconds: float = 180.0
    """W: so long a rental may be late to appear in lists."""
    grace_seconds: float = 90.0
    """For a machine that was asked to stop to save and say so."""
    release_seconds: float = 15.0
    """The same when the flow itself is being ended: Prefect kills it after 30 seconds."""
    destroy_seconds: float = 600.0
    """So long a flow insists on a machine's end; then the reaper does."""
    offer_seconds: float = 1800.0
    """So long an offer within the terms is waited for."""
    search_seconds: float = 20.0
    """Between two searches."""
    ttl: timedelta = TTL
    skew: timedelta = SKEW
    window: timedelta = WINDOW
    """Money is set aside for so long ahead."""
    deadlines: Deadlines = field(default_factory=Deadlines)
