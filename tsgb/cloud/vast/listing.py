"""The list of instances: every page of it, or an error.

Whoever takes a failed or cut list for an empty one rents again what is rented already. Nothing is
filtered by the service, so that its own count can prove that the list is whole. Where pages are
counted off, what ends between two of them moves another row out of sight, and if one more begins
meanwhile the count is right again. So a list of several pages counts if a second look still finds
all of it: what ended would be missing there.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel

from tsgb.cloud.vast.answers import Call
from tsgb.cloud.vast.caller import Caller, odd, parsed
from tsgb.cloud.vast.records import InstanceRow

_PAGE = 25
_MOST_PAGES = 400
_CHANGED = "a list that changed while it was read"


class _Page(BaseModel):
    success: Literal[True]
    instances: list[Any]
    next_token: str | int | None
    instances_found: int | None = None
    """On this page."""
    total_instances: int | None = None
    """On all of them."""


def all_instances(caller: Caller, call: Call) -> tuple[InstanceRow, ...]:
    """Read page after page, once each; twice if there are several.

    Raises:
        ProviderError: A page is missing, cut or odd: nothing is known about the rest either.
    """
    found, num_pages = _read(caller, call)
    if num_pages > 1:
        before = found.keys()
        found, _ = _read(caller, call)
        if not before <= found.keys():
            raise odd(call, _CHANGED)
    return tuple(found.values())


def _read(caller: Caller, call: Call) -> tuple[dict[int, InstanceRow], int]:
    """What is on all pages, and how many there are."""
    params = {
        "select_filters": "{}",
        "order_by": json.dumps([{"col": "id", "dir": "asc"}]),
        "limit": str(_PAGE),
    }
    found: dict[int, InstanceRow] = {}
    tokens: set[str] = set()
    totals: set[int | None] = set()
    while True:
        payload = caller.ask(call, "GET", "/api/v1/instances/", params=params)
        page = parsed(_Page, payload, call)
        if page.instances_found not in {None, len(page.instances)}:
            raise odd(call, f"a page with {len(page.instances)} of {page.instances_found} rows")
        totals.add(page.total_instances)
        for row in page.instances:
            instance = parsed(InstanceRow, row, call)
            found[instance.id] = instance
        if page.next_token is None:
            break
        token = str(page.next_token)
        if token in tokens or len(tokens) == _MOST_PAGES:
            raise odd(call, "pages without an end")
        tokens.add(token)
        params = {**params, "after_token": token}
    if len(totals) > 1:
        raise odd(call, _CHANGED)
    total = totals.pop()
    if total is not None and total > len(found):
        raise odd(call, f"{len(found)} of {total} instances")
    return found, len(tokens) + 1
