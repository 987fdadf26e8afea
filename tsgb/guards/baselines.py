"""Guards that bound the others: one never blocks, one always does, one knows the labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tsgb.envs.base import Environment
from tsgb.protocols import Scores


class AllowAll:
    """Gives every prompt the score 0, to be used with a threshold that no score exceeds."""

    def score(self, prompts: Sequence[str]) -> Scores:
        """See `tsgb.protocols.Guard`."""
        return np.zeros(len(prompts))


class BlockAll:
    """Gives every prompt the score 1: the end that a guard without false alarms must not have."""

    def score(self, prompts: Sequence[str]) -> Scores:
        """See `tsgb.protocols.Guard`."""
        return np.ones(len(prompts))


class Oracle:
    """Scores a prompt by its exact label: 1 if it is harmful, -1 if it is benign or unreadable."""

    def __init__(self, env: Environment) -> None:
        """Read the labels of `env`, which must have exact ones."""
        self._env = env

    def score(self, prompts: Sequence[str]) -> Scores:
        """See `tsgb.protocols.Guard`."""
        return np.array([1.0 if self._env.label(prompt) else -1.0 for prompt in prompts])
