"""A run of the canary world in a few updates, and what resuming it must give."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tsgb.trainer.loop import Trainer

SIZES: dict[str, Any] = {
    "profile": "smoke",
    "env": "canary",
    "attacker": {"sft_steps": 2, "sft_batch": 2, "warmup_steps": 1, "max_new_tokens": 6},
    "guard": {"sft_steps": 2, "sft_batch": 4, "batch": 4, "kl": 0.01, "lm_replay": 0.1},
    "selfplay": {"attacker_steps": 2, "guard_steps": 2, "buffer": 4, "payoff_attacks": 2},
    "calibration": {"fpr": 0.3, "delta": 0.3, "num": 8},
}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def goes_on_bit_for_bit(make: Callable[[], Trainer]) -> None:
    """Stop a run in its middle, resume it, and compare its files with those of a whole run."""
    whole, first = make(), make()
    while not whole.done:
        metrics = whole.step()
        assert metrics["loss"] == metrics["loss"], "a loss is a number"
    for _ in range(whole.total_steps // 2):
        first.step()
    rest = make()
    rest.load(first.files(NOW))
    while not rest.done:
        rest.step()
    wanted, found = whole.files(NOW), rest.files(NOW)
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if bytes(found[name]) != bytes(wanted[name])] == []
