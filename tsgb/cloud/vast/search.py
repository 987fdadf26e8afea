"""Search for offers: one list of conditions, sent to the service and checked again here.

The service answers with at most 64 offers and does not always apply a condition on a number. A
condition on a value that is missing in the answer counts as not met.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tsgb.cloud.vast.records import OfferRow

_MOST = 64


def _is_one_of(value: Any, choices: Any) -> bool:
    return value in choices


_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "gte": operator.ge,
    "lte": operator.le,
    "in": _is_one_of,
}


class Condition(NamedTuple):
    """One condition, in the terms of the service's API.

    Example: `Condition("num_gpus", "eq", 1)`
    """

    field: str
    """Name of a field of an offer."""
    op: str
    """Name of a comparison, such as `gte`."""
    value: Any
    """Value to compare with."""

    def holds(self, offer: OfferRow) -> bool:
        """Return whether the offer meets it; an unknown value never does."""
        if self.field == "verified":
            return (offer.verification == "verified") is self.value
        if self.field == "external":
            return bool(offer.external) is self.value
        if self.field == "geolocation":  # a filter names the country, an offer the city as well
            return region_of(offer) in self.value
        found = getattr(offer, self.field)
        return found is not None and _OPERATORS[self.op](found, self.value)


_FIELDS = {
    "num_gpus": ("num_gpus", "eq"),
    "min_gpu_ram_mb": ("gpu_ram", "gte"),
    "min_cpu_ram_mb": ("cpu_ram", "gte"),
    "min_compute_cap": ("compute_cap", "gte"),
    "min_cuda": ("cuda_max_good", "gte"),
    "disk_gb": ("disk_space", "gte"),
    "min_inet_up_mbps": ("inet_up", "gte"),
    "min_inet_down_mbps": ("inet_down", "gte"),
    "max_inet_up_usd_per_gb": ("inet_up_cost", "lte"),
    "max_inet_down_usd_per_gb": ("inet_down_cost", "lte"),
    "min_reliability": ("reliability", "gte"),
    "min_duration_seconds": ("duration", "gte"),
    "max_usd_per_hour": ("dph_total", "lte"),
}
"""Field and comparison of the service for each of our fields."""

_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Search(BaseModel):
    """Request for offers, cheapest first; None and empty mean any value.

    Example: `Search(gpu_names=("RTX 4090",), disk_gb=60, max_usd_per_hour=0.4)`
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    disk_gb: Annotated[float, Field(ge=8, allow_inf_nan=False)]
    """Storage to rent, GB: it must be free, and its price is part of `dph_total`."""
    interruptible: bool = True
    """Whether prices are those of bids; otherwise those of a rental on demand."""
    gpu_names: tuple[str, ...] = ()
    """Names of GPUs as the service writes them."""
    num_gpus: Annotated[int, Field(ge=1)] | None = 1
    """GPUs of an offer."""
    min_gpu_ram_mb: _Amount | None = None
    """Least memory of each GPU, MB."""
    min_cpu_ram_mb: _Amount | None = None
    """Least main memory of the machine, MB."""
    min_compute_cap: Annotated[int, Field(ge=0)] | None = None
    """Least CUDA compute capability times 100: 890 is 8.9."""
    min_cuda: _Amount | None = None
    """Least CUDA version that the driver must carry."""
    min_inet_up_mbps: _Amount | None = None
    """Least upload bandwidth, Mb/s."""
    min_inet_down_mbps: _Amount | None = None
    """Least download bandwidth, Mb/s."""
    max_inet_up_usd_per_gb: _Amount | None = None
    """Highest price of sent data, $/GB."""
    max_inet_down_usd_per_gb: _Amount | None = None
    """Highest price of received data, $/GB."""
    min_reliability: Annotated[float, Field(ge=0, le=1)] | None = None
    """Least reliability of a host, from 0 to 1."""
    min_duration_seconds: _Amount | None = None
    """Least seconds until the contract's limit."""
    max_usd_per_hour: _Amount | None = None
    """Highest price with storage at the lowest bid, without traffic, $/h."""
    regions: tuple[str, ...] = ()
    """Countries by their codes of two letters; any if empty."""
    verified: bool = True
    """Whether to take only machines that the service has verified."""
    limit: Annotated[int, Field(ge=1, le=_MOST)] = _MOST
    """Most offers in the answer."""

    @field_validator("gpu_names")
    @classmethod
    def _as_on_the_wire(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Accept the form of the service's command line, `RTX_4090`."""
        return tuple(name.replace("_", " ") for name in names)

    def conditions(self) -> tuple[Condition, ...]:
        """Return all conditions that an offer must meet."""
        always = [Condition("external", "eq", False), Condition("rentable", "eq", True)]
        if self.verified:
            always.append(Condition("verified", "eq", True))
        if self.gpu_names:
            always.append(Condition("gpu_name", "in", list(self.gpu_names)))
        if self.regions:
            always.append(Condition("geolocation", "in", list(self.regions)))
        given = ((wire, getattr(self, ours)) for ours, wire in _FIELDS.items())
        return (
            *always,
            *(Condition(field, op, value) for (field, op), value in given if value is not None),
        )

    def body(self) -> dict[str, Any]:
        """Return the body of the request."""
        return {
            **{field: {op: value} for field, op, value in self.conditions()},
            "order": [["dph_total", "asc"]],
            "type": "bid" if self.interruptible else "on-demand",
            "limit": self.limit,
            "allocated_storage": self.disk_gb,
        }

    def accepts(self, offer: OfferRow) -> bool:
        """Return whether the offer meets the request, which the service does not always check."""
        if offer.is_bid is not None and offer.is_bid is not self.interruptible:
            return False
        return all(condition.holds(offer) for condition in self.conditions())


def region_of(offer: OfferRow) -> str:
    """Return the code of the country in a place such as `Sweden, SE`; empty if it has none."""
    code = (offer.geolocation or "").rpartition(",")[2].strip()
    return code if len(code) == 2 else ""


def readable(rows: Iterable[Any]) -> Iterator[OfferRow]:
    """Yield the offers among the rows; a malformed row is skipped."""
    for row in rows:
        try:
            yield OfferRow.model_validate(row)
        except ValidationError:
            continue
