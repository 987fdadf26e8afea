"""JSON documents of a run: the one form in which they are written, and bounds on what is read.

A document in a store may be damaged, half written, or made by someone who wants to do harm. What
reads one goes through `parse_json`, and limits its size before it is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

MAX_JSON_BYTES = 16 << 20
"""Size of the largest JSON document that is read, in bytes."""
MAX_TEXT_BYTES = 256 << 20
"""Size of the largest text, such as `metrics.jsonl`, that is read, in bytes."""
MAX_JSON_DEPTH = 64
"""Number of arrays and objects that may lie inside each other."""


def canonical_json(value: Mapping[str, Any]) -> bytes:
    r"""Return the one form of a value: sorted keys, no spaces, UTF-8, a newline at the end.

    Half of a surrogate pair, which UTF-8 cannot hold, is written as its JSON escape and read back
    as it was.

    >>> canonical_json({"b": 1, "a": "é\ud800"})
    b'{"a":"\xc3\xa9\\ud800","b":1}\n'
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return f"{text}\n".encode(errors="backslashreplace")


def parse_json(data: bytes | str) -> Any:
    """Return the value of a JSON text that another process wrote.

    Raises:
        ValueError: It is not JSON, or is nested more than `MAX_JSON_DEPTH` deep.
    """
    try:
        value: object = json.loads(data)
    except ValueError as error:
        raise ValueError("it is not JSON") from error
    except RecursionError as error:
        raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} deep") from error
    if _is_deeper(value, MAX_JSON_DEPTH):
        raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} deep")
    return value


def parse_json_object(data: bytes | str) -> dict[str, Any]:
    """Return the value of a JSON text that must be an object; see `parse_json`.

    Raises:
        ValueError: It is anything else.
    """
    value = parse_json(data)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - a wrong file, not a bug
    return cast("dict[str, Any]", value)


def _is_deeper(value: object, limit: int) -> bool:
    """Return whether arrays and objects lie inside each other more than `limit` deep."""
    level: list[object] = [value]
    for _ in range(limit + 1):  # a loop, since recursion is what a deep value breaks
        level = [child for item in level for child in _children(item)]
    return bool(level)


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return cast("dict[str, object]", value).values()
    return cast("list[object]", value) if isinstance(value, list) else ()
