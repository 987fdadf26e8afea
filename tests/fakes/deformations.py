"""What a stranger may put in the place of a JSON document that another process reads.

`DEFORMED["half"]` are bytes; each of them is to be refused, or to say nothing, wherever it lies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_ARM = {"first_step": 0, "step": 40, "durable_step": 40, "total_steps": 99, "useful_seconds": 9.0}
_REPORT: Mapping[str, Any] = {
    "attempt": 1,
    "arms": {"selfplay": _ARM},
    "bytes_up": 1,
    "bytes_down": 1,
    "updated_at": "2026-01-01T00:00:00+00:00",
    "ended_at": "2026-01-01T00:00:00+00:00",
    "outcome": "interrupted",
    "message": "stopped",
}


def _with(**changes: Any) -> bytes:
    return json.dumps({**_REPORT, **changes}).encode()


def _arm(**changes: Any) -> bytes:
    return _with(arms={"selfplay": {**_ARM, **changes}}, bytes_up=changes.get("step", 1))


DEFORMED: Mapping[str, bytes] = {
    "nothing": b"",
    "half": b"{",
    "truncated": _with()[:-20],
    "a deep list": b"[" * 200_000,
    "a deep object": b'{"a":' * 200_000,
    "large": b" " * (17 << 20) + b"{}",
    "a list": b"[1, 2]",
    "a text": b'"x"',
    "null": b"null",
    "no text": b"\xff\xfe\0",
    "NUL": b"\0" * 100,
    "many digits": b'{"attempt": ' + b"9" * 5000 + b"}",
    "wrong types": _with(
        arms=[1], bytes_up="x", updated_at=5, ended_at=[], outcome={"a": 1}, message={"x": []}
    ),
    "wrong types within": _arm(step=[], first_step="x", durable_step=None, useful_seconds={}),
    "not a number": _arm(step=float("nan"), useful_seconds=float("nan")),
    "infinite": _arm(step=float("inf"), useful_seconds=float("-inf")),
    "negative": _arm(step=-5, durable_step=-7, useful_seconds=-1e9),
    "huge": _arm(step=10**299, durable_step=10**299, useful_seconds=1e308),
    "future": _with(updated_at="9999-12-31T23:59:59+00:00", ended_at="9999-12-31T23:59:59+00:00"),
    "past": _with(updated_at="0001-01-01T00:00:00+14:00", ended_at="0001-01-01T00:00:00+14:00"),
    "another run": _with(attempt=99, run="r2", run_id="r2", instance_id=77),
    "names that lead out": _with(arms={"../../x": _ARM, "a/b": _ARM, "/x": _ARM, "": _ARM}),
    "names with controls": _with(arms={"\0": _ARM, "\x1b[2J": _ARM, "\u202e": _ARM}),
    "controls": _with(message="\x1b[2J\x07\u202e" + "x" * 5000, outcome="\x1b]0;x\x07"),
    "half a surrogate": _with(message="\ud800", outcome="\udfff"),
    "many names": _with(arms={f"a{number}": {"step": number} for number in range(3000)}),
}
