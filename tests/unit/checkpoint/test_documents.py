"""One form to write JSON in, and bounds on the JSON that is read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tsgb.checkpoint.documents import (
    MAX_JSON_DEPTH,
    canonical_json,
    count_in,
    parse_json,
    parse_json_lines,
    parse_json_object,
    seconds_in,
)


@pytest.mark.parametrize("text", ["\ud800", "x\udfff\ud83d", "\U0001f600", 'a"\\b'])
def test_any_text_comes_back_as_it_was(text: str) -> None:
    data = canonical_json({"text": text, text: 1})
    assert data.decode("utf-8")
    assert parse_json_object(data) == {"text": text, text: 1}


@pytest.mark.parametrize("data", [b"[" * 200_000, b'{"a":' * 200_000, b"[" * 99 + b"]" * 99])
def test_what_is_nested_too_deep_is_no_crash(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"nested more than 64 deep"):
        parse_json(data)


def test_depth() -> None:
    value: Any = 1
    for depth in range(MAX_JSON_DEPTH + 1):
        assert parse_json(json.dumps(value)) == value, depth
        value = [value] if depth % 2 else {"a": value}
    with pytest.raises(ValueError, match="nested"):
        parse_json(json.dumps(value))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"\xef\xbb", b'{"step": 1' + b"0" * 400 + b"}"]
)
def test_no_json(data: bytes) -> None:
    with pytest.raises(ValueError, match="it is not JSON"):
        parse_json(data)


@pytest.mark.parametrize("data", [b"[]", b"1", b"null", b'"x"'])
def test_no_object(data: bytes) -> None:
    with pytest.raises(ValueError, match="it is not a JSON object"):
        parse_json_object(data)


def test_lines_that_are_torn_or_no_objects_are_skipped() -> None:
    assert list(parse_json_lines(f'{{"a":1}}\n5\n{"[" * 5000}\n\n{{"a":2}}\n{{"a"')) == [
        {"a": 1},
        {"a": 2},
    ]


@pytest.mark.parametrize(
    "stored", [None, "x", [1], {}, -1, float("nan"), float("inf"), 1e308, 10**400]
)
def test_what_is_no_number_counts_nothing(stored: object) -> None:
    assert seconds_in({"s": stored}, "s") == seconds_in({}, "s") == count_in({}, "s") == 0
    assert count_in({"s": stored}, "s") in (0, stored)
    assert (count_in({"s": 3}, "s"), seconds_in({"s": 3}, "s")) == (3, 3.0)
