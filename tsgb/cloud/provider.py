"""The seam between renting and the services that rent machines out.

A provider is a class with the methods of `Provider`; its package alone knows the service's own
names, states and errors, and gives the neutral records below. Its errors are `ProviderError` and
its kinds (tsgb/errors.py). `tsgb/cloud/connect.py` picks the provider of a process.

Two rules hold for every provider. What is not known is never taken for nothing: `list` returns
every instance or raises, and `show` returns None only if the service says that there is none.
And `create` is sent once: a lost answer is `ProviderAmbiguous`, never a second request.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol, Self
from urllib.parse import urlsplit

from pydantic import SecretStr

from tsgb.checkpoint.documents import printable

_MOST_NAMES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpec:
    """The machines to search offers of; zero and empty ask for nothing.

    Example: `SearchSpec(disk_gb=20.0, gpu_names=("RTX 4090",), min_gpu_ram_gb=8.0)`
    """

    disk_gb: float
    """Storage to rent, GB; the price of an offer includes it."""
    gpu_names: tuple[str, ...] = ()
    """Names of GPUs as the service writes them; any GPU if empty."""
    num_gpus: int = 1
    """GPUs of one machine."""
    min_gpu_ram_gb: float = 0.0
    """Memory of each GPU, GB."""
    min_cpu_ram_gb: float = 0.0
    """Main memory, GB."""
    min_compute_cap: int = 0
    """CUDA compute capability times 100."""
    min_cuda: float = 0.0
    """CUDA version that the driver must carry."""
    min_inet_down_mbps: float = 0.0
    """Download bandwidth, Mb/s."""
    regions: tuple[str, ...] = ()
    """Countries by their codes of two letters; any if empty."""
    min_reliability: float = 0.0
    """The service's own measure of a host, from 0 to 1."""
    min_duration_seconds: float = 0.0
    """Seconds that the contract must allow."""
    limit: int = 64
    """Most offers in the answer: with as many there may be more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One machine that may be rented now.

    A measure that the service does not tell is NaN, which fails every rule.

    Example: `Offer(id=41, machine_id=7, host_id=2, gpu_name="RTX 4090", dph_base=0.4, min_bid=0.2)`
    """

    id: int
    """Identifier that `create` takes; good for one rental."""
    machine_id: int
    """The machine, over all its offers."""
    host_id: int
    """The machine's owner; -1 if the service does not say."""
    gpu_name: str
    """Name of its GPUs as the service writes it."""
    num_gpus: int = 1
    """GPUs of the offer."""
    gpu_ram: float = 0.0
    """Memory of one GPU, MB."""
    cpu_ram: float = 0.0
    """Main memory, MB."""
    disk_space: float = 0.0
    """Free storage, GB."""
    cuda_max_good: float = 0.0
    """Highest CUDA version that its driver carries."""
    compute_cap: int = 0
    """CUDA compute capability times 100: 890 is 8.9."""
    inet_up: float = 0.0
    """Upload bandwidth, Mb/s."""
    inet_down: float = 0.0
    """Download bandwidth, Mb/s."""
    inet_up_cost: float = 0.0
    """Price of sent data, $/GB."""
    inet_down_cost: float = 0.0
    """Price of received data, $/GB."""
    dph_base: float = 0.0
    """Price on demand without storage, $/h; 0 if the service does not tell it."""
    min_bid: float = 0.0
    """Lowest interruptible bid now, $/h."""
    is_bid: bool = True
    """Whether it is rented at a bid, and may be preempted."""
    storage_cost: float = 0.0
    """Price of storage, $/GB a month of 730 h."""
    reliability: float = 1.0
    """The service's own measure of its host, from 0 to 1."""
    duration: float = math.inf
    """Seconds until the contract's limit."""
    rentable: bool = True
    """Whether it can be rented now."""
    verified: bool = True
    """Whether the service has verified the machine."""
    region: str = ""
    """Country by its code of two letters; empty if the service does not say."""
    dlperf: float = 0.0
    """The service's score for deep learning, of all GPUs of the offer; 0 if it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """An interruptible rental at a bid, as it is asked for.

    Example: `LaunchSpec(image="python:3.11-slim", label="tsgb/home/r1/1", price=0.15, disk_gb=20)`
    """

    image: str
    """Container image."""
    label: str
    """Label by which the instance is found if the answer is lost; no other one may have it."""
    price: float
    """Bid, $/h: the highest price, and on some services the price itself."""
    disk_gb: float
    """Storage, GB; it cannot grow later."""
    onstart: str = ""
    """Shell script that runs at every start of the container."""
    env: Mapping[str, SecretStr] = field(default_factory=dict[str, SecretStr])
    """Environment of the container."""


class InstanceState(StrEnum):
    """State of an instance; it costs money in each of them until it is destroyed."""

    PROVISIONING = "provisioning"
    """Its container is being made."""
    RUNNING = "running"
    """Its container runs."""
    EXITED = "exited"
    """Its container ended while the machine is still rented."""
    STOPPED = "stopped"
    """The service stopped it and keeps its storage: outbid, asked to, or out of credit."""
    UNREACHABLE = "unreachable"
    """The service cannot reach its host."""
    CHANGING = "changing"
    """On its way to another state, such as a reboot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A rented machine of the account.

    Example: `Instance(id=7835610, label="tsgb/home/r1/3", state=InstanceState.RUNNING)`
    """

    id: int
    """The service's number of it."""
    label: str | None = None
    """Text that its renter gave it; None without one."""
    state: InstanceState = InstanceState.RUNNING
    """State that decisions read."""
    status: str = "running"
    """State in the service's own words, for people."""
    message: str = ""
    """The service's remark, such as an error of the image's download."""
    gpu_billed: bool = True
    """False only in states in which the service is known not to bill the GPU."""
    machine_id: int | None = None
    """The machine; None if the service does not say."""
    is_bid: bool | None = None
    """Whether it may be preempted; None if the service does not say."""
    hourly: float | None = None
    """Price with storage, $/h; None if the service does not say."""
    created_at: datetime | None = None
    """Time of its rental by the service's clock; None if the service does not say."""
    ends_at: datetime | None = None
    """Time at which its contract ends; None without a limit."""


