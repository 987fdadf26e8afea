"""A guard that is a language model: a checkpoint's adapter on its base, or the base alone."""

from __future__ import annotations

from collections.abc import Sequence

from tsgb.models.engine import Engine, Role
from tsgb.protocols import Scores
from tsgb.types import GuardTemplate


class ModelGuard:
    """Scores a prompt by the verdict's logit difference, unsafe minus safe."""

    def __init__(self, engine: Engine, role: Role, template: GuardTemplate) -> None:
        """Ask `role`, which is the base of `engine` or an adapter on it."""
        self._engine = engine
        self._role = role
        self._template = template

    def score(self, prompts: Sequence[str]) -> Scores:
        """See `tsgb.protocols.Guard`."""
        return self._engine.score_all(self._role, self._template, prompts).double().numpy()
