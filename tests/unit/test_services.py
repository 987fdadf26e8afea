"""Where prompts may be sent, and when a request is repeated."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.services import RepeatRules, address_fault, asked_wait, may_heal

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("https://h.test/v1", ""),
        ("https://h.test:8443", ""),
        ("http://127.0.0.1:9/v1", ""),
        ("http://[::1]:9/v1", ""),
        ("http://localhost/v1", ""),
        ("http://h.test/v1", "sends to h.test what others can read: write https://"),
        ("http://127.evil.test/v1", "sends to 127.evil.test what others can read"),
        ("https://user@h.test/", "has a user or a password"),
        ("https://u:sentinel@h.test/", "has a user or a password"),
        ("https://h.test/?key=sentinel", "has a query or a fragment"),
        ("https://h.test/#sentinel", "has a query or a fragment"),
        ("ftp://h.test/", "is no address"),
        ("https:///v1", "is no address"),
        ("https://h.test/a b", "is no address"),
        ("https://h.test:port/", "is no address"),
        ("https://[h/", "is no address"),
        ("", "is no address"),
    ],
)
def test_addresses_that_prompts_may_be_sent_to(url: str, fault: str) -> None:
    found = address_fault(url)
    assert found.startswith(fault)
    assert bool(found) == bool(fault)
    assert "sentinel" not in found


@given(st.text(max_size=60))
def test_no_address_raises(text: str) -> None:
    assert isinstance(address_fault(text), str)


def test_a_request_is_repeated_where_it_may_succeed() -> None:
    statuses = (200, 301, 400, 401, 403, 404, 408, 409, 422, 429, 500, 503, 529)
    assert [s for s in statuses if may_heal(s)] == [408, 409, 429, 500, 503, 529]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, math.inf),
        ({"retry-after": "1e400"}, math.inf),
        ({"retry-after": format_datetime(NOW + timedelta(seconds=8), usegmt=True)}, 8.0),
        ({"retry-after": format_datetime(NOW - timedelta(seconds=8), usegmt=True)}, 0.0),
        ({"retry-after": "Sun, 29 Nov 2026 12:00:08 -0000"}, 8.0),
        ({"retry-after": "Sun, 99 Nov 2026 12:00:08 GMT"}, None),
    ],
)
def test_the_wait_that_headers_ask_for(headers: dict[str, str], seconds: float | None) -> None:
    assert asked_wait(headers, NOW) == seconds


@given(st.text(max_size=40))
def test_no_header_raises(text: str) -> None:
    found = asked_wait({"retry-after": text, "retry-after-ms": text}, NOW)
    assert found is None or found >= 0


def test_pauses_double_to_a_bound_and_a_wait_that_is_asked_for_is_kept() -> None:
    rules = RepeatRules()
    most = [rules.pause_seconds(n, None, lambda _, high: high) for n in range(1, 8)]
    least = [rules.pause_seconds(n, None, lambda low, _: low) for n in range(1, 8)]
    assert most == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert least == [value / 2 for value in most]
    assert rules.pause_seconds(1, 7.0, lambda low, _: low) == 7.0
    assert rules.pause_seconds(1, 7.0, lambda _, high: high) > 7.0
