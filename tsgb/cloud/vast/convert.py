"""The service's records as the decisions read them: offers, instances, states, rates.

What a record does not say never speaks for a machine: a missing measure fails its rule, a missing
price is taken dear. It asks nobody.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from tsgb.cloud.offers import Offer
from tsgb.cloud.orphans import Instance
from tsgb.cloud.pricing import Rates
from tsgb.cloud.termination import Row
from tsgb.cloud.vast import records

_DEAR_TRAFFIC = 0.05
"""$/GB where an offer does not say; about twice what is usual."""
_DEAR_STORAGE = 0.5
"""$/GB/month, likewise."""


def offer_of(found: records.Offer, *, is_bid: bool = True) -> Offer:
    """An offer of a search for interruptible machines (or for those on demand)."""
    return Offer(
        id=found.ask_id,
        machine_id=found.machine_id,
        host_id=-1 if found.host_id is None else found.host_id,
        gpu_name=found.gpu_name or "?",
        num_gpus=found.num_gpus or 0,
        gpu_ram=_measure(found.gpu_ram),
        disk_space=_measure(found.disk_space),
        cuda_max_good=_measure(found.cuda_max_good),
        compute_cap=found.compute_cap or 0,
        inet_up=_measure(found.inet_up),
        inet_down=_measure(found.inet_down),
        inet_up_cost=_price(found.inet_up_cost, _DEAR_TRAFFIC),
        inet_down_cost=_price(found.inet_down_cost, _DEAR_TRAFFIC),
        # A row that is priced as a bid does not say what the machine costs on demand.
        dph_base=0.0 if is_bid and found.is_bid is not False else found.dph_base or 0.0,
        min_bid=found.min_bid or 0.0,
        is_bid=is_bid,
        storage_cost=_price(found.storage_cost, _DEAR_STORAGE),
        reliability=_measure(found.reliability),
        duration=_measure(found.duration),
        rentable=bool(found.rentable),
        verified=found.verification == "verified",
    )


def listed(found: records.Instance) -> Instance:
    """A row of the list, for the reaper."""
    return Instance(id=found.id, label=found.label, created_at=began(found))


def began(found: records.Instance) -> datetime | None:
    """When it was rented; None if the service does not say."""
    try:
        return None if found.start_date is None else datetime.fromtimestamp(found.start_date, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def row_of(found: records.Instance | None) -> Row | None:
    """Its states; a state that the service leaves out is no sign of anything."""
    if found is None:
        return None
    return Row(
        actual_status=found.actual_status,
        intended_status=found.intended_status or "running",
        cur_state=found.cur_state or "running",
        next_state=found.next_state or found.cur_state or "running",
        status_msg=found.status_msg or "",
    )


def gpu_is_billed(found: records.Instance | None) -> bool:
    """False only for states in which the service is known not to bill the GPU."""
    if found is None or found.actual_status in {"running", "frozen", "rebooting"}:
        return True
    if found.actual_status in {None, "created", "loading"}:
        return False
    return not (found.actual_status in {"stopped", "exited"} and found.cur_state == "stopped")


def rates_of(offer: Offer, price: float, disk_gb: float) -> Rates:
    """What an offer costs at a bid of so many $/h."""
    return Rates.of(
        price=price,
        disk_gb=disk_gb,
        storage_cost=offer.storage_cost,
        up=offer.inet_up_cost,
        down=offer.inet_down_cost,
    )


def objection(
    found: records.Instance, *, label: str, machine_id: int, hourly: float, slack: float = 0.02
) -> str | None:
    """Why a new instance is not what was asked for; None if it is, as far as the service says.

    Args:
        found: Its first full row.
        label: The one that it was rented under.
        machine_id: Of the offer.
        hourly: $/h that are set aside, storage included.
        slack: By which share the service's own sum may be above it.
    """
    if found.label is not None and found.label != label:
        return f"its label is {found.label!r}, not {label!r}"
    if found.is_bid is False:
        return "it was rented on demand, at the full price"
    if found.machine_id is not None and found.machine_id != machine_id:
        return f"it is machine {found.machine_id}, not {machine_id}"
    if found.dph_total is not None and found.dph_total > hourly * (1 + slack) + 0.001:
        return f"it costs ${found.dph_total:.3f}/h, and ${hourly:.3f}/h are set aside"
    return None


def ends_in(found: records.Instance, now: datetime) -> timedelta | None:
    """Until its contract's limit; None if the service does not say."""
    return None if found.end_date is None else timedelta(seconds=found.end_date - now.timestamp())


def _measure(value: float | None) -> float:
    return math.nan if value is None else value


def _price(value: float | None, dear: float) -> float:
    return dear if value is None or value < 0 else value
