"""What commands about rented machines print: a table for people, or one JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from rich.table import Table
from rich.text import Text

from tsgb.cli.output import console, print_json
from tsgb.cloud.inventory import Census, Entry, Standing
from tsgb.cloud.pricing import MICRO, in_dollars
from tsgb.cloud.reaper import Reaped, Reaping


def _facts(entry: Entry, now: datetime) -> dict[str, Any]:
    label, age = entry.label, entry.age(now)
    return {
        "id": entry.instance.id,
        "label": entry.instance.label,
        "run": None if label is None else label.run,
        "attempt": None if label is None else label.attempt,
        "state": entry.instance.status,
        "dollars_per_hour": entry.instance.hourly,
        "age_seconds": None if age is None else round(age.total_seconds()),
        "standing": entry.standing.value,
        "why": entry.why,
    }


# -- ls ------------------------------------------------------------------------------------


def say_list(census: Census, *, as_json: bool) -> None:
    """All of them by id, those of others dim; a label holds deployment, run and attempt."""
    rows = [_facts(entry, census.at) for entry in census.entries]
    if as_json:
        print_json({"at": census.at.isoformat(), "instances": rows})
        return
    out = console()
    table = Table()
    table.add_column("Id", no_wrap=True)
    table.add_column("Label", overflow="fold")
    table.add_column("State", no_wrap=True)
    for head in ("$/h", "Age"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("Lease", overflow="fold")
    for entry in census.entries:
        price, age, told = entry.instance.hourly, entry.age(census.at), entry.why
        table.add_row(
            f"{entry.instance.id}",
            _plain(entry.instance.label or ""),
            _plain(entry.instance.status),
            "?" if price is None else f"{price:.3f}",
            "?" if age is None else _span(age),
            _plain(told if entry.standing in _QUIET else f"{entry.standing.value}: {told}"),
            style="dim" if entry.standing is Standing.FOREIGN else None,
        )
    if rows:
        out.print(table)
    ours = [entry for entry in census.entries if entry.label is not None]
    hourly = sum(entry.instance.hourly or 0.0 for entry in ours)
    out.print(
        f"{len(ours)} of ours at ${hourly:.3f}/h, {len(rows) - len(ours)} of others", markup=False
    )


_QUIET = frozenset({Standing.COVERED, Standing.FOREIGN})


def _plain(text: str) -> Text:
    """Words of others: no markup, nothing that a terminal obeys."""
    return Text("".join(c if c.isprintable() else "?" for c in text))


def _span(age: timedelta) -> str:
    minutes = int(age.total_seconds() // 60)
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h" if days else f"{hours}:{minutes % 60:02d} h"


# -- destroy -------------------------------------------------------------------------------


def say_dismissed(items: Sequence[Reaping], now: datetime, *, as_json: bool) -> None:
    """A line each, with what it cost: by its run's ledger, else by price and age."""
    if as_json:
        rows = [
            {
                **_facts(item.entry, now),
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
            name = f"{item.entry.instance.id} ({item.entry.instance.label})"
            out.print(
                f"destroyed instance {name}; it cost {cost}, by {source}{problem}",
                markup=False,
                soft_wrap=True,
            )


def _cost(item: Reaping, now: datetime) -> tuple[float | None, str]:
    if item.charged is not None:
        return item.charged / MICRO, "its run's ledger"
    price, age = item.entry.instance.hourly, item.entry.age(now)
    if price is None or age is None:
        return None, "nothing that the service says"
    return round(price * age.total_seconds() / 3600, 6), "its price and age, without traffic"


# -- reap ----------------------------------------------------------------------------------


def say_reaped(found: Reaped, *, as_json: bool) -> None:
    """A line for each that is not as it should be, and the sum."""
    if as_json:
        print_json(found.to_json())
        return
    out = console()
    for line in found.lines():
        out.print(line, markup=False, soft_wrap=True)
