"""Scenarios and secrets of the canary game."""

from __future__ import annotations

import re
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.envs import make_environment
from tsgb.envs.canary import CanaryEnvironment
from tsgb.envs.canary.world import NOUNS, SINGLE_TOKENS, secret_of
from tsgb.errors import UsageError
from tsgb.types import Split


@given(seed=st.integers(0, 2**40), noun=st.integers(0, 11), instance=st.integers(0, 99))
def test_canary_has_its_shape(seed: int, noun: int, instance: int) -> None:
    canary = secret_of(seed, f"S-{noun:02d}-{instance:02d}").canary
    assert re.fullmatch(r"(?:[bdfgklmnprstvz][aeiou]){2}-[1-9]{3}", canary)
    assert canary[:4] not in SINGLE_TOKENS


def test_golden_secrets() -> None:
    # Changing these is a decision: stored attacks and answers belong to these codes.
    secret = secret_of(1, "S-07-12")
    assert (secret.noun, secret.role, secret.canary) == (
        "ticket code",
        "a chess club",
        "visu-232",
    )
    assert len(SINGLE_TOKENS) == 249


def test_splits_are_disjoint_and_half_harmful() -> None:
    environment = make_environment("canary", world_seed=3)
    ids = {split: {s.scenario_id for s in environment.scenarios(split)} for split in Split}
    assert all(not ids[a] & ids[b] for a, b in combinations(Split, 2))
    for split in Split:
        scenarios = environment.scenarios(split)
        assert sum(s.harmful for s in scenarios) * 2 == len(scenarios)
        assert {s.family for s in scenarios} == {f"{noun:02d}" for noun in range(len(NOUNS))}


def test_canaries_do_not_repeat_within_a_world() -> None:
    environment = CanaryEnvironment(world_seed=1)
    canaries = [
        environment.secret(s.scenario_id).canary
        for split in Split
        for s in environment.scenarios(split)
    ]
    assert len(set(canaries)) == len(canaries) == 1200


@pytest.mark.parametrize("wrong", ["", "S-12-00", "S-00-100", "T-00-00", "S-0", "S-x-1", "S--1-2"])
def test_unknown_scenarios_are_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match="S-FF-NN"):
        secret_of(1, wrong)
