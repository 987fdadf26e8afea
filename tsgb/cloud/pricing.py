"""Cost of a rented machine, in whole micro-dollars: exact sums, always rounded up.

A machine costs by the hour while its GPU is held, by the hour for its disk in every state until it
is destroyed, and by the byte. Knows no store and no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from tsgb.errors import UsageError

MICRO = 1_000_000
HOURS_PER_MONTH = 730
_US_PER_HOUR = 3_600 * MICRO
_BYTES_PER_GB = 10**9
_US = timedelta(microseconds=1)
_FASTEST_MBPS = 1e6

DRIFT_SHARE = Decimal("0.25")
"""By how much of the larger one the account and the ledger may differ."""
DRIFT_FLOOR = MICRO // 20
"""Below 5 cents nothing is said: charges arrive late and rounded."""


def microdollars(dollars: float | str | Decimal) -> int:
    """Return an amount in micro-dollars, rounded up.

    Raises:
        UsageError: No finite amount of at least 0.
    """
    try:
        amount = Decimal(str(dollars))
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise UsageError(f"{dollars!r} is not an amount in dollars: give a number of at least 0")
    return int((amount * MICRO).to_integral_value(ROUND_CEILING))


def in_dollars(amount: int) -> str:
    """Return an amount of micro-dollars as people read it.

    Example: `in_dollars(1_234_567) == "$1.2346"`
    """
    return f"${Decimal(amount) / MICRO:.4f}"


class Rates(BaseModel):
    """Prices of one machine, in micro-dollars.

    Example: `Rates(gpu_per_hour=200_000, storage_per_hour=8_000, up_per_gb=3_000)`
    """

    model_config = ConfigDict(frozen=True)

    gpu_per_hour: int = Field(default=0, ge=0)
    """Micro-dollars an hour for the machine without storage."""
    storage_per_hour: int = Field(default=0, ge=0)
    """Micro-dollars an hour for its storage."""
    up_per_gb: int = Field(default=0, ge=0)
    """Micro-dollars for a GB sent."""
    down_per_gb: int = Field(default=0, ge=0)
    """Micro-dollars for a GB received."""

    @classmethod
    def of(
        cls,
        *,
        price: float,
        disk_gb: float,
        storage_cost: float,
        up: float = 0.0,
        down: float = 0.0,
    ) -> Rates:
        """Convert an offer's prices in dollars: an hour, a GB and month, a GB."""
        storage = Decimal(str(disk_gb)) * Decimal(str(storage_cost)) / HOURS_PER_MONTH
        return cls(
            gpu_per_hour=microdollars(price),
            storage_per_hour=microdollars(storage),
            up_per_gb=microdollars(up),
            down_per_gb=microdollars(down),
        )


