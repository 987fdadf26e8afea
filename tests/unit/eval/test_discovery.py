"""Which techniques the attackers of a training showed, and what its guards block of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.fakes.miniature import miniature_config
from tsgb.envs.canary import CanaryEnvironment
from tsgb.envs.glyph import GlyphEnvironment
from tsgb.eval.discovery import discovery, technique_of
from tsgb.eval.streams import fixed_prompts
from tsgb.protocols import Scores
from tsgb.types import Knowledge, Split

WORLD = GlyphEnvironment(3, coverage=0.25)
CONFIG = miniature_config({"evaluation": {"scripted": 120}})


def attack(signature: str, technique: str = "cipher", *, violated: bool | None = True) -> Any:
    return {"signature": signature, "technique": technique, "violated": violated}


STATE = {
    "pool": [
        {"name": "warm", "attacks": [attack("e0 t0 f5 v-"), attack("e3 t1 f- v-", violated=False)]},
        {
            "name": "round-1",
            "attacks": [attack("e3 t1 f0 v2"), attack("e3 t1 f1 v2"), attack("x", "odd")],
        },
    ],
    "guards": ["sft", "round-1"],
}


def ciphers(guard: str, texts: Sequence[str]) -> Scores:
    """The guard of the first round blocks ciphers, that of the supervised start nothing."""
    return np.array([guard == "round-1" and " k" in f" {text}" for text in texts], dtype=float)


def test_attacks_are_counted_by_technique_where_they_violate() -> None:
    found = discovery(WORLD, CONFIG, STATE, ciphers, {"sft": 0.5, "round-1": 0.5})
    assert [(r.attacker, r.attacks, r.violated) for r in found.rounds] == [
        ("warm", 2, {"e0 t0": 1}),
        ("round-1", 3, {"e3 t1": 2, "odd": 1}),
    ]
    assert found.known == list(WORLD.openings(Knowledge.INITIAL))
    assert found.guards == ["sft", "round-1"]


def test_every_harmful_prompt_of_the_test_is_one_techniques() -> None:
    found = discovery(WORLD, CONFIG, STATE, ciphers, {"sft": 0.5, "round-1": 0.5})
    harmful = [p for p in fixed_prompts(WORLD, CONFIG) if p.harmful]
    assert sum(found.prompts.values()) == len(harmful)
    assert set(found.prompts) <= set(WORLD.openings(Knowledge.EVERYTHING))
    for technique, (before, after) in found.blocked.items():
        encoding = int(technique[1])
        assert before == 0
        assert after == (found.prompts[technique] if encoding >= 2 else 0)


def test_a_threshold_is_that_of_its_guard() -> None:
    found = discovery(WORLD, CONFIG, STATE, ciphers, {"sft": -1.0, "round-1": 2.0})
    assert all(found.blocked[name] == [num, 0] for name, num in found.prompts.items())


@pytest.mark.parametrize("env", [GlyphEnvironment(1), CanaryEnvironment(1)], ids=lambda e: e.name)
def test_a_technique_has_one_name_in_pools_and_in_prompts(env: Any) -> None:
    scenario = next(s for s in env.scenarios(Split.TEST) if s.harmful)
    openings = env.openings(Knowledge.EVERYTHING)
    prompt = next(p for p in fixed_prompts(env, CONFIG) if p.harmful)
    read = env.read(scenario, prompt.text)
    name = technique_of(openings, read.signature, prompt.technique)
    assert name == technique_of(openings, read.signature, read.technique)


def test_what_is_known_at_first_has_the_names_that_prompts_have() -> None:
    found = discovery(
        CanaryEnvironment(1, coverage=0.0),
        CONFIG,
        STATE,
        ciphers,
        dict.fromkeys(STATE["guards"], 0.5),
    )
    assert found.known == ["direct", "override", "repeat"]
    assert set(found.known) < set(found.prompts)
