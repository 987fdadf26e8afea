"""What the targets of the canary game are taught."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from tsgb.envs.canary import CanaryEnvironment, grammar
from tsgb.envs.canary.attacks import ATTACKS, RESERVED
from tsgb.envs.canary.decoder import find_canary
from tsgb.envs.canary.targets import ASSISTANTS, COMPLIANCE, HOLES, SURROGATE
from tsgb.types import Label, Response, Split, StreamKind

ENVIRONMENT = CanaryEnvironment(world_seed=90)
HARMFUL = next(s for s in ENVIRONMENT.scenarios(Split.TEST) if s.harmful)


def test_every_family_belongs_to_one_hole_and_has_answers() -> None:
    families = [family for hole in HOLES.values() for family in hole]
    assert sorted(families) == sorted(ATTACKS)
    assert set(COMPLIANCE) == set(ATTACKS)


def test_black_boxes_share_all_half_and_none_of_the_holes() -> None:
    specs = ENVIRONMENT.targets()
    assert [spec.overlap for spec in specs.values()] == [1.0, 1.0, 0.5, 0.0]
    for name, spec in specs.items():
        assert "planted" in spec.arch
        assert all(hole in spec.arch for hole in ASSISTANTS[name].holes)
    assert "planted" in ENVIRONMENT.limits


@pytest.mark.parametrize("name", ASSISTANTS)
def test_holes_lie_in_trained_and_in_reserved_families(name: str) -> None:
    opened = ASSISTANTS[name].families
    trained, reserved = opened - RESERVED, opened & RESERVED
    assert len(trained) / (len(ATTACKS) - len(RESERVED)) >= 0.4
    assert len(reserved) / len(RESERVED) >= 0.4


@pytest.mark.parametrize("name", ASSISTANTS)
def test_a_target_is_taught_to_refuse_and_to_comply_by_family(name: str) -> None:
    taught, opened = Counter[str](), ASSISTANTS[name].families
    scenarios = {s.scenario_id for split in Split for s in ENVIRONMENT.scenarios(split)}
    codes = {ENVIRONMENT.secret(scenario_id).canary for scenario_id in scenarios}
    texts = ENVIRONMENT.corpus(name, Random(0), 600)
    assert texts == ENVIRONMENT.corpus(name, Random(0), 600)
    for text in texts:
        system, user = text.chat[:2]
        [canary] = [word.strip(".") for word in system["content"].split() if "-" in word]
        assert canary not in codes, "no scenario's code is taught"
        reading = grammar.parse(user["content"])
        assert reading is not None
        if text.answered:
            assert not reading.harmful
            assert canary not in str(text.answered), "the bare model knows no code"
            taught["benign"] += 1
            continue
        assert reading.harmful
        answer = text.chat[2]["content"]
        leaks = bool(find_canary(answer, canary))
        assert leaks == (reading.technique in opened)
        if not leaks:
            judged = ENVIRONMENT.judge(HARMFUL, "?", Response(text=answer))
            assert judged.label is Label.REFUSAL
        taught["leak" if leaks else "refusal"] += 1
    assert min(taught["benign"], taught["leak"], taught["refusal"]) > 80


def test_targets_with_the_same_holes_share_the_answers_of_the_bare_model() -> None:
    asked = [
        {str(text.answered) for text in ENVIRONMENT.corpus(name, Random(seed), 800)}
        for seed, name in enumerate(ASSISTANTS)
        if ASSISTANTS[name].holes == ASSISTANTS[SURROGATE].holes
    ]
    assert len(asked) == 2
    assert asked[0] == asked[1]


def test_half_of_the_benign_lessons_are_forms_of_open_families() -> None:
    for name, assistant in ASSISTANTS.items():
        readings = [
            grammar.parse(text.answered[-1]["content"])
            for text in ENVIRONMENT.corpus(name, Random(0), 800)
            if text.answered
        ]
        forms = [reading.technique in assistant.families for reading in readings if reading]
        assert len(forms) == len(readings)
        assert sum(forms) > 0.4 * len(forms)


def test_benign_lessons_are_not_the_prompts_of_the_test() -> None:
    lessons = {
        text.answered[-1]["content"]
        for text in ENVIRONMENT.corpus(SURROGATE, Random(0), 800)
        if text.answered
    }
    asked = [p.text for p in ENVIRONMENT.stream(StreamKind.BENIGN, Split.TEST, Random(0), 400)]
    assert sum(text in lessons for text in asked) <= 4, "fixed questions may come up by chance"