@dataclass(frozen=True, slots=True)
class AccountFacts:
    """What of an account matters to who rents with it.

    Example: `AccountFacts(25.0, variables=("HF_TOKEN",), bills_itself=False)`
    """

    credit: float
    """Dollars that the account can spend."""
    variables: tuple[str, ...] | None = None
    """Names of the variables that every container of it gets; None if that is unknown."""
    bills_itself: bool | None = None
    """Whether credit that runs low is added by itself; None if that is unknown."""

    def warnings(self) -> list[str]:
        """Return a line for people on each fact that helps a hostile host."""
        found: list[str] = []
        if self.variables:
            names = [printable(name[:40]) for name in self.variables[:_MOST_NAMES]]
            names += ["..."] * (len(self.variables) > _MOST_NAMES)
            found.append(
                f"every machine gets the account's own variables ({', '.join(names)}): delete "
                "those in the account that a stranger must not read"
            )
        if self.bills_itself:
            found.append(
                "auto-billing is on, so a small credit does not bound what a mistake may cost: "
                "turn it off in the account"
            )
        return found


class Provider(Protocol):
    """One account of a service that rents machines.

    Every method may raise `ProviderUnreachable` (no usable answer in time, nothing is known),
    `ProviderAuthError` and `ProviderRateLimited`. Threads may share a provider.
    """

    @property
    def name(self) -> str:
        """Name of the service, for messages and documents."""
        ...

    def credit(self) -> float:
        """Return the dollars that the account can spend."""
        ...

    def facts(self) -> AccountFacts:
        """Return the credit, and what else of the account matters to who rents with it."""
        ...

    def search(self, spec: SearchSpec, /) -> Sequence[Offer]:
        """Return offers of interruptible machines that meet the whole spec.

        Raises:
            ProviderSearchQuota: No more searches for now.
        """
        ...

    def create(self, offer_id: int, spec: LaunchSpec, /) -> int:
        """Rent an offer and return the new instance's id. One request, whatever happens.

        Raises:
            ProviderAmbiguous: It may exist: look for its label before the next try.
            ProviderUnreachable: Nothing was sent.
            ProviderNoCredit: The account does not pay for it.
            ProviderGone: Another renter was faster.
            ProviderRefused: The service will not; `instance_id` is what it left behind.
            ConfigError: The service takes no such spec; nothing was sent.
        """
        ...

    def list(self) -> Sequence[Instance]:
        """Return every instance of the account, in every state: all of them, or raise."""
        ...

    def show(self, instance_id: int, /) -> Instance | None:
        """Return one instance; None if the service says that there is none (any more)."""
        ...

    def stop(self, instance_id: int, /) -> None:
        """End the container of an instance; its storage still costs money."""
        ...

    def destroy(self, instance_id: int, /) -> None:
        """End an instance for good; one that is gone already is no error.

        An accepted request proves nothing: see that it is gone from `show` and `list` too.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def is_loopback(url: str) -> bool:
    """Return whether an address is on this machine, as that of a simulator is."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
