"""What everything costs, exactly: the oracle of every test.

A line is one stretch of one charge at one rate. An hour is no decimal part of a microsecond and a
month none of an hour, so sums are fractions; they become decimals where they are shown. It knows no
states: the world opens a line when a charge begins and closes it when it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal

from tests.fakes.vast.clock import HOUR, SECOND, Moment

Charge = Literal["gpu", "storage", "download", "upload"]

HOURS_PER_MONTH = 730
SHOWN = 12
"""Decimal places."""


def decimal(value: Fraction | Decimal, places: int = SHOWN) -> Decimal:
    """Rounded half to even."""
    return Decimal(round(Fraction(value) * 10**places)).scaleb(-places)


def shown(value: Fraction | Decimal, places: int = SHOWN) -> str:
    """As JSON carries it, since a float would round."""
    return f"{decimal(value, places):f}"


def storage_per_hour(gigabytes: Decimal, dollars_per_gb_month: Decimal) -> Fraction:
    return Fraction(gigabytes) * Fraction(dollars_per_gb_month) / HOURS_PER_MONTH


@dataclass(slots=True)
class Line:
    """One charge of one instance at one rate."""

    instance: int
    charge: Charge
    rate: Fraction
    """$/h; $/GB for traffic."""
    since: Moment
    until: Moment | None = None
    """None: it goes on."""
    gigabytes: Fraction | None = None
    """Traffic only."""

    def dollars(self, now: Moment) -> Fraction:
        if self.gigabytes is not None:
            return self.gigabytes * self.rate
        return self.rate * self.microseconds(now) / HOUR

    def microseconds(self, now: Moment) -> int:
        return (now if self.until is None else self.until) - self.since

    def row(self, now: Moment) -> dict[str, Any]:
        quantity = (
            {
                "seconds": shown(Fraction(self.microseconds(now), SECOND), 6),
                "dollars_per_hour": shown(self.rate),
            }
            if self.gigabytes is None
            else {"gigabytes": shown(self.gigabytes), "dollars_per_gb": shown(self.rate)}
        )
        return {
            "instance": self.instance,
            "charge": self.charge,
            "since": self.since / SECOND,
            "until": None if self.until is None else self.until / SECOND,
            **quantity,
            "dollars": shown(self.dollars(now)),
            "exact": str(self.dollars(now)),
        }


class Ledger:
    """All lines, and what was paid in."""

    def __init__(self, deposited: Decimal) -> None:
        self.deposited = Fraction(deposited)
        self._open: dict[tuple[int, Charge], Line] = {}
        self._closed: list[Line] = []
        self._closed_dollars = Fraction(0)

    def open(self, instance: int, charge: Charge, per_hour: Fraction, now: Moment) -> None:
        """A charge begins, or goes on at another rate."""
        self.close(instance, charge, now)
        self._open[instance, charge] = Line(instance, charge, per_hour, now)

    def close(self, instance: int, charge: Charge, now: Moment) -> None:
        """It ends; nothing if there is none."""
        line = self._open.pop((instance, charge), None)
        if line is not None and now > line.since:
            line.until = now
            self._add(line)

    def traffic(
        self, instance: int, charge: Charge, gigabytes: Decimal, rate: Decimal, now: Moment
    ) -> None:
        self._add(Line(instance, charge, Fraction(rate), now, now, Fraction(gigabytes)))

    def _add(self, line: Line) -> None:
        self._closed.append(line)
        self._closed_dollars += line.dollars(line.since)

    def lines(self, instance: int | None = None) -> Iterator[Line]:
        for line in (*self._closed, *self._open.values()):
            if instance in {None, line.instance}:
                yield line

    def spent(self, now: Moment) -> Fraction:
        return self._closed_dollars + sum(
            (line.dollars(now) for line in self._open.values()), Fraction(0)
        )

    def credit(self, now: Moment) -> Fraction:
        return self.deposited - self.spent(now)

    def per_hour(self) -> Fraction:
        """What goes on being charged."""
        return sum((line.rate for line in self._open.values()), Fraction(0))
