from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.data.splits import DEFAULT_FRACTIONS, SplitFractions, hash_of_split
from tsgb.errors import UsageError
from tsgb.types import Split


def test_the_shares_are_met() -> None:
    found = [DEFAULT_FRACTIONS.split_of(f"group {i}") for i in range(20_000)]
    for split, share in ((Split.TEST, 0.5), (Split.CALIBRATION, 0.3), (Split.TRAIN, 0.2)):
        assert found.count(split) / 20_000 == pytest.approx(share, abs=0.012)  # 3.5 standard errors


def test_a_place_does_not_change_between_versions() -> None:
    """Changing this moves prompts of users from the training of a guard to its test."""
    found = [DEFAULT_FRACTIONS.split_of(f"{i:016x}") for i in range(12)]
    letters = {Split.TRAIN: "r", Split.CALIBRATION: "c", Split.TEST: "t"}
    assert "".join(letters[split] for split in found) == "tcttcrrccttr"


@given(st.text(), st.floats(0, 0.9))
def test_a_larger_test_split_keeps_its_groups(group: str, share: float) -> None:
    small = SplitFractions(test=share, calibration=1 - share, train=0)
    large = SplitFractions(test=share + 0.1, calibration=0.9 - share, train=0)
    assert small.split_of(group) != Split.TEST or large.split_of(group) == Split.TEST


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.5), (1.2, -0.2, 0), (float("nan"), 0, 1)])
def test_shares_that_are_none(shares: tuple[float, float, float]) -> None:
    test, calibration, train = shares
    with pytest.raises(UsageError, match="add up to 1"):
        SplitFractions(test=test, calibration=calibration, train=train)


def test_the_hash_knows_members_and_not_their_order() -> None:
    members = [("a", b"1", True), ("a", b"2", None), ("b", b"1", False)]
    assert hash_of_split(members) == hash_of_split(reversed(members))
    assert len({hash_of_split(members[:i]) for i in range(4)}) == 4
    assert hash_of_split([("a", b"1", True)]) != hash_of_split([("a", b"1", False)])
