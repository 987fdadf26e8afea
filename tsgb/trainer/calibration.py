"""A guard's operating point: which prompts it is chosen on, and what comes out."""

from __future__ import annotations

from random import Random

from tsgb.config import RunConfig
from tsgb.envs.base import Environment
from tsgb.trainer.players import GuardPlayer
from tsgb.trainer.threshold import np_threshold
from tsgb.types import Split, StreamKind


def calibration_prompts(env: Environment, config: RunConfig) -> list[str]:
    """Benign prompts of the calibration split.

    They are the same for every guard of a run (their generator is seeded by the run's seed), so
    thresholds differ by the guard alone.
    """
    calibration = config.calibration
    rng = Random(f"calibration-{config.seed}")
    hard = round(calibration.num * calibration.hard_share)
    twins = round(calibration.num * calibration.twins_share)
    return [
        p.text
        for kind, num in (
            (StreamKind.BENIGN, calibration.num - hard - twins),
            (StreamKind.HARD_BENIGN, hard),
            (StreamKind.TWINS, twins),
        )
        for p in env.stream(kind, Split.CALIBRATION, rng, num)
    ]


def calibrated_threshold(env: Environment, guard: GuardPlayer, config: RunConfig) -> float:
    """Tau of a guard: the Neyman-Pearson threshold on `calibration_prompts`."""
    scores = guard.score(calibration_prompts(env, config)).double().numpy()
    return float(np_threshold(scores, config.calibration.fpr, config.calibration.delta).value)
