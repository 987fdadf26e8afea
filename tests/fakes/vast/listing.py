"""Reads of instances: one, and the list by pages, each as late as the options say."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tests.fakes.vast.clock import microseconds
from tests.fakes.vast.contracts import Contract
from tests.fakes.vast.messages import Answer, Request, no_such_instance, ok, refused
from tests.fakes.vast.world import World

MAX_PAGE = 25


def show(world: World, number: int) -> Answer:
    """`GET /api/v0/instances/{id}/`: null is gone."""
    contract = world.contracts.get(number)
    lag = microseconds(world.options.by_id_lag_seconds)
    if contract is None or not contract.is_live or world.now < contract.created_at + lag:
        if world.options.gone == "404":
            return no_such_instance(number)
        return ok({"instances": None})
    return ok({"instances": row(world, contract)})


def row(world: World, contract: Contract) -> dict[str, Any]:
    return contract.row(world.now, microseconds(world.options.status_lag_seconds))


def listed(world: World) -> list[Contract]:
    """What the inventory has noticed: the newest are missing, the destroyed may still be there."""
    lag = microseconds(world.options.list_lag_seconds)
    ghost = microseconds(world.options.ghost_seconds)
    return [
        contract
        for contract in world.contracts.values()
        if world.now >= contract.created_at + lag
        and (contract.destroyed_at is None or world.now < contract.destroyed_at + ghost)
    ]


def page(world: World, request: Request) -> Answer:
    """`GET /api/v1/instances/`."""
    query = request.query
    try:
        filters = json.loads(query.get("select_filters", "{}"))
        order = json.loads(query.get("order_by", "[]")) or [{"col": "id", "dir": "asc"}]
        columns = json.loads(query.get("select_cols", "null"))
        limit = min(int(query.get("limit", MAX_PAGE)), MAX_PAGE)
        rows = [row(world, contract) for contract in listed(world)]
        rows = [row for row in rows if _fits(row, filters)]
        for by in reversed(order):
            rows.sort(
                key=lambda row: (row.get(by["col"]) is not None, row.get(by["col"])),
                reverse=by.get("dir") == "desc",
            )
        begin = _begin(world, rows, query.get("after_token"))
    except (ValueError, TypeError, KeyError) as error:
        return refused(400, "invalid_args", str(error))
    found = rows[begin : begin + limit]
    more = begin + limit < len(rows)
    token = str(begin + limit) if world.options.paging == "offset" else f"id:{_last(found)}"
    shown = [{name: row.get(name) for name in columns} for row in found] if columns else found
    return ok(
        instances_found=len(found),
        total_instances=len(rows),
        label_counts=Counter(row["label"] for row in rows if row["label"]),
        next_token=token if more else None,
        instances=shown,
    )


def _begin(world: World, rows: list[dict[str, Any]], token: str | None) -> int:
    if not token:
        return 0
    if not token.startswith("id:"):
        return int(token)
    last = int(token.removeprefix("id:"))
    known = [index for index, row in enumerate(rows) if row["id"] == last]
    if known:
        return known[0] + 1
    return sum(
        row["id"] <= last for row in rows
    )  # it is gone: by id, the order of the command line


def _last(rows: list[dict[str, Any]]) -> int:
    return rows[-1]["id"] if rows else 0


def _fits(row: Mapping[str, Any], filters: Mapping[str, Mapping[str, Any]]) -> bool:
    for column, conditions in filters.items():
        for name, wanted in conditions.items():
            if name not in {"eq", "in"}:
                raise ValueError(f"select_filters knows eq and in, not {name!r}")
            if row.get(column) not in (wanted if name == "in" else [wanted]):
                return False
    return True
