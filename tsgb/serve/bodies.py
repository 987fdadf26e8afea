"""Bodies of requests: bounded, of the right type, and JSON that means one thing."""

from __future__ import annotations

from typing import Any, cast

from starlette.requests import Request

from tsgb.checkpoint.documents import parse_json
from tsgb.serve.faults import RequestFault, too_large


async def read_object(request: Request, most_bytes: int) -> dict[str, Any]:
    """Return the JSON object that a request brings.

    Raises:
        RequestFault: Its type, its size or its content is wrong.
    """
    _check_headers(request, most_bytes)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most_bytes:
            raise _too_long(most_bytes)
    try:
        text = body.decode("utf-8")
        found: Any = parse_json(text)
    except ValueError as error:
        rule = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise RequestFault(
            400, "invalid_json", f"the body cannot be read: {rule.removeprefix('it is ')}"
        ) from None
    if not isinstance(found, dict):
        raise RequestFault(400, "invalid_json", "the body must be a JSON object")
    document = cast("dict[str, Any]", found)
    if "\\ud" in text.lower() and _has_half_pair(document):  # only an escape can write one
        raise RequestFault(400, "invalid_json", "a text holds half of a surrogate pair")
    return document


def _check_headers(request: Request, most_bytes: int) -> None:
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if kind.strip().lower() != "application/json" or charset not in {"", "charset=utf-8"}:
        raise RequestFault(
            415, "unsupported_media_type", "send the content type application/json, in UTF-8"
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestFault(415, "unsupported_media_type", "send the body without an encoding")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > most_bytes:
        raise _too_long(most_bytes)


def _too_long(most_bytes: int) -> RequestFault:
    fault = too_large(f"the body is longer than {most_bytes} bytes")
    fault.headers["connection"] = "close"  # what is left of it is not read
    return fault


def _has_half_pair(value: object) -> bool:
    """Return whether a text within a document cannot be written as UTF-8."""
    left: list[Any] = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            if any("\ud800" <= letter <= "\udfff" for letter in one):
                return True
        elif isinstance(one, dict):
            inner = cast("dict[str, Any]", one)
            left += [*inner.keys(), *inner.values()]
        elif isinstance(one, list):
            left += cast("list[Any]", one)
    return False
