"""Requests, answers, and the shapes that errors have on the wire."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

MAX_BODY_BYTES = 1 << 20
JSON = "application/json"
"""Exactly: the official command line refuses a charset behind it."""


@dataclass(slots=True, kw_only=True)
class Request:
    """What came in."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    """The JSON, numbers with a point as Decimal; None if empty, a str if it is none."""
    token: str | None
    """The key of the caller."""
    base_url: str
    duplicated: bool = False
    """A fault makes this the second of two, and the first took its offer."""


@dataclass(slots=True, kw_only=True)
class Answer:
    """What goes out."""

    status: int
    body: Any
    """A str goes out as it is, everything else as JSON."""
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)

    def data(self) -> bytes:
        return self.body.encode() if isinstance(self.body, str) else dump(self.body)


def dump(value: Any) -> bytes:
    return json.dumps(value, default=str).encode()


def parse(data: bytes) -> Any:
    try:
        return json.loads(data, parse_float=Decimal) if data else None
    except ValueError:
        return data.decode(errors="replace")


def ok(body: Any = None, **more: Any) -> Answer:
    """200; `success: true` unless a whole body is given."""
    return Answer(status=200, body={"success": True, **more} if body is None else body)


def refused(status: int, error: str, message: str, **more: Any) -> Answer:
    """The documented envelope of an error."""
    body = {"success": False, "error": error, "msg": message, **more}
    return Answer(status=status, body=body)


def no_such_instance(number: int) -> Answer:
    return refused(404, "no_such_instance", f"Instance {number} not found.")


def no_such_ask(ask_id: int) -> Answer:
    message = f"error 410/3907: no_such_ask Instance type {ask_id} is no longer available."
    return refused(410, "no_such_ask", message, ask_id=ask_id)
