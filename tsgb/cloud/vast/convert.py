"""Implementation of `Provider` for Vast.ai: converts its records and states to neutral ones.

A missing value never favours a machine: a missing measure is NaN, which fails its rule, and a
missing price is assumed to be high.
"""

from __future__ import annotations

import base64
import gzip
import math
from contextlib import suppress
from datetime import UTC, datetime
from typing import Self

from pydantic import ValidationError

from tsgb.cloud.provider import (
    AccountFacts,
    Instance,
    InstanceState,
    LaunchSpec,
    Offer,
    SearchSpec,
)
from tsgb.cloud.vast.client import VastClient
from tsgb.cloud.vast.records import InstanceRow, OfferRow, Rental
from tsgb.cloud.vast.search import Search, region_of
from tsgb.errors import ConfigError, ProviderError

_HIGH_TRAFFIC = 0.05
"""Price assumed for traffic if an offer has none, $/GB; about twice the usual one."""
_HIGH_STORAGE = 0.5
"""Price assumed for storage if an offer has none, $/GB a month."""
_SHELL = "/bin/sh"
"""Entry point of every container. The service then installs no SSH server and opens no port; the
script is its first process, and runs again at every start as a stored `onstart` would."""


class VastProvider:
    """One account of Vast.ai as a `Provider`.

    Example: `VastProvider(VastClient(key)).search(SearchSpec(disk_gb=20.0))`
    """

    name = "vast"

    def __init__(self, client: VastClient) -> None:
        """Wrap a client; nothing is sent."""
        self._client = client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def credit(self) -> float:
        """Return the dollars that the account can spend."""
        return self._client.account().credit

    def facts(self) -> AccountFacts:
        """Return the credit, and what else of the account matters to who rents with it."""
        account, names = self._client.account(), None
        with suppress(ProviderError):  # a key may read the account and not its variables
            names = self._client.variables()
        return AccountFacts(account.credit, names, account.bills_itself)

    def search(self, spec: SearchSpec, /) -> tuple[Offer, ...]:
        """Return at most 64 offers that meet the whole spec, cheapest first."""
        found = self._client.search(
            Search(
                disk_gb=spec.disk_gb,
                gpu_names=spec.gpu_names,
                num_gpus=spec.num_gpus,
                min_gpu_ram_mb=spec.min_gpu_ram_gb * 1000 or None,
                min_cpu_ram_mb=spec.min_cpu_ram_gb * 1000 or None,
                min_compute_cap=spec.min_compute_cap or None,
                min_cuda=spec.min_cuda or None,
                min_inet_down_mbps=spec.min_inet_down_mbps or None,
                regions=spec.regions,
                min_reliability=spec.min_reliability,
                min_duration_seconds=spec.min_duration_seconds,
                limit=spec.limit,
            )
        )
        return tuple(offer_of(row) for row in found)

    def create(self, offer_id: int, spec: LaunchSpec, /) -> int:
        """Rent an offer and return the new instance's id; send one request, whatever happens."""
        try:
            rental = Rental(
                image=spec.image,
                label=spec.label,
                price=spec.price,
                disk_gb=spec.disk_gb,
                onstart=_SHELL if spec.onstart else "",
                args=("-c", _one_line(spec.onstart)) if spec.onstart else (),
                env=dict(spec.env),
            )
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"Vast.ai takes no such rental: {field or 'env or onstart'}: {first['msg']}"
            ) from None
        return self._client.create(offer_id, rental)

    def list(self) -> tuple[Instance, ...]:
        """Return every instance of the account, or raise an error."""
        return tuple(instance_of(row) for row in self._client.instances())

    def show(self, instance_id: int, /) -> Instance | None:
        """Return one instance; None if the service says that it does not exist."""
        row = self._client.show(instance_id)
        return None if row is None else instance_of(row)

    def stop(self, instance_id: int, /) -> None:
        """Stop the container of an instance; its storage still costs money."""
        self._client.stop(instance_id)

    def destroy(self, instance_id: int, /) -> None:
        """Destroy an instance; one that is gone already is no error."""
        self._client.destroy(instance_id)


def _one_line(script: str) -> str:
    """Return a command of one line that runs a script, whatever the service does with line ends."""
    packed = base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()
    return f'eval "$(echo {packed} | base64 -d | gunzip)"'


def offer_of(row: OfferRow) -> Offer:
    """Return the neutral form of an offer."""
    return Offer(
        id=row.ask_id,
        machine_id=row.machine_id,
        host_id=-1 if row.host_id is None else row.host_id,
        gpu_name=row.gpu_name or "?",
        num_gpus=row.num_gpus or 0,
        gpu_ram=_measure(row.gpu_ram),
        # A container gets the share of the machine's memory that it has of the GPUs.
        cpu_ram=(row.cpu_ram or 0.0) * min(1.0, row.gpu_frac or 1.0),
        disk_space=_measure(row.disk_space),
        cuda_max_good=_measure(row.cuda_max_good),
        compute_cap=row.compute_cap or 0,
        inet_up=_measure(row.inet_up),
        inet_down=_measure(row.inet_down),
        inet_up_cost=_price(row.inet_up_cost, _HIGH_TRAFFIC),
        inet_down_cost=_price(row.inet_down_cost, _HIGH_TRAFFIC),
        # A row with the price of a bid has no price on demand.
        dph_base=0.0 if row.is_bid is not False else row.dph_base or 0.0,
        min_bid=row.min_bid or 0.0,
        storage_cost=_price(row.storage_cost, _HIGH_STORAGE),
        reliability=_measure(row.reliability),
        duration=_measure(row.duration),
        rentable=bool(row.rentable),
        verified=row.verification == "verified",
        region=region_of(row),
        dlperf=row.dlperf or 0.0,
    )


def instance_of(row: InstanceRow) -> Instance:
    """Return the neutral form of an instance; a missing state means that it is unknown."""
    return Instance(
        id=row.id,
        label=row.label,
        state=_state(row),
        status=_status(row),
        message=row.status_msg or "",
        gpu_billed=_gpu_is_billed(row),
        machine_id=row.machine_id,
        is_bid=row.is_bid,
        hourly=row.dph_total,
        created_at=_moment(row.start_date),
        ends_at=_moment(row.end_date),
    )


_STATES = {
    None: InstanceState.PROVISIONING,
    "created": InstanceState.PROVISIONING,
    "loading": InstanceState.PROVISIONING,
    "running": InstanceState.RUNNING,
    "exited": InstanceState.EXITED,
    "offline": InstanceState.UNREACHABLE,
    "unknown": InstanceState.UNREACHABLE,
}


def _state(row: InstanceRow) -> InstanceState:
    contract = row.cur_state or "running"
    is_stopped = contract == (row.next_state or contract) == "stopped"
    if row.actual_status in {"exited", "stopped"} and is_stopped:
        return InstanceState.STOPPED
    return _STATES.get(row.actual_status, InstanceState.CHANGING)


def _status(row: InstanceRow) -> str:
    """Return the state of the container, and that of its contract if they differ."""
    actual = row.actual_status or "provisioning"
    return actual if row.cur_state in {None, "running", actual} else f"{actual}/{row.cur_state}"


def _gpu_is_billed(row: InstanceRow) -> bool:
    if row.actual_status in {None, "created", "loading"}:
        return False
    return not (row.actual_status in {"stopped", "exited"} and row.cur_state == "stopped")


def _moment(seconds: float | None) -> datetime | None:
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _measure(value: float | None) -> float:
    return math.nan if value is None else value


def _price(value: float | None, default: float) -> float:
    return default if value is None or value < 0 else value
