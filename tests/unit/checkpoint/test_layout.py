"""Names in a run's directory: they come back as they were, and all others are ignored."""

from __future__ import annotations

import pytest

from tsgb.checkpoint.layout import (
    CheckpointName,
    FencingToken,
    next_token,
    parse_attempt_document,
)


def test_names_come_back_as_they_were() -> None:
    token = FencingToken(3, "0001b2c4")
    assert token.name == "a0003-0001b2c4"
    assert FencingToken.parse(token.name) == token
    name = CheckpointName(3, 1200, "0001b2c4")
    assert name.name == "step-00001200-a0003-0001b2c4"
    assert CheckpointName.parse(name.name) == name
    assert name.token == token


@pytest.mark.parametrize(
    "name",
    ["", "x.json", "0003", "0003.json~", "3.json", "9999999999.json", "٣٣٣٣.json", "0003.json\n"],
)
def test_other_names(name: str) -> None:
    assert parse_attempt_document(name) is None
    assert FencingToken.parse(name) is None
    assert CheckpointName.parse(name) is None


def test_a_later_start_outranks_all_earlier_ones() -> None:
    seen: list[FencingToken] = []
    for _ in range(5):
        token = next_token(seen, 2)
        assert token is not None
        assert all(token > earlier for earlier in seen)
        seen.append(token)
    assert next_token([FencingToken(2, "fff00000")], 2) is None
    other = next_token([FencingToken(2, "fff00000")], 3)
    assert other is not None
    assert other.writer.startswith("000")
