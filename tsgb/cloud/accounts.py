"""What one attempt cost, and the credit: records that tsgb/cloud/budget.py keeps."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from tsgb.cloud.pricing import Rates, Usage


class Account(BaseModel):
    """What one attempt costs.

    Example: `Account(attempt=3, rates=Rates(gpu_per_hour=200_000), opened_at=now, seen_at=now)`
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    attempt: int = Field(ge=1)
    rates: Rates
    opened_at: AwareDatetime
    seen_at: AwareDatetime
    """Up to here `usage` is counted."""
    usage: Usage = Usage()
    reserved: int = Field(default=0, ge=0)
    """Micro-dollars set aside; never less than `spent` once it was written."""
    charged: int | None = None
    """Micro-dollars that it cost in the end; None while it is open."""

    @property
    def is_open(self) -> bool:
        """Not committed: its machine may still cost money."""
        return self.charged is None

    @property
    def spent(self) -> int:
        """Micro-dollars accrued as far as was seen."""
        return self.usage.cost(self.rates) if self.charged is None else self.charged

    @property
    def held(self) -> int:
        """Micro-dollars that count against the budget."""
        return max(self.reserved, self.spent) if self.charged is None else self.charged

    @property
    def covers_until(self) -> datetime:
        """Until when `reserved` lasts at the full rate, traffic apart."""
        hourly = self.rates.gpu_per_hour + self.rates.storage_per_hour
        left = max(0, self.reserved - self.spent)
        if hourly == 0:
            return self.seen_at + timedelta(days=365)
        return self.seen_at + timedelta(microseconds=left * 3_600_000_000 // hourly)

    def used(self, now: datetime, more: Usage | None = None, *, gpu_billed: bool = True) -> Self:
        """Count on to `now`; a clock that was set back counts nothing."""
        passed = Usage.of(max(timedelta(0), now - self.seen_at), gpu_billed=gpu_billed)
        usage = self.usage + passed + (more or Usage())
        return self.model_copy(update={"usage": usage, "seen_at": max(now, self.seen_at)})

    def cost_after(self, later: timedelta, traffic: Usage) -> int:
        """Micro-dollars if it goes on so long at its full rate."""
        return (self.usage + Usage.of(later) + traffic).cost(self.rates)


class CreditMark(BaseModel):
    """The account's credit at one time, and what the ledger held then."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: AwareDatetime
    credit: int
    """Micro-dollars."""
    first_credit: int
    """Where the comparison begins; a payment begins a new one."""
    first_spent: int
