"""Sizes of a run of the canary world: overrides of `RunConfig` for a 135M model on a CPU.

LoRA instead of whole weights, short schedules, and no language-model replay (the base is frozen
and the adapters are small, so there is little to forget).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsgb.errors import ConfigError

_SHARED: Mapping[str, Any] = {
    "model": {"adapter": "lora", "rank": 8},
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
        "rounds": 4,
        "attacker_steps": 8,
        "guard_steps": 25,
        "buffer": 256,
        "payoff_attacks": 64,
        "family_cap": 0.25,
    },
    "calibration": {"num": 600},
    "evaluation": {
        "best_responses": 1,
        "warmup_steps": 4,
        "attack_steps": 10,
        "prompts": 128,
        "scripted": 200,
        "variance_batches": 0,
        "bootstrap": 2000,
    },
}
PROFILES: Mapping[str, Mapping[str, Any]] = {
    # Checks the plumbing in 10 CPU minutes; its numbers mean nothing.
    "smoke": {
        **_SHARED,
        "model": {"adapter": "lora", "rank": 4},
        "attacker": {
            **_SHARED["attacker"],
            "sft_steps": 6,
            "sft_batch": 4,
            "sft_lr": 3e-3,
            "warmup_steps": 1,
            "scenarios_per_step": 1,
            "max_new_tokens": 24,
        },
        # Eight prompts at a time would take the training process over 1.5 GB.
        "guard": {**_SHARED["guard"], "sft_steps": 6, "sft_batch": 6, "batch": 6},
        "selfplay": {
            "rounds": 1,
            "attacker_steps": 2,
            "guard_steps": 2,
            "buffer": 16,
            "payoff_attacks": 8,
            "family_cap": 0.25,
        },
        # The smallest sample that a budget of 5 % exists for.
        "calibration": {"fpr": 0.05, "num": 59},
        "evaluation": {
            "best_responses": 1,
            "warmup_steps": 1,
            "attack_steps": 1,
            "prompts": 8,
            "scripted": 10,
            "variance_batches": 0,
            "bootstrap": 200,
        },
        "segments": 1,
    },
    # CPU seconds on one busy core of 2.x GHz: .3 a text of a supervised start, .75 a prompt of an
    # attacker update (of which .2 the target's answer), .2 a prompt of a guard update, .07 a
    # score; in bfloat16, where the CPU has units for it, two thirds of that. All guards are
    # calibrated anew after each round, so the sample is small: a budget of 5 % leaves three false
    # alarms of 149, where one of 2 % would make the highest benign score the threshold. 300
    # scripted attacks leave 100 leaking prompts from an un-guarded ASR of 1/3 on.
    "demo": {
        **_SHARED,
        "attacker": {
            **_SHARED["attacker"],
            "sft_steps": 30,
            "sft_batch": 8,
            "sft_lr": 2e-3,
            "warmup_steps": 3,
            "scenarios_per_step": 5,
            "max_new_tokens": 32,
        },
        "guard": {**_SHARED["guard"], "sft_steps": 40, "sft_batch": 14, "batch": 20},
        "selfplay": {
            **_SHARED["selfplay"],
            "attacker_steps": 3,
            "guard_steps": 8,
            "buffer": 48,
            "payoff_attacks": 16,
        },
        "calibration": {"fpr": 0.05, "num": 149},
        "evaluation": {
            **_SHARED["evaluation"],
            "warmup_steps": 3,
            "attack_steps": 3,
            "prompts": 40,
            "scripted": 100,
        },
    },
    # 576 attempts an arm, target and seed: enough to tell 8 % from 4 %.
    "paper": {
        **_SHARED,
        "evaluation": {**_SHARED["evaluation"], "best_responses": 3, "prompts": 192},
    },
}


def check_profile(profile: str) -> None:
    """Refuse a profile that this world does not have.

    Raises:
        ConfigError: it does not.
    """
    if profile not in PROFILES:
        raise ConfigError(f"unknown profile {profile!r}: canary has {', '.join(PROFILES)}")
