"""A guard that is a language model: a checkpoint's adapter on its base, or the base alone."""

from __future__ import annotations

from collections.abc import Sequence

from tsgb.models.fast.engine import LanguageModel
from tsgb.models.fast.network import Weights
from tsgb.protocols import Scores
from tsgb.types import GuardTemplate


class ModelGuard:
    """Scores a prompt by the verdict's logit difference, unsafe minus safe."""

    def __init__(self, model: LanguageModel, weights: Weights, template: GuardTemplate) -> None:
        """Ask `model` under `weights`, which are its base or an adapter on it."""
        self._model = model
        self._weights = weights
        self._template = template

    def score(self, prompts: Sequence[str]) -> Scores:
        """See `tsgb.protocols.Guard`."""
        return self._model.score_all(self._weights, self._template, prompts).double().numpy()
