"""Policies of a run on rented machines: what may be launched, and how it is monitored."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Self

from tsgb.cloud.budget import WINDOW
from tsgb.cloud.bundle import start_download
from tsgb.cloud.lease import SKEW, TTL
from tsgb.cloud.offers import Needs
from tsgb.cloud.pricing import microdollars
from tsgb.cloud.provider import Offer, SearchSpec
from tsgb.cloud.retry_policy import Avoided, Limits
from tsgb.cloud.speed import MeasuredUpdates, speeds
from tsgb.cloud.termination import Deadlines
from tsgb.setting_groups import IMAGE, IMAGE_GB, CloudSettings, WorkerSettings

_LEAST_DISK_GB = 8.0
"""Storage of the smallest rental, GB."""
USUAL_DISK_GB = 20.0
"""Storage to rent for models that need no more, GB."""
DOWNLOAD_SECONDS = 600.0
"""Seconds within which a machine for a pretrained model must be able to download what it starts
with: half of what a start may take by default, since the rest is unpacking and Python's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineNeeds:
    """What a run's models ask of a machine; 0 asks for nothing.

    Example: `MachineNeeds(gpu_ram_gb=24, disk_gb=30, compute_cap=800, cuda=13.0, weights_gb=6.2)`
    """

    gpu_ram_gb: float = 0.0
    """Memory of the card, GB; 0 for a run that needs none."""
    cpu_ram_gb: float = 0.0
    """Main memory, GB."""
    disk_gb: float = USUAL_DISK_GB
    """Storage, GB."""
    compute_cap: int = 0
    """CUDA compute capability times 100."""
    cuda: float = 0.0
    """CUDA version that the driver must carry."""
    weights_gb: float = 0.0
    """Size of the models' files, which each start downloads, GB."""
    save_gb: float = 0.0
    """Size of what a save of all arms sends, estimated, GB; 0 if unknown."""
    restore_gb: float = 0.0
    """Size of the checkpoints that a start downloads, estimated, GB; 0 if unknown."""

    @classmethod
    def of(cls, settings: CloudSettings) -> Self:
        """Return the needs of a run without pretrained models: what the settings name, if any."""
        return cls(gpu_ram_gb=settings.gpu_ram_gb or 0.0, disk_gb=settings.disk_gb or USUAL_DISK_GB)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPolicy:
    """The machines that may be rented, and the money for them.

    Example: `LaunchPolicy(budget=microdollars("20"), cap=0.25)`
    """

    budget: int
    """Budget of the whole run, micro-dollars."""
    cap: float
    """Highest price of one machine with storage, $/h."""
    deployment: str = "home"
    """Part of every label; instances of another one are never touched."""
    image: str = IMAGE
    """Container image."""
    image_gb: float = IMAGE_GB
    """Compressed size of the image, which a host downloads, GB."""
    packages_gb: float = 0.0
    """Size of the packages and the code that a start downloads into it, GB."""
    disk_gb: float = USUAL_DISK_GB
    """Storage to rent, GB."""
    gpus: tuple[str, ...] = ()
    """Names of GPUs as the service writes them; any GPU if empty."""
    regions: tuple[str, ...] = ()
    """Countries by their codes of two letters; any if empty."""
    gpu_ram_gb: float = 0.0
    """Least memory of a GPU, GB; 0 for a run that needs no card."""
    cpu_ram_gb: float = 0.0
    """Least main memory, GB."""
    compute_cap: int = 0
    """Least CUDA compute capability times 100."""
    cuda: float = 0.0
    """Least CUDA version that the driver must carry."""
    weights_gb: float = 0.0
    """Size of the models' files, which each start downloads, GB."""
    reliability: float = 0.9
    """Least reliability of a host, by the service's own measure, from 0 to 1."""
    duration_hours: float = 4.0
    """Least hours until the contract's own limit."""
    least_minutes: float = 10.0
    """Least minutes that the money must pay for: in fewer no first checkpoint would be saved."""
    limits: Limits = field(default_factory=Limits)
    """Failures after which the run ends."""

    @classmethod
    def of(cls, settings: CloudSettings, needs: MachineNeeds | None = None) -> Self:
        """Return the policy that the settings describe.

        Args:
            settings: Money, and what a user asks of a machine.
            needs: What the run's models ask of it; without it those of a run without any.
        """
        needs, started = needs or MachineNeeds.of(settings), start_download(settings)
        return cls(
            budget=microdollars(settings.budget),
            cap=settings.max_price,
            deployment=settings.deployment,
            image=settings.image,
            image_gb=settings.image_gb,
            packages_gb=(started.wheels + started.code) / 1e9,
            disk_gb=needs.disk_gb,
            gpus=settings.gpus,
            regions=settings.regions,
            gpu_ram_gb=needs.gpu_ram_gb,
            cpu_ram_gb=needs.cpu_ram_gb,
            compute_cap=needs.compute_cap,
            cuda=needs.cuda,
            weights_gb=needs.weights_gb,
            reliability=settings.reliability,
        )

    @property
    def inet_down_mbps(self) -> float:
        """Least bandwidth, Mb/s, that brings models and packages in `DOWNLOAD_SECONDS`."""
        if not self.weights_gb:
            return 0.0
        gigabytes = self.image_gb + self.packages_gb + self.weights_gb
        return math.ceil(gigabytes * 8000 / DOWNLOAD_SECONDS)

    def search(self) -> SearchSpec:
        """Return the search to ask the service for."""
        return SearchSpec(
            disk_gb=self.disk_gb,
            gpu_names=self.gpus,
            min_gpu_ram_gb=self.gpu_ram_gb,
            min_cpu_ram_gb=self.cpu_ram_gb,
            min_compute_cap=self.compute_cap,
            min_cuda=self.cuda,
            min_inet_down_mbps=self.inet_down_mbps,
            regions=self.regions,
            min_reliability=self.reliability,
            min_duration_seconds=self.duration_hours * 3600,
        )

    def wide_search(self) -> SearchSpec:
        """Return the search for all offers of one GPU, which shows what each rule removes."""
        return SearchSpec(disk_gb=_LEAST_DISK_GB)

    def needs(
        self,
        avoided: Avoided,
        disk_gb: float,
        offers: Iterable[Offer] = (),
        measured: Iterable[MeasuredUpdates] = (),
    ) -> Needs:
        """Return the rules that are checked again here, and the machines to avoid now.

        Args:
            avoided: Machines that have failed lately.
            disk_gb: Storage to rent, GB.
            offers: Offers with the service's scores, by which speeds are estimated: for a run that
                computes on cards.
            measured: Updates that machines of this deployment have made.
        """
        return Needs(
            cap=self.cap,
            gpu_ram=self.gpu_ram_gb * 1000,
            cpu_ram=self.cpu_ram_gb * 1000,
            compute_cap=self.compute_cap,
            cuda_max_good=self.cuda,
            inet_down=self.inet_down_mbps,
            disk_space=disk_gb,
            regions=self.regions,
            gpu_names=[name.replace("_", " ") for name in self.gpus],
            reliability=self.reliability,
            duration=self.duration_hours * 3600,
            speeds=speeds(offers, measured) if self.gpu_ram_gb else {},
            machines_out=avoided.machine_ids,
            hosts_out=avoided.host_ids,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorPolicy:
    """Intervals between looks, and the times after which waiting ends, on this machine's clock.

    Example: `MonitorPolicy(look_seconds=0.2, lag_seconds=1.0)` for a service on this machine
    """

    look_seconds: float = 20.0
    """Seconds between two looks at a machine."""
    copy_every: int = 0
    """Saves of a machine, as far as looks tell them apart, after which one is copied into the run;
    0 for none but the last of each segment, and one an hour."""
    list_seconds: float = 300.0
    """Seconds between two lists of all instances, which show what a look by id hides."""
    lag_seconds: float = 180.0
    """Seconds by which a rental may be late to appear in lists."""
    grace_seconds: float = 90.0
    """Seconds for a machine that was asked to stop to save and say so."""
    release_seconds: float = 15.0
    """Likewise when the flow itself is being ended: Prefect kills it after 30 seconds."""
    destroy_seconds: float = 600.0
    """Seconds for which a flow insists on a machine's end; after them the reaper does."""
    offer_seconds: float = 1800.0
    """Seconds to wait for an offer that fits."""
    search_seconds: float = 20.0
    """Seconds between two searches."""
    ttl: timedelta = TTL
    """Time for which each renewal prolongs the lease."""
    skew: timedelta = SKEW
    """Difference between two clocks that is tolerated."""
    window: timedelta = WINDOW
    """Time ahead for which money is set aside."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    """Silences after which a machine is given up."""

    @classmethod
    def of(cls, settings: CloudSettings, workers: WorkerSettings) -> Self:
        """Return the intervals that follow from the settings: short leases need frequent looks.

        Args:
            settings: Intervals and deadlines of rented machines.
            workers: Grace of the workers on them.
        """
        lease, look = settings.lease_seconds, settings.look_seconds
        return cls(
            look_seconds=look,
            copy_every=settings.copy_every,
            search_seconds=look,
            list_seconds=min(300.0, lease / 4),
            lag_seconds=min(180.0, 9 * look),
            grace_seconds=workers.grace_seconds + look,
            release_seconds=min(15.0, workers.grace_seconds),
            destroy_seconds=min(600.0, lease / 2),
            offer_seconds=settings.offer_seconds,
            ttl=timedelta(seconds=lease),
            skew=timedelta(seconds=settings.skew_seconds),
            window=timedelta(seconds=lease),
            deadlines=Deadlines(
                provision=settings.provision_seconds,
                heartbeat=settings.silence_seconds,
                step=6 * settings.silence_seconds,
            ),
        )
