"""Search as the service does it: filters by field and operator, with the known quirks.

`id` matches nothing; fields that it does not know, and `Options.ignored_filters`, are taken and not
applied; numbers may come as strings.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
    "in": lambda value, options: value in options,
    "notin": lambda value, options: value not in options,
}
NOT_FIELDS = frozenset({"type", "order", "limit", "allocated_storage"})


def select(
    offers: Sequence[Mapping[str, Any]],
    query: Mapping[str, Any],
    *,
    ignored: Sequence[str],
    at_most: int,
) -> list[Mapping[str, Any]]:
    """The offers that a query finds, in its order.

    Raises:
        ValueError: an operator or an order that there is not.
    """
    found = [offer for offer in offers if _fits(offer, query, ignored)]
    for field, direction in reversed(query.get("order") or [["score", "desc"]]):
        if direction not in {"asc", "desc"}:
            raise ValueError(f"order {direction!r} is neither asc nor desc")
        found.sort(key=lambda row: _sortable(row.get(field)), reverse=direction == "desc")
    return found[: min(at_most, int(query.get("limit") or at_most))]


def _fits(offer: Mapping[str, Any], query: Mapping[str, Any], ignored: Sequence[str]) -> bool:
    for field, conditions in query.items():
        if field in NOT_FIELDS or not isinstance(conditions, Mapping):
            continue
        for name, wanted in conditions.items():
            if name not in OPERATORS:
                raise ValueError(f"operator {name!r} is none of {', '.join(OPERATORS)}")
            if field == "id":
                return False
            value = _value(offer, field)
            if value is _UNKNOWN or field in ignored or wanted is None:
                continue
            if not _compare(name, value, wanted):
                return False
    return True


_UNKNOWN = object()


def _value(offer: Mapping[str, Any], field: str) -> Any:
    match field:
        case "verified":
            return offer["verification"] == "verified"
        case "external":
            return bool(offer["external"])
        case "geolocation":  # a filter names the country alone
            return offer["geolocation"].rpartition(", ")[2]
        case "cuda_vers":
            return offer["cuda_max_good"]
        case _:
            return offer.get(field, _UNKNOWN)


def _compare(name: str, value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return OPERATORS[name](value, [_like(value, item) for item in wanted])
    return OPERATORS[name](value, _like(value, wanted))


def _like(value: Any, wanted: Any) -> Any:
    """The command line sends most numbers as strings."""
    if isinstance(value, bool) and isinstance(wanted, str):
        return wanted.lower() == "true"
    if isinstance(value, int | float) and isinstance(wanted, str | Decimal):
        return float(wanted)
    return wanted


def _sortable(value: Any) -> tuple[bool, Any]:
    return (value is not None, value if isinstance(value, int | float) else str(value))
