"""JSON documents of a run: the one form in which they are written, and bounds on what is read.

A document in a store may be damaged, half written, or made by someone who wants to do harm. What
reads one goes through `parse_json`, and limits its size before it is downloaded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

MAX_JSON_BYTES = 16 << 20
"""Size of the largest JSON document that is read, in bytes."""
MAX_TEXT_BYTES = 256 << 20
"""Size of the largest text, such as `metrics.jsonl`, that is read, in bytes."""
MAX_JSON_DEPTH = 64
"""Number of arrays and objects that may lie inside each other."""
MAX_JSON_DIGITS = 300
"""Characters of the longest integer that is read; a float holds no longer one."""
MAX_SECONDS = 1e12
"""Longest duration that is believed, in seconds."""


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


def printable(text: str, keep: str = "") -> str:
    r"""Return text that cannot steer a terminal: control characters become question marks.

    Args:
        text: Text that another process wrote.
        keep: Control characters that stay.

    >>> printable("lost\x1b[2J\n", keep="\n")
    'lost?[2J\n'
    """
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)


def parse_json(data: bytes | str) -> Any:
    """Return the value of a JSON text that another process wrote.

    Raises:
        ValueError: It is not JSON, is nested more than `MAX_JSON_DEPTH` deep, or has an integer of
            more than `MAX_JSON_DIGITS` characters.
    """
    try:
        value: object = json.loads(data, parse_int=_parse_integer)
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


def finite(value: Any) -> Any:
    """Return a JSON value with None for each number that JSON cannot hold, such as infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(one) for key, one in cast("dict[str, object]", value).items()}
    return (
        [finite(one) for one in cast("list[object]", value)] if isinstance(value, list) else value
    )


def parse_json_lines(text: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a text with one JSON object a line, such as `metrics.jsonl`.

    A line that is torn or no object is skipped.
    """
    for line in text.splitlines():
        try:
            yield parse_json_object(line)
        except ValueError:
            continue


def count_in(document: Mapping[str, Any], name: str) -> int:
    """Return a count in a document that another process wrote; 0 if it has none of that name."""
    found = document.get(name)
    return found if isinstance(found, int) and found > 0 else 0


def seconds_in(document: Mapping[str, Any], name: str) -> float:
    """Return a duration in a document that another process wrote.

    It is 0 if the document has none of that name, and for a negative or absurd number.
    """
    found = document.get(name)
    if isinstance(found, int | float) and 0 < found < MAX_SECONDS:
        return float(found)
    return 0.0


def _parse_integer(text: str) -> int:
    if len(text) > MAX_JSON_DIGITS:
        raise ValueError(f"an integer has more than {MAX_JSON_DIGITS} characters")
    return int(text)


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
