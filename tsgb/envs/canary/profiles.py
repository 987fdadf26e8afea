"""What a run of the canary world costs: overrides of `RunConfig` for a 135M model on a CPU.

LoRA instead of whole weights, short schedules, and no language-model replay (the base is frozen
and the adapters are small, so there is little to forget).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsgb.errors import ConfigError

_SHARED: Mapping[str, Any] = {
    "model": {"adapter": "lora", "rank": 16},
    "attacker": {
        "sft_steps": 75,
        "sft_batch": 16,
        "warmup_steps": 4,
        "group_size": 4,
        "scenarios_per_step": 8,
        "max_new_tokens": 40,
    },
    "guard": {"sft_steps": 70, "sft_batch": 16, "batch": 32, "lm_replay": 0.0},
    "selfplay": {
        "rounds": 3,
        "attacker_steps": 8,
        "guard_steps": 25,
        "buffer": 256,
        "payoff_attacks": 64,
    },
    "calibration": {"num": 600},
    "evaluation": {
        "best_responses": 1,
        "warmup_steps": 4,
        "attack_steps": 10,
        "prompts": 128,
        "scripted": 200,
        "bootstrap": 2000,
    },
    "checkpoint_interval": 20,
}
PROFILES: Mapping[str, Mapping[str, Any]] = {
    # Checks the plumbing; its numbers mean nothing.
    "smoke": {
        **_SHARED,
        "attacker": {
            **_SHARED["attacker"],
            "sft_steps": 6,
            "sft_batch": 8,
            "warmup_steps": 1,
            "scenarios_per_step": 2,
        },
        "guard": {**_SHARED["guard"], "sft_steps": 8, "sft_batch": 8, "batch": 8},
        "selfplay": {
            "rounds": 1,
            "attacker_steps": 2,
            "guard_steps": 2,
            "buffer": 64,
            "payoff_attacks": 8,
        },
        "calibration": {"num": 300},
        "evaluation": {
            "best_responses": 1,
            "warmup_steps": 1,
            "attack_steps": 1,
            "prompts": 16,
            "scripted": 30,
            "bootstrap": 200,
        },
        "checkpoint_interval": 5,
    },
    "demo": _SHARED,
    "paper": {
        **_SHARED,
        "selfplay": {**_SHARED["selfplay"], "rounds": 6},
        "evaluation": {**_SHARED["evaluation"], "best_responses": 3, "prompts": 384},
    },
}


def check_profile(profile: str) -> None:
    """Refuse a profile that this world does not have.

    Raises:
        ConfigError: it does not.
    """
    if profile not in PROFILES:
        raise ConfigError(f"unknown profile {profile!r}: canary has {', '.join(PROFILES)}")
