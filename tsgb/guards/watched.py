"""A guard that tells how far it is: scoring on a slow machine takes minutes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tsgb.protocols import Guard, Scores

_PIECE = 64
"""Prompts that are scored between two reports."""


class WatchedGuard:
    """Another guard, asked piece by piece.

    Example: `WatchedGuard(guard, lambda done, total: print(done, total)).score(prompts)`
    """

    def __init__(self, guard: Guard, report: Callable[[int, int], None]) -> None:
        """Ask `guard`.

        Args:
            guard: gives the scores.
            report: called with the numbers of prompts scored and in all; what it raises ends the
                scoring.
        """
        self._guard = guard
        self._report = report

    def score(self, prompts: Sequence[str]) -> Scores:
        """Return the scores of prompts, [N]."""
        parts: list[Scores] = []
        for start in range(0, len(prompts), _PIECE):
            parts.append(self._guard.score(prompts[start : start + _PIECE]))
            self._report(min(start + _PIECE, len(prompts)), len(prompts))
        return np.concatenate(parts) if parts else self._guard.score(prompts)
