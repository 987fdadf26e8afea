"""Output of commands about rented machines: a table for people, or one JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from rich.table import Table
from rich.text import Text

from tsgb.checkpoint.documents import printable
from tsgb.cli.output import console, print_json
from tsgb.cloud.inventory import Coverage, Inventory, InventoryItem
from tsgb.cloud.pricing import MICRO, in_dollars
from tsgb.cloud.reaper import ReapedInstance, ReapReport


def _facts(item: InventoryItem, now: datetime) -> dict[str, Any]:
    label, age = item.label, item.age(now)
    return {
        "id": item.instance.id,
        "label": item.instance.label,
        "run": None if label is None else label.run,
        "attempt": None if label is None else label.attempt,
        "state": item.instance.status,
        "dollars_per_hour": item.instance.hourly,
        "age_seconds": None if age is None else round(age.total_seconds()),
        "standing": item.coverage.value,
        "why": item.why,
    }


# -- ls ------------------------------------------------------------------------------------


def say_list(inventory: Inventory, *, as_json: bool) -> None:
    """Print all instances by id, with those of others dimmed."""
    rows = [_facts(item, inventory.at) for item in inventory.items]
    if as_json:
        print_json({"at": inventory.at.isoformat(), "instances": rows})
        return
    out = console()
    table = Table()
    table.add_column("Id", no_wrap=True)
    table.add_column("Label", overflow="fold")
    table.add_column("State", no_wrap=True)
    for head in ("$/h", "Age"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("Lease", overflow="fold")
    for item in inventory.items:
        price, age, why = item.instance.hourly, item.age(inventory.at), item.why
        table.add_row(
            f"{item.instance.id}",
            _plain(item.instance.label or ""),
            _plain(item.instance.status),
            "?" if price is None else f"{price:.3f}",
            "?" if age is None else _span(age),
            _plain(why if item.coverage in _QUIET else f"{item.coverage.value}: {why}"),
            style="dim" if item.coverage is Coverage.FOREIGN else None,
        )
    if rows:
        out.print(table)
    ours = [item for item in inventory.items if item.label is not None]
    hourly = sum(item.instance.hourly or 0.0 for item in ours)
    out.print(
        f"{len(ours)} of ours at ${hourly:.3f}/h, {len(rows) - len(ours)} of others", markup=False
    )


_QUIET = frozenset({Coverage.COVERED, Coverage.FOREIGN})


def _plain(text: str) -> Text:
    """Return foreign text without markup and without control characters."""
    return Text(printable(text))


def _span(age: timedelta) -> str:
    minutes = int(age.total_seconds() // 60)
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h" if days else f"{hours}:{minutes % 60:02d} h"


# -- destroy -------------------------------------------------------------------------------


def say_dismissed(items: Sequence[ReapedInstance], now: datetime, *, as_json: bool) -> None:
    """Print a line for each instance with its cost, from its run's ledger or from price and age."""
    if as_json:
        rows = [
            {
                **_facts(item.item, now),
                "gone": item.gone,
                "dollars": _cost(item, now)[0],
                "dollars_by": _cost(item, now)[1],
                "problem": item.problem or None,
            }
            for item in items
        ]
        print_json({"at": now.isoformat(), "instances": rows})
        return
    out = console()
    for item in items:
        if item.gone:
            dollars, source = _cost(item, now)
            cost = "unknown" if dollars is None else in_dollars(round(dollars * MICRO))
            problem = f"; {item.problem}" if item.problem else ""
            name = f"{item.item.instance.id} ({item.item.instance.label})"
            out.print(
                f"destroyed instance {name}; it cost {cost}, by {source}{problem}",
                markup=False,
                soft_wrap=True,
            )


def _cost(item: ReapedInstance, now: datetime) -> tuple[float | None, str]:
    if item.charged is not None:
        return item.charged / MICRO, "its run's ledger"
    price, age = item.item.instance.hourly, item.item.age(now)
    if price is None or age is None:
        return None, "no figure of the service"
    return round(price * age.total_seconds() / 3600, 6), "its price and age, without traffic"


# -- reap ----------------------------------------------------------------------------------


def say_reaped(found: ReapReport, *, as_json: bool) -> None:
    """Print a line for each machine that is not as it should be, and the totals."""
    if as_json:
        print_json(found.to_json())
        return
    out = console()
    for line in found.lines():
        out.print(line, markup=False, soft_wrap=True)
