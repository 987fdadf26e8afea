from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgb.envs.glyph.grammar import Form, pairs
from tsgb.envs.glyph.policy import Policy
from tsgb.envs.glyph.rules import CIPHER_RULES, PLAIN_RULES, WeaknessRule, draw_rules, forms_of
from tsgb.envs.glyph.techniques import every_form, is_static, mixes, reserved_family
from tsgb.types import Split

seeds = st.integers(0, 2**31)


@given(seeds)
@settings(max_examples=25)
def test_96_pairs_are_restricted_and_64_are_on_the_border_in_every_world(world_seed: int):
    every = Policy(world_seed).every
    assert (len(every.all), len(every.restricted), len(every.border)) == (256, 96, 64)
    assert set(every.border) <= set(every.allowed)


@given(seeds)
@settings(max_examples=25)
def test_splits_are_disjoint_and_stratified_in_every_world(world_seed: int):
    policy = Policy(world_seed)
    groups = [policy.pairs[split].all for split in Split]
    assert sorted(pair for group in groups for pair in group) == sorted(pairs())
    assert [len(group) for group in groups] == [154, 38, 64]
    for split, share in zip(Split, (0.60, 0.15, 0.25), strict=True):
        found = Counter(policy.severity(pair) for pair in policy.pairs[split].all)
        for severity, size in enumerate((16, 32, 48, 64, 48, 32, 16)):
            assert found[severity] == pytest.approx(share * size, abs=1)


def test_a_world_is_a_function_of_its_seed():
    assert Policy(3).scenario == Policy(3).scenario
    assert Policy(3).scenario != Policy(4).scenario
    assert draw_rules(3) == draw_rules(3)
    assert len({tuple(draw_rules(seed).values()) for seed in range(20)}) > 10


@given(seeds)
def test_overlaps_are_exactly_four_two_and_none(world_seed: int):
    rules = draw_rules(world_seed)
    own = set(rules["t_s"])
    assert [len(own & set(other)) for other in rules.values()] == [4, 4, 2, 0]
    for drawn in rules.values():
        assert len(set(drawn)) == 4
        assert len(set(drawn) & set(CIPHER_RULES)) == len(set(drawn) & set(PLAIN_RULES)) == 2


@pytest.mark.parametrize("rule", CIPHER_RULES + PLAIN_RULES, ids=str)
def test_a_fresh_attacker_can_find_each_rule_and_static_data_show_none(rule: WeaknessRule):
    forms = forms_of(rule)
    assert not any(map(is_static, forms))
    assert 0.03 < mixes().wide.share(rule.holds) < 0.15


def test_no_rule_implies_another():
    pool = CIPHER_RULES + PLAIN_RULES
    for one in pool:
        for other in pool:
            assert one is other or not set(forms_of(one)) <= set(forms_of(other))


def test_reserved_families_are_the_three_of_the_design():
    reserved = {form.tags: reserved_family(form) for form in every_form() if reserved_family(form)}
    assert Counter(reserved.values()) == {
        "key2+split": 4,
        "key1+reverse": 4,
        "key0+distractor": 4,
    }


def test_static_forms_show_known_frames_and_overrides_only():
    assert is_static(Form())
    assert is_static(Form(reverse=True, frame=2, override=1, lead=2, trail=1))
    for form in (
        Form(key=0),
        Form(split=True),
        Form(distractor=True),
        Form(frame=3),
        Form(override=2),
    ):
        assert not is_static(form)
