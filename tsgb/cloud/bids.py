"""How much to offer for an interruptible machine, and whether to rent it on demand instead.

One pays what one bids, so a bid is little more than the least that is taken. Public records show no
longer holds for higher bids; only a hazard that is known to fall with the price would justify one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MARGIN = 0.07
"""Above the floor, because it moves between the search and the rental."""
LEAST_STEP = 0.005
"""$/h above the floor where the margin is less."""
ON_DEMAND_SHARE = 0.9
"""A bid at more of the on-demand price than this is a worse deal than on demand."""
_TICK = 1000
"""Bids are whole thousandths of a dollar."""


@dataclass(frozen=True, slots=True)
class Bid:
    """A price, or why there is none.

    Example: `Bid(0.215)` or `Bid(None, "the floor of $0.300/h is over the cap of $0.250/h")`
    """

    price: float | None
    """$/h for the whole machine, without storage."""
    reason: str = ""


def choose_bid(
    min_bid: float,
    on_demand: float | None,
    cap: float,
    *,
    margin: float = MARGIN,
) -> Bid:
    """The bid for one machine: within the cap, below on demand, at or above the floor.

    Args:
        min_bid: The floor now, $/h.
        on_demand: What the same machine costs on demand, $/h; None if unknown.
        cap: The most that may be paid, $/h.
        margin: Above the floor, as a share of it.
    """
    if not min_bid > 0:
        return Bid(None, f"a floor of ${min_bid:.3f}/h is no price")
    bounds = {f"the cap of ${cap:.3f}/h": cap}
    if on_demand is not None and on_demand > 0:
        name = f"{ON_DEMAND_SHARE:.0%} of its on-demand price of ${on_demand:.3f}/h"
        bounds[name] = ON_DEMAND_SHARE * on_demand
    name, bound = min(bounds.items(), key=lambda item: item[1])
    wanted = math.ceil(_ticks(max(min_bid * (1 + margin), min_bid + LEAST_STEP)))
    price = min(wanted, math.floor(_ticks(bound))) / _TICK
    if price < min_bid:
        return Bid(None, f"the floor of ${min_bid:.3f}/h is over {name}")
    return Bid(price)


def break_even(bid_hourly: float, on_demand_hourly: float, boot_hours: float) -> float:
    """The hazard per hour above which a machine on demand is the cheaper one.

    Args:
        bid_hourly: $/h of the interruptible machine.
        on_demand_hourly: $/h of the other one.
        boot_hours: Lost with each preemption: the start, and the work that was not saved.
    """
    if bid_hourly <= 0 or boot_hours <= 0:
        return math.inf
    return max(0.0, on_demand_hourly / bid_hourly - 1) / boot_hours


def _ticks(price: float) -> float:
    """In thousandths; floats such as 0.9 * 0.3 lie a hair off a whole one."""
    return round(price * _TICK, 6)
