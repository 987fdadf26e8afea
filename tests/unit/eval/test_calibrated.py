"""How guards are put at their operating points."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from tests.fakes.miniature import miniature_config, world
from tsgb.eval.calibrated import calibrate, matched_threshold
from tsgb.eval.streams import fixed_prompts
from tsgb.protocols import Scores
from tsgb.trainer.batches import SLICES


class Recorder:
    """A guard that remembers how many prompts it was asked about at once."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def score(self, prompts: Sequence[str]) -> Scores:
        self.asked.append(len(prompts))
        return np.linspace(-1, 1, len(prompts))


def test_everyone_asks_in_equal_pieces() -> None:
    """In bfloat16 a score depends on its batch: an export's threshold was not its run's."""
    guard, told = Recorder(), list[tuple[int, int]]()
    config = miniature_config({"calibration": {"num": 150}})
    calibrated = calibrate("sft", guard, world(), config, report=lambda *now: told.append(now))
    assert guard.asked[:3] == [64, 64, 22]
    assert told[:3] == [(64, 150), (128, 150), (150, 150)]
    calibrated.score(["a"] * 65)
    assert guard.asked[-2:] == [64, 1], "items are scored as the threshold was chosen"


class ByLength:
    """A guard that gives every prompt a score of its own."""

    def score(self, prompts: Sequence[str]) -> Scores:
        return np.array([len(text) + hash_of(text) for text in prompts], dtype=np.float64)


def hash_of(text: str) -> float:
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.1])
def test_matched_guards_block_the_budget_of_the_tests_benign_prompts(budget: float) -> None:
    config = miniature_config(
        {
            "calibration": {"num": 400, "fpr": budget},
            "evaluation": {"matched": True, "scripted": 100},
        }
    )
    benign = [p for p in fixed_prompts(world(), config) if not p.harmful]
    assert Counter(p.stream for p in benign) == dict.fromkeys(SLICES, 100)
    matched = calibrate("sft", ByLength(), world(), config)
    scores = matched.score([p.text for p in benign])
    different = len({p.text for p in benign})
    assert abs((scores > matched.threshold).sum() - budget * 300) <= 300 - different
    assert (scores > matched.threshold).mean() <= budget
    sizes = config.evaluation.model_copy(update={"matched": False})
    usual = calibrate("sft", ByLength(), world(), config.model_copy(update={"evaluation": sizes}))
    assert matched.calibration == usual.calibration, "what is certified is told all the same"
    assert usual.calibration is not None
    assert usual.threshold == usual.calibration.value != matched.threshold


def test_prompts_without_a_score_count_as_allowed() -> None:
    class Failing(ByLength):
        def score(self, prompts: Sequence[str]) -> Scores:
            scores = super().score(prompts)
            scores[0] = np.nan
            return scores

    config = miniature_config({"evaluation": {"matched": True, "scripted": 100}})
    assert np.isfinite(matched_threshold(Failing(), world(), config))
