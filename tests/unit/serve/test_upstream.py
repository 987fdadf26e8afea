"""Chats are sent to one address, which has to be one that others cannot read on the way."""

from __future__ import annotations

import pytest

from tests.fakes.sentinels import leaks, new_key
from tsgb.errors import UsageError
from tsgb.serve.upstream import Upstream


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.org/v1", "sends to example.org what others can read"),
        (f"https://user:{new_key()}@example.org/v1", "has a user or a password in it"),
        (f"https://example.org/v1?key={new_key()}", "has a query"),
        ("example.org/v1", "is no address"),
    ],
    ids=["plain", "password", "query", "no scheme"],
)
def test_an_address_that_is_refused(url: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"^--upstream: the address {reason}") as refused:
        Upstream(url)
    assert not leaks(str(refused.value))
