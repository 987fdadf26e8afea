"""Whether what is judged still looks like what the thresholds were chosen on.

The measure is the population stability index of the last scores over the deciles of the benign
calibration scores: 0 where each tenth has a tenth of them. Above .25 the traffic is another one, by
the usual rule of thumb; attacks move it too.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Sequence

LAST = 1000
"""Scores that are looked at."""
_ADDED = 0.5
"""Count that is added to each bin, so that none is empty."""


class ScoreDrift:
    """The distance of recent scores from the calibration.

    Example: `ScoreDrift([-2.0, -1.0, 0.0]).add(0.5)`
    """

    def __init__(self, quantiles: Sequence[float], last: int = LAST) -> None:
        """Know no score yet.

        Args:
            quantiles: Bounds between equal shares of the calibration scores, ascending.
            last: Scores that are looked at.
        """
        self._bounds = list(quantiles)
        self._bins: deque[int] = deque(maxlen=last)

    def add(self, score: float) -> None:
        """Take a score of a text that came in."""
        self._bins.append(bisect_right(self._bounds, score))

    def index(self) -> float:
        """Return the index; NaN before any score, and where the export has no quantiles."""
        if not self._bins or not self._bounds:
            return math.nan
        num, counts = len(self._bounds) + 1, Counter(self._bins)
        total = len(self._bins) + num * _ADDED
        expected = 1 / num
        found = [(counts[i] + _ADDED) / total for i in range(num)]
        return sum((share - expected) * math.log(share / expected) for share in found)