class Bandwidth(BaseModel):
    """Most bytes that a machine can have sent and received.

    A machine counts its own traffic, and its host may write any number. Twice the bandwidth of the
    offer is believed, because the service measures it only now and then.

    Example: `Bandwidth.of(up_mbps=800.0, down_mbps=900.0)`
    """

    model_config = ConfigDict(frozen=True)

    up_per_second: int = Field(default=2_500_000_000, ge=0)
    """Most bytes sent a second; twice 10 Gb/s where the offer does not tell."""
    down_per_second: int = Field(default=2_500_000_000, ge=0)
    """Most bytes received a second."""

    @classmethod
    def of(cls, *, up_mbps: float, down_mbps: float) -> Bandwidth:
        """Convert an offer's bandwidths, Mb/s; one that is no positive number is unknown."""
        told = {"up_per_second": up_mbps, "down_per_second": down_mbps}
        return cls(
            **{
                name: round(2 * mbps * 1e6 / 8)
                for name, mbps in told.items()
                if 0 < mbps < _FASTEST_MBPS
            }
        )

    def believable(self, before: Usage, more: Usage, age: timedelta) -> Usage:
        """Return the part of further traffic that the line can have carried.

        Args:
            before: What is counted already.
            more: Traffic that the machine tells of besides.
            age: Time since its rental.
        """
        us = max(0, age // _US)
        most_up = max(0, self.up_per_second * us // MICRO - before.bytes_up)
        most_down = max(0, self.down_per_second * us // MICRO - before.bytes_down)
        return more.model_copy(
            update={
                "bytes_up": min(more.bytes_up, most_up),
                "bytes_down": min(more.bytes_down, most_down),
            }
        )


class Usage(BaseModel):
    """Use of a machine. Sums of usages are exact.

    Example: `Usage.of(timedelta(hours=1), bytes_up=7 * 10**8)`
    """

    model_config = ConfigDict(frozen=True)

    gpu_us: int = Field(default=0, ge=0)
    """Microseconds in which the GPU was billed."""
    storage_us: int = Field(default=0, ge=0)
    """Microseconds since it was created."""
    bytes_up: int = Field(default=0, ge=0)
    """Bytes sent."""
    bytes_down: int = Field(default=0, ge=0)
    """Bytes received."""

    @classmethod
    def of(
        cls,
        held: timedelta,
        *,
        gpu_billed: bool = True,
        bytes_up: int = 0,
        bytes_down: int = 0,
    ) -> Usage:
        """Return the use over a time; `gpu_billed` unless the GPU is known not to be billed."""
        us = max(0, held // _US)
        return cls(
            gpu_us=us if gpu_billed else 0, storage_us=us, bytes_up=bytes_up, bytes_down=bytes_down
        )

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            gpu_us=self.gpu_us + other.gpu_us,
            storage_us=self.storage_us + other.storage_us,
            bytes_up=self.bytes_up + other.bytes_up,
            bytes_down=self.bytes_down + other.bytes_down,
        )

    def cost(self, rates: Rates) -> int:
        """Return the micro-dollars, rounded up once, so that more use never costs less."""
        by_time = rates.gpu_per_hour * self.gpu_us + rates.storage_per_hour * self.storage_us
        by_byte = rates.up_per_gb * self.bytes_up + rates.down_per_gb * self.bytes_down
        whole = by_time * _BYTES_PER_GB + by_byte * _US_PER_HOUR
        return -(-whole // (_US_PER_HOUR * _BYTES_PER_GB))


@dataclass(frozen=True, slots=True)
class Drift:
    """Charges of the account and of the ledger over the same time.

    Example: `Drift(charged=900_000, recorded=500_000)` is an alarm: look for a leaked machine.
    """

    charged: int
    """Micro-dollars by which the credit fell."""
    recorded: int
    """Micro-dollars that the ledgers accrued."""

    @property
    def alarming(self) -> bool:
        """Whether they differ by more than late and rounded charges explain."""
        apart = abs(self.charged - self.recorded)
        return apart > max(DRIFT_FLOOR, DRIFT_SHARE * max(self.charged, self.recorded))

    def __str__(self) -> str:
        text = f"the account was charged {in_dollars(self.charged)}, "
        text += f"the ledger holds {in_dollars(self.recorded)}"
        if not self.alarming:
            return text
        if self.charged > self.recorded:
            return (
                f"{text}: look for instances that no run owns, or images that are larger than "
                "TSGB_IMAGE_GB"
            )
        return f"{text}: charges are late, or its rates are too high"


class Account(BaseModel):
    """Cost of one attempt.

    Example: `Account(attempt=3, rates=Rates(gpu_per_hour=200_000), opened_at=now, seen_at=now)`
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    attempt: int = Field(ge=1)
    """Number of the attempt."""
    rates: Rates
    """Prices of its machine."""
    opened_at: AwareDatetime
    """Time at which the account was opened."""
    seen_at: AwareDatetime
    """Time up to which `usage` is counted."""
    usage: Usage = Usage()
    """Use of its machine."""
    start_bytes: int = Field(default=0, ge=0)
    """Bytes that its start is presumed to receive, with those in `usage`, as far as its line can
    carry them; 0 once the machine itself has told what it received."""
    bandwidth: Bandwidth = Bandwidth()
    """Bound on the traffic that is believed."""
    reserved: int = Field(default=0, ge=0)
    """Micro-dollars set aside; never less than `spent` once it was written."""
    charged: int | None = None
    """Micro-dollars that it cost in the end; None while it is open."""

    @property
    def is_open(self) -> bool:
        """Whether it is not committed, so that its machine may still cost money."""
        return self.charged is None

    @property
    def spent(self) -> int:
        """Micro-dollars accrued as far as was seen, and for the presumed start."""
        if self.charged is not None:
            return self.charged
        unseen = Usage(bytes_down=max(0, self.start_bytes - self.usage.bytes_down))
        age = self.seen_at - self.opened_at
        return (self.usage + self.bandwidth.believable(self.usage, unseen, age)).cost(self.rates)

    @property
    def _with_start(self) -> Usage:
        """Use of its machine, once it has received all that its start is presumed to."""
        received = max(self.usage.bytes_down, self.start_bytes)
        return self.usage.model_copy(update={"bytes_down": received})

    @property
    def held(self) -> int:
        """Micro-dollars that count against the budget."""
        return max(self.reserved, self.spent) if self.charged is None else self.charged

    @property
    def highest_cost(self) -> int:
        """Micro-dollars that its machine can have cost at most: all the time, with a full line."""
        us = self.usage.storage_us
        most = Usage(
            gpu_us=us,
            storage_us=us,
            bytes_up=self.bandwidth.up_per_second * us // MICRO,
            bytes_down=self.bandwidth.down_per_second * us // MICRO,
        )
        return max(self.spent, most.cost(self.rates))

    @property
    def covers_until(self) -> datetime:
        """Time until which `reserved` lasts at the full rate, without traffic."""
        hourly = self.rates.gpu_per_hour + self.rates.storage_per_hour
        left = max(0, self.reserved - self._with_start.cost(self.rates))
        if hourly == 0:
            return self.seen_at + timedelta(days=365)
        return self.seen_at + timedelta(microseconds=left * 3_600_000_000 // hourly)

    def used(
        self,
        now: datetime,
        more: Usage | None = None,
        *,
        gpu_billed: bool = True,
        start_is_told: bool = False,
    ) -> Self:
        """Return the account counted up to `now`; a clock that was set back counts nothing.

        Traffic is counted as far as the machine's bandwidth allows.

        Args:
            now: Time of day.
            more: Traffic that the machine tells of besides.
            gpu_billed: False only if the service showed that the GPU is not billed.
            start_is_told: Whether all traffic of its start is known, so that none is presumed.
        """
        passed = Usage.of(max(timedelta(0), now - self.seen_at), gpu_billed=gpu_billed)
        told = more or Usage()
        traffic = self.bandwidth.believable(
            self.usage, told, max(now, self.seen_at) - self.opened_at
        )
        usage = self.usage + passed + traffic
        changed: dict[str, Any] = {"usage": usage, "seen_at": max(now, self.seen_at)}
        if start_is_told:
            changed["start_bytes"] = 0
        return self.model_copy(update=changed)

    def cost_after(self, later: timedelta, traffic: Usage) -> int:
        """Return the micro-dollars after a further time at its full rate."""
        return (self._with_start + Usage.of(later) + traffic).cost(self.rates)


class CreditMark(BaseModel):
    """The account's credit at one time, and what the ledger held then."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: AwareDatetime
    """Time of the last look."""
    credit: int
    """Micro-dollars of credit then."""
    first_credit: int
    """Micro-dollars of credit at the first look; a payment begins anew."""
    first_spent: int
    """Micro-dollars in the ledger at the first look."""
