"""How guards are put at their operating points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.fakes.miniature import miniature_config, world
from tsgb.eval.calibrated import calibrate
from tsgb.protocols import Scores


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
