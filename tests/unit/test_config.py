"""Locked meaning: stored runs rely on it. Do not "fix" a test here without deciding so."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.config import (
    BASELINES,
    VARIANTS,
    Arm,
    Phase,
    RunConfig,
    arm_overrides,
    arm_run_id,
    make_config,
    parse_config,
)
from tsgb.errors import ConfigError

SIZES: dict[str, Any] = {
    "attacker": {"sft_steps": 5, "warmup_steps": 3},
    "guard": {"sft_steps": 4},
    "selfplay": {"rounds": 2, "attacker_steps": 7, "guard_steps": 10},
}


def config(*layers: dict[str, Any]) -> RunConfig:
    return make_config(SIZES, *layers)


def test_the_schedule_of_self_play() -> None:
    assert config().phases() == [
        Phase("sft_attacker", 0, 0, 5),
        Phase("warmup", 0, 5, 8),
        Phase("sft_guard", 0, 8, 12),
        Phase("attacker", 0, 12, 19),
        Phase("guard", 0, 19, 29),
        Phase("attacker", 1, 29, 36),
        Phase("guard", 1, 36, 46),
    ]
    assert config().total_steps == 46


def test_the_frozen_attacker_warms_up_and_then_rests() -> None:
    assert config(arm_overrides(Arm.FROZEN)).phases() == [
        Phase("sft_attacker", 0, 0, 5),
        Phase("warmup", 0, 5, 8),
        Phase("sft_guard", 0, 8, 12),
        Phase("guard", 0, 12, 22),
        Phase("guard", 1, 22, 32),
    ]


def test_the_supervised_baseline_has_guard_updates_only() -> None:
    assert config(arm_overrides(Arm.SFT)).phases() == [
        Phase("sft_guard", 0, 0, 4),
        Phase("guard", 0, 4, 14),
        Phase("guard", 1, 14, 24),
    ]


@pytest.mark.parametrize("arm", Arm)
def test_every_arm_gets_the_same_guard_updates(arm: Arm) -> None:
    phases = config(arm_overrides(arm)).phases()
    for kind, updates in (("sft_guard", 4), ("guard", 20)):
        assert sum(p.stop - p.start for p in phases if p.kind == kind) == updates


def test_phases_of_no_updates_are_left_out() -> None:
    empty = {"attacker": {"sft_steps": 0, "warmup_steps": 0}, "guard": {"sft_steps": 0}}
    assert config(empty, {"selfplay": {"rounds": 0}}).phases() == []
    assert config(empty, {"selfplay": {"rounds": 0}}).total_steps == 0
    assert config(empty, {"selfplay": {"rounds": 1}}).phases() == [
        Phase("attacker", 0, 0, 7),
        Phase("guard", 0, 7, 17),
    ]


counts = st.integers(0, 9)


@given(
    arm=st.sampled_from(Arm),
    steps=st.tuples(counts, counts, counts, counts, counts),
    rounds=st.integers(0, 4),
    segments=st.integers(1, 7),
)
def test_phases_and_segments_cover_the_run_without_gaps(
    arm: Arm, steps: tuple[int, ...], rounds: int, segments: int
) -> None:
    sft, warmup, sft_guard, attacker, guard = steps
    made = config(
        arm_overrides(arm),
        {
            "attacker": {"sft_steps": sft, "warmup_steps": warmup},
            "guard": {"sft_steps": sft_guard},
            "selfplay": {"rounds": rounds, "attacker_steps": attacker, "guard_steps": guard},
            "segments": segments,
        },
    )
    stops = [0, *(phase.stop for phase in made.phases())]
    assert [phase.start for phase in made.phases()] == stops[:-1]
    assert all(phase.start < phase.stop for phase in made.phases())
    assert made.total_steps == stops[-1]
    targets = [made.segment_target(index) for index in range(segments)]
    assert targets == sorted(targets)
    assert targets[-1] == made.total_steps
    longest = max(b - a for a, b in zip([0, *targets], targets, strict=False))
    assert longest <= made.total_steps / segments + 1, "of equal length but for rounding"


def test_targets_of_segments() -> None:
    made = config({"segments": 3})
    assert [made.segment_target(index) for index in range(3)] == [15, 30, 46]


@pytest.mark.parametrize(
    ("arm", "changes"),
    [
        (Arm.SELFPLAY, {}),
        (Arm.SFT, {}),
        (Arm.FROZEN, {}),
        (Arm.NO_POOL, {"selfplay": {"pool": False}}),
        (Arm.NO_TWINS, {"selfplay": {"twins": False}}),
        (Arm.NO_REPLAY, {"guard": {"lm_replay": 0.0}}),
        (Arm.NO_QUOTA, {"attacker": {"forced_share": 0.0}}),
        (Arm.FROZEN_NO_QUOTA, {"attacker": {"forced_share": 0.0}}),
        (Arm.EXACT_PG, {"guard": {"loss": "exact_pg"}}),
        (Arm.SAMPLED_PG, {"guard": {"loss": "sampled_pg"}}),
    ],
    ids=str,
)
def test_an_arm_changes_one_thing(arm: Arm, changes: dict[str, Any]) -> None:
    assert arm_overrides(arm) == {"arm": arm.value, **changes}
    changed = config(arm_overrides(arm)).model_dump(exclude={"arm"})
    assert changed == config(changes).model_dump(exclude={"arm"})


def test_arms_and_their_run_ids() -> None:
    assert {Arm.SELFPLAY, *BASELINES, *VARIANTS} == set(Arm)
    assert arm_run_id("r1", Arm.SELFPLAY) == "r1"
    assert arm_run_id("r1", Arm.NO_POOL) == "r1.no_pool"


def test_layers_merge_deeply_and_the_last_one_wins() -> None:
    made = make_config({"guard": {"lr": 1.0, "batch": 8}}, {"guard": {"lr": 2.0}}, {"seed": 5})
    assert (made.guard.lr, made.guard.batch, made.seed) == (2.0, 8, 5)


def test_a_cap_that_is_not_set_is_not_stored() -> None:
    assert "family_cap" not in config({}).canonical()
    capped = config({"selfplay": {"family_cap": 0.25}})
    assert '"family_cap":0.25' in capped.canonical()
    assert parse_config(capped.canonical(), "somewhere") == capped
    assert [name for name, *_ in capped.differences(config({}))] == ["selfplay.family_cap"]
    with pytest.raises(ConfigError, match=r"selfplay\.family_cap = 0"):
        config({"selfplay": {"family_cap": 0}})


def test_what_earlier_versions_did_not_know_is_not_stored_where_it_is_as_it_was() -> None:
    stored = config({}).model_dump()
    assert "world" not in stored
    assert "hard_share" not in stored["guard"]
    assert "matched" not in stored["evaluation"]
    narrow = config({"world": {"coverage": 0.25}})
    assert '"world":{"coverage":0.25,"symbols":null}' in narrow.canonical()
    assert parse_config(narrow.canonical(), "somewhere") == narrow
    assert list(narrow.differences(config({}))) == [("world.coverage", 0.25, 1.0)]


def test_the_fingerprint_tells_configurations_apart_and_survives_storage() -> None:
    made = config()
    assert made.fingerprint == config({}).fingerprint
    assert made.fingerprint != config({"seed": 1}).fingerprint
    stored = parse_config(made.canonical(), "somewhere")
    assert stored == made
    assert stored.fingerprint == made.fingerprint
    shuffled = json.dumps(dict(reversed(json.loads(made.canonical()).items())), indent=2)
    assert parse_config(shuffled, "somewhere").fingerprint == made.fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", r"^s/config.json is not JSON", id="torn"),
        pytest.param("[]", r"has schema_version None, this tsgb reads 1", id="no-object"),
        pytest.param("{}", r"has schema_version None, this tsgb reads 1", id="no-version"),
        pytest.param('{"schema_version": 2}', r"schema_version 2, .*--run-id", id="newer"),
        pytest.param(
            '{"schema_version": 1, "guard": {"batch": 0}}',
            r"^s/config.json: guard.batch = 0: .*greater than 0",
            id="out-of-range",
        ),
        pytest.param(
            '{"schema_version": 1, "speed": 9}', r"speed = 9: Extra inputs", id="unknown-field"
        ),
    ],
)
def test_a_stored_configuration_that_cannot_be_read_says_why(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(text, "s/config.json")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param({"seed": -1}, r"^seed = -1: ", id="negative-seed"),
        pytest.param({"arm": "selfish"}, r"^arm = 'selfish': .*'selfplay'", id="unknown-arm"),
        pytest.param({"attacker": {"group_size": 1}}, r"attacker.group_size = 1", id="lone-group"),
        pytest.param({"calibration": {"fpr": 1.0}}, r"calibration.fpr = 1.0", id="any-fpr"),
        pytest.param(
            {"seed": -1, "segments": 0}, r"^seed = -1: .* \(and 1 more\)$", id="two-at-once"
        ),
        pytest.param(
            {"guard": {"current_share": 0.5, "pool_share": 0.5, "twins_share": 0.25}},
            r"add up to 1.25; .* must be at most 1",
            id="too-many-shares",
        ),
    ],
)
def test_what_cannot_be_run_says_so_in_one_line(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_config(overrides)
    assert "\n" not in str(caught.value)


def test_only_a_target_of_its_own_is_quantised_and_the_default_is_not_stored() -> None:
    with pytest.raises(ConfigError, match="'4bit' is for a target of its own, and there is none"):
        config({"model": {"target_quantization": "4bit"}})
    plain = config({"model": {"target": "a/b"}})
    assert "quantization" not in plain.canonical()
    small = config({"model": {"target": "a/b", "target_quantization": "4bit"}})
    assert '"target_quantization":"4bit"' in small.canonical().replace(" ", "")
    assert parse_config(small.canonical(), "x") == small


def test_black_boxes_are_stored_only_where_there_are_any() -> None:
    assert "black" not in config({}).canonical()
    chosen = config({"model": {"black_boxes": ["a/b", "/m/tiny"]}})
    assert parse_config(chosen.canonical(), "x") == chosen
    assert chosen.fingerprint != config({}).fingerprint


def test_differences_are_named_also_where_a_default_is_not_stored() -> None:
    one = config({"seed": 1, "model": {"target": "a/b", "rank": 4}})
    other = config({"profile": "smoke", "model": {"device": "cpu", "rank": 4}})
    assert list(one.differences(other)) == [
        ("profile", "demo", "smoke"),
        ("seed", 1, 0),
        ("model.target", "a/b", ""),
        ("model.device", "auto", "cpu"),
    ]
    assert list(one.differences(one)) == []
