"""A guard's operating point: which prompts it is chosen on, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from numpy.typing import ArrayLike

from tsgb.config import RunConfig
from tsgb.envs.base import Environment
from tsgb.trainer.players import GuardPlayer
from tsgb.trainer.threshold import Threshold, np_threshold
from tsgb.types import LabelledPrompt, Split, StreamKind


def calibration_prompts(env: Environment, config: RunConfig) -> list[LabelledPrompt]:
    """Benign prompts of the calibration split.

    They are the same for every guard of a run (their generator is seeded by the run's seed), so
    thresholds differ by the guard alone.
    """
    calibration = config.calibration
    rng = Random(f"calibration-{config.seed}")
    hard = round(calibration.num * calibration.hard_share)
    twins = round(calibration.num * calibration.twins_share)
    return [
        prompt
        for kind, num in (
            (StreamKind.BENIGN, calibration.num - hard - twins),
            (StreamKind.HARD_BENIGN, hard),
            (StreamKind.TWINS, twins),
        )
        for prompt in env.stream(kind, Split.CALIBRATION, rng, num)
    ]


def calibrated_threshold(env: Environment, guard: GuardPlayer, config: RunConfig) -> float:
    """Tau of a guard: the Neyman-Pearson threshold on `calibration_prompts`."""
    prompts = calibration_prompts(env, config)
    scores = guard.score([prompt.text for prompt in prompts]).double().numpy()
    return calibrate_scores(scores, prompts, config).value


def calibrate_scores(
    scores: ArrayLike, prompts: Sequence[LabelledPrompt], config: RunConfig
) -> Threshold:
    """Return the threshold of a run's budget from the scores of `calibration_prompts`."""
    rule = config.calibration
    return np_threshold(scores, rule.fpr, rule.delta, [prompt.scenario_id for prompt in prompts])
