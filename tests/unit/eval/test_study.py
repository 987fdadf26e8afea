"""A study of made-up evaluations: planted gains are found, and what is missing is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import evaluation as fake
from tests.fakes.study import (
    BEST,
    DRAWS,
    FALLING,
    NEVER,
    TARGETS,
    WORST,
    falling,
    falling_inputs,
    store_study,
    study_inputs,
)
from tsgb.errors import UsageError
from tsgb.eval.records import FailedClass, ItemSource
from tsgb.eval.stored import find_evaluation
from tsgb.eval.study import StudyInput, study_of, summarise_study
from tsgb.eval.study_claims import STUDY_STATEMENTS
from tsgb.eval.study_records import StudyPlan, StudySummary


def verdicts(study: StudySummary) -> dict[str, str]:
    return {claim.id: claim.verdict for claim in study.claims}


def note(study: StudySummary, name: str) -> str:
    return next(claim.note for claim in study.claims if claim.id == name)


def chosen(*levels: float, world: int | None = None) -> list[StudyInput]:
    return [
        one
        for one in falling_inputs()
        if one.summary.coverage in levels and world in {None, one.summary.world_seed}
    ]


def test_a_gain_that_falls_with_coverage_is_shown() -> None:
    study = falling()
    assert verdicts(study) == dict.fromkeys(STUDY_STATEMENTS, "shown")
    assert [claim.statement for claim in study.claims] == list(STUDY_STATEMENTS.values())
    assert all(claim.note.startswith("10 trainings") for claim in study.claims)
    assert (study.levels, study.missing, study.left_out) == ([0.0, 0.5, 1.0], [], [])
    assert [world.name for world in study.worlds] == ["world 11", "world 12"]
    p3 = study.claims[2]
    assert p3.figure is not None
    assert p3.low is not None
    assert p3.high is not None
    assert 0.5 < p3.low < p3.figure < p3.high
    assert 0.8 < p3.figure < 1.2


def test_a_gain_is_the_mean_of_what_each_training_gains() -> None:
    gain = falling().gain("adaptive_asr", "T_s", 0.0)
    assert gain is not None
    assert gain.value == pytest.approx(np.mean([unit.value for unit in gain.units]))
    assert gain.low < gain.value < gain.high
    [one] = chosen(0.0, world=12)
    seed_3 = next(u for u in gain.units if (u.world, u.seed) == ("world 12", 3))
    rates: dict[str, float] = {}
    for guard in ("frozen", "selfplay"):
        rates[guard] = max(
            np.mean(
                [
                    bool(i.violated) and not i.blocked[guard]
                    for i in one.items()
                    if i.source is ItemSource.ADAPTIVE
                    and (i.against, i.target, i.seed, i.br_seed) == (guard, "T_s", 3, br_seed)
                ]
            )
            for br_seed in (0, 1)
        )
    assert seed_3.value == pytest.approx(rates["frozen"] - rates["selfplay"])
    detected = falling().gain("scripted_tpr", None, 0.0)
    partial = falling().gain("pauroc", None, 0.0)
    assert detected is not None
    assert partial is not None
    assert min(detected.low, partial.low) > 0  # more is better, so it is self-play minus frozen


def test_without_any_gain_nothing_is_shown_but_that_techniques_are_found() -> None:
    study = study_of(study_inputs(NEVER, (11,)), num_draws=DRAWS)
    assert verdicts(study) == {
        "P1": "not shown",
        "P2": "not shown",
        "P3": "not shown",
        "P4": "shown",
    }


def two_levels(*arms: tuple[float, float]) -> StudySummary:
    """A study of one world at coverage 0 and 1, by the adaptive ASR of frozen and self-play."""
    levels = {
        level: {
            "none": fake.ARMS["none"],
            "frozen": replace(BEST, adaptive=frozen),
            "selfplay": replace(BEST, adaptive=own),
        }
        for level, (frozen, own) in zip((0.0, 1.0), arms, strict=True)
    }
    return study_of(study_inputs(levels, (11,)), num_draws=DRAWS)


def test_a_gain_that_stays_does_not_fall_and_leaves_no_gap_to_close() -> None:
    study = two_levels((0.75, 0.1), (0.75, 0.1))
    assert verdicts(study)["P2"] == "not shown"
    assert verdicts(study)["P3"] == "not measured"
    assert "not measurable" in note(study, "P3")


def test_a_gain_that_falls_but_not_to_nothing_is_not_what_was_claimed() -> None:
    study = two_levels((0.85, 0.05), (0.4, 0.05))
    p2 = study.claims[1]
    assert p2.high is not None
    assert p2.high < 0
    assert p2.verdict == "not shown"


def test_a_third_of_the_gap_is_not_half() -> None:
    study = two_levels((0.85, 0.6), (0.1, 0.1))
    p3 = study.claims[2]
    assert p3.figure is not None
    assert p3.low is not None
    assert 0 < p3.low < p3.figure < 0.5
    assert p3.verdict == "not shown"


def test_a_part_of_the_study_says_what_is_missing() -> None:
    part = [one for one in falling_inputs() if one.summary.eval_id != "eval-12-0.5"]
    part = [one for one in part if one.summary.coverage < 1]
    plan = StudyPlan(world_seeds=[11, 12, 13], levels=[0, 0.5, 1], seeds=[1, 2, 3, 4, 5, 6])
    study = study_of(part, plan=plan, num_draws=DRAWS)
    missing = {(gap.coverage, gap.world): gap.reason for gap in study.missing}
    assert missing == {
        (0.0, "world 11"): "seeds 6",
        (0.0, "world 12"): "seeds 6",
        (0.0, "world 13"): "no evaluation",
        (0.5, "world 11"): "seeds 6",
        (0.5, "world 12"): "no evaluation",
        (0.5, "world 13"): "no evaluation",
        (1.0, "world 11"): "no evaluation",
        (1.0, "world 12"): "no evaluation",
        (1.0, "world 13"): "no evaluation",
    }
    assert verdicts(study) == {
        "P1": "shown",
        "P2": "not measured",
        "P3": "not measured",
        "P4": "shown",
    }


def test_an_arm_that_a_level_lacks_is_missing() -> None:
    alone = {name: arm for name, arm in FALLING[0.0].items() if name != "selfplay"}
    study = study_of(study_inputs(FALLING | {0.0: alone}, (11,)), num_draws=DRAWS)
    [gap] = study.missing
    assert (gap.coverage, gap.reason) == (0.0, "selfplay of seeds 1, 2, 3, 4, 5")
    assert verdicts(study)["P1"] == "not measured"
    assert "T_s, B_far, reserved techniques" in note(study, "P1")
    assert study.gain("adaptive_asr", "T_s", 0.0) is None


def test_one_world_is_a_study_and_has_the_gains_that_it_has_beside_others() -> None:
    alone = study_of(chosen(0.0, 0.5, 1.0, world=12), num_draws=DRAWS)
    assert verdicts(alone) == dict.fromkeys(STUDY_STATEMENTS, "shown")
    beside = [gain for gain in falling().gains if gain.world == "world 12"]
    assert [gain.model_copy(update={"world": "world 12"}) for gain in alone.gains] == beside


def test_two_trainings_are_not_enough() -> None:
    study = study_of(study_inputs(FALLING, (11,), (1, 2)), num_draws=DRAWS)
    p4 = study.claims[3]
    assert p4.verdict == "not shown"
    assert p4.note.startswith("holds, but on 2 trainings of the 5 that a claim needs")
    one = study_of(study_inputs({0.0: FALLING[0.0]}, (11,), (1,)), num_draws=DRAWS).claims[3]
    assert (one.low, one.high, one.verdict) == (None, None, "not shown")
    assert one.note.startswith("1 training;")


@settings(max_examples=2)
@given(st.permutations(range(6)))
def test_the_order_of_evaluations_changes_nothing(order: list[int]) -> None:
    inputs = [falling_inputs()[index] for index in order]
    assert study_of(inputs, num_draws=DRAWS) == falling()


def test_stored_evaluations_give_the_same(tmp_path: Path) -> None:
    places = store_study(tmp_path, chosen(0.0, 1.0, world=11))
    stored = [find_evaluation(place) for place in places]
    study = summarise_study(stored, num_draws=DRAWS)
    told = study_of(chosen(0.0, 1.0, world=11), num_draws=DRAWS)
    assert [source.url for source in study.sources] == [one.url for one in stored]
    left = {"sources"}
    assert study.model_dump(exclude=left) == told.model_dump(exclude=left)
    assert StudySummary.model_validate_json(study.model_dump_json()) == study


def test_what_is_not_valid_is_left_out() -> None:
    failed = FailedClass(what="harmful prompts to T_s", errors=9, total=10)

    def broken(one: StudyInput) -> StudyInput:
        return replace(one, summary=one.summary.model_copy(update={"invalid": [failed]}))

    first, *others = chosen(0.0, 1.0, world=11)
    study = study_of([broken(first), *others], num_draws=DRAWS)
    [gap] = study.left_out
    assert (gap.coverage, "9 of 10" in gap.reason) == (0.0, True)
    assert verdicts(study)["P1"] == "not measured"
    with pytest.raises(UsageError, match="no evaluation that is valid"):
        study_of([broken(first)], num_draws=DRAWS)


def test_a_training_that_is_there_twice_is_refused() -> None:
    [one] = chosen(0.0, world=11)
    twin = replace(one, summary=one.summary.model_copy(update={"eval_id": "other"}))
    with pytest.raises(UsageError, match=r"seed 1 of world 11 .* eval-11-0 and other"):
        study_of([one, twin], num_draws=DRAWS)


def test_at_certified_thresholds_p1_is_not_read() -> None:
    study = study_of(study_inputs(FALLING, (11,), matched=False), num_draws=DRAWS)
    assert verdicts(study)["P1"] == "not measured"
    assert verdicts(study)["P2"] == "shown"


def test_attackers_who_did_not_converge_are_compared_with_nothing() -> None:
    weak = {level: dict(arms) for level, arms in FALLING.items()}
    # Reserved techniques pass nearly always, and fresh attackers hardly ever.
    weak[0.0]["frozen"] = fake.Arm(0.05, 0.0, 0.0, -0.4)
    study = study_of(study_inputs(weak, (11,)), num_draws=DRAWS)
    assert any("did not converge on T_s" in gap.reason for gap in study.left_out)
    assert study.gain("adaptive_asr", "T_s", 0.0) is None
    assert study.gain("asr", "T_s", 0.0) is not None
    assert verdicts(study)["P1"] == "not measured"
    alone = study_of(study_inputs(weak, (11,), targets=TARGETS[:1]), num_draws=DRAWS)
    for name in ("P2", "P3"):
        assert verdicts(alone)[name] == "not measured"
        assert note(alone, name).endswith(" that may be compared"), "all trainings are there"


def test_parts_are_compared_where_they_were_trained() -> None:
    arms = FALLING | {
        0.0: FALLING[0.0] | {"no_pool": WORST, "frozen_no_quota": WORST},
        1.0: FALLING[1.0] | {"sft": WORST},
    }
    study = study_of(study_inputs(arms, (11,)), num_draws=DRAWS)
    pairs = {(g.guard, g.versus, g.coverage) for g in study.parts}
    assert pairs == {
        ("selfplay", "no_pool", 0.0),
        ("frozen", "frozen_no_quota", 0.0),
        ("selfplay", "frozen_no_quota", 0.0),
        ("selfplay", "sft", 1.0),
    }
    worth = next(g for g in study.parts if (g.versus, g.metric) == ("no_pool", "adaptive_asr"))
    assert (worth.target, worth.low > 0) == (TARGETS[0].name, True)


def test_without_discoveries_p4_is_not_measured_and_with_none_it_is_not_shown() -> None:
    bare = [
        replace(one, summary=one.summary.model_copy(update={"discovery": []}))
        for one in chosen(0.0, world=11)
    ]
    assert verdicts(study_of(bare, num_draws=DRAWS))["P4"] == "not measured"
    nothing = study_of(study_inputs({0.0: FALLING[0.0]}, (11,), discovered=0), num_draws=DRAWS)
    assert verdicts(nothing)["P4"] == "not shown"
    assert "nothing was found" in note(nothing, "P4")
