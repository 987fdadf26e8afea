"""The built-in models of the glyph world: what they are called, how they are made, what is spent.

It knows names and sizes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tsgb.config import merge
from tsgb.envs.glyph.corpora import ANSWER
from tsgb.envs.glyph.grammar import NUM_SYMBOLS
from tsgb.envs.glyph.rules import RULES_OF_A_TYPE, SHARED
from tsgb.errors import ConfigError
from tsgb.types import ModelRecipe, TargetSpec

PROFILES = ("smoke", "demo", "paper", "study")
RULES_OF = {"T_s": "t_s", "B_near": "b_near", "B_mid": "b_mid", "B_far": "b_far"}
"""Target to corpus and rules, in table order."""

_ARCH = {
    "T_s": "GPT, width 64, 2 layers",
    "B_near": "GPT, width 80, 2 layers",
    "B_mid": "GRU, width 96, 2 layers",
    "B_far": "GPT, width 48, 3 layers",
}
_RECIPES = {
    "base": ModelRecipe(corpus="base", width=64, layers=2, steps=1200),
    "T_s": ModelRecipe(corpus="t_s", init_from="base", steps=600, lr=1e-3),
    "B_near": ModelRecipe(corpus="b_near", width=80, layers=2, steps=850),
    "B_mid": ModelRecipe(corpus="b_mid", arch="gru", width=96, layers=2, steps=800, lr=6e-3),
    "B_far": ModelRecipe(corpus="b_far", width=48, layers=3, steps=1000),
}
_DEMO_STEPS = {"base": 800, "T_s": 400, "B_near": 570, "B_mid": 530, "B_far": 670}
_SMOKE_STEPS = {"base": 150, "T_s": 60, "B_near": 40, "B_mid": 40, "B_far": 40}
_TRAFFIC: Mapping[str, Any] = {
    # Half of the false positives of a guard that never saw a pair at the border are such pairs.
    "guard": {"hard_share": 0.125},
    "calibration": {"hard_share": 0.25, "twins_share": 0.25},
}
"""The benign traffic that a guard learns from, and that its threshold is chosen on."""
_DISCOVERY: Mapping[str, Any] = {
    # With the default of .3 an attacker keeps to the first hole that it finds, and a restart from a
    # supervised start that shows public techniques alone is a round without one.
    "attacker": {"novelty": 4.0},
    "selfplay": {"reinitialise": False},
}
"""What makes an attacker find techniques that nobody showed it."""
_PROFILES: Mapping[str, Mapping[str, Any]] = {
    # Checks the plumbing within a minute; its numbers mean nothing.
    "smoke": {
        "segments": 1,
        "attacker": {"sft_steps": 20, "warmup_steps": 4, "scenarios_per_step": 8},
        "guard": {"sft_steps": 30, "batch": 64, "replay_batch": 32},
        "selfplay": {"rounds": 1, "attacker_steps": 4, "guard_steps": 10, "payoff_attacks": 32},
        "calibration": {"num": 400},
        "evaluation": {
            "best_responses": 1,
            "warmup_steps": 2,
            "attack_steps": 4,
            "prompts": 64,
            "scripted": 200,
            "bootstrap": 500,
        },
        "checkpoint_interval": 20,
    },
    # The recipe of `paper` where there is most to find, since attackers of the training are shown
    # publicly known techniques only. What it spares is updates of the world's models, targets,
    # fresh attackers and samples, and nothing of what attacker and guard learn.
    "demo": {
        "segments": 1,
        "world": {"coverage": 0.0},
        "evaluation": {
            "targets": ["T_s", "B_far"],
            "best_responses": 1,
            "prompts": 288,
            "scripted": 300,
            "variance_batches": 0,
            "bootstrap": 2000,
        },
    },
    # The defaults of `RunConfig` are those of this profile, on five seeds and with ablations.
    "paper": {"segments": 2},
    # Guards are compared at one realised rate of false positives, since an arm that blocks more of
    # everything has not won. One attacker of 160 updates gets through where three of 40 do not.
    "study": {
        **_DISCOVERY,
        "segments": 1,
        "evaluation": {
            "best_responses": 1,
            "attack_steps": 160,
            "prompts": 384,
            "variance_batches": 0,
            "matched": True,
        },
    },
}


def targets() -> Mapping[str, TargetSpec]:
    """The surrogate and three black boxes, by falling overlap of their rules with its own."""
    return {
        name: TargetSpec(
            name=name,
            role="surrogate" if name == "T_s" else "black_box",
            overlap=SHARED[rules] / RULES_OF_A_TYPE,
            arch=_ARCH[name],
            answer=ANSWER,
        )
        for name, rules in RULES_OF.items()
    }


def recipes(profile: str, num_symbols: int = NUM_SYMBOLS) -> Mapping[str, ModelRecipe]:
    """How the base and each target are made; a larger world takes more updates."""
    _check(profile)
    if profile == "smoke":
        return {name: replace(made, steps=_SMOKE_STEPS[name]) for name, made in _RECIPES.items()}
    more, fewer = max(1.0, num_symbols / NUM_SYMBOLS), _DEMO_STEPS if profile == "demo" else {}
    return {
        name: replace(made, steps=round(more * fewer.get(name, made.steps)))
        for name, made in _RECIPES.items()
    }


def overrides(profile: str) -> Mapping[str, Any]:
    """Return the changes that a profile makes to `RunConfig`."""
    _check(profile)
    return merge(_TRAFFIC, _PROFILES[profile])


def _check(profile: str) -> None:
    if profile not in PROFILES:
        raise ConfigError(f"unknown profile {profile!r}: the glyph world has {', '.join(PROFILES)}")
