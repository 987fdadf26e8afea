"""Guards that a user puts beside those of a run, loaded.

What each name means is `tsgb.guards.choice`; here models and files are opened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from tsgb.config import RunConfig
from tsgb.envs.base import Environment
from tsgb.eval.calibrated import CalibratedGuard, calibrate
from tsgb.export.loading import LoadedGuard, load_guard
from tsgb.guards.baselines import BlockAll
from tsgb.guards.choice import GuardChoice, GuardKind
from tsgb.guards.keywords import KeywordGuard
from tsgb.guards.llama_guard import LlamaGuard
from tsgb.guards.moderation import ModerationGuard, key_variable
from tsgb.models.fetch import fetch, fetch_classifier
from tsgb.models.registry import ModelRegistry
from tsgb.models.sequence_classifier import SequenceClassifier
from tsgb.protocols import Guard, Scores
from tsgb.setting_groups import HubSettings
from tsgb.worker.context import WorkerContext

DECIDES = 0.5
"""Threshold of a guard that decides itself, between its scores 0 and 1."""


class GuardOfExport:
    """Scores prompts as the exported guard does, by its logit difference."""

    def __init__(self, guard: LoadedGuard) -> None:
        """Ask `guard`."""
        self._guard = guard

    def score(self, prompts: Sequence[str]) -> Scores:
        """See `tsgb.protocols.Guard`."""
        return np.array([found.score for found in self._guard.assess(prompts)], dtype=np.float64)


def load_guards(
    choices: Sequence[GuardChoice],
    env: Environment,
    config: RunConfig,
    registry: ModelRegistry,
    context: WorkerContext,
    check: Callable[[], None],
) -> list[CalibratedGuard]:
    """Load the guards of a user, and put those that give scores to the run's budget.

    Args:
        choices: The guards.
        env: The run's world, whose benign prompts the thresholds are chosen on.
        config: The run's configuration.
        registry: The run's models.
        context: Settings of this process.
        check: Called between prompts; raises to stop.

    Raises:
        UsageError: One cannot be loaded, or too few benign prompts got a score of it.
    """
    found: list[CalibratedGuard] = []
    for choice in choices:
        guard = _load(choice, env, registry, context, check)
        if choice.kind.is_calibrated:
            made = calibrate(choice.name, guard, env, config, report=lambda _done, _total: check())
            found.append(replace(made, attacked=not choice.kind.is_remote))
        else:
            found.append(CalibratedGuard(choice.name, guard, threshold=DECIDES))
    return found


def _load(
    choice: GuardChoice,
    env: Environment,
    registry: ModelRegistry,
    context: WorkerContext,
    check: Callable[[], None],
) -> Guard:
    cache = context.worker.cache_dir / "models"
    match choice.kind:
        case GuardKind.ALWAYS_BLOCK:
            return BlockAll()
        case GuardKind.KEYWORDS:
            return KeywordGuard.from_file(Path(choice.value))
        case GuardKind.EXPORT:
            base = partial(_base, hub=context.hub, cache=cache)
            return GuardOfExport(load_guard(choice.value, fetch_base=base))
        case GuardKind.CLASSIFIER:
            return SequenceClassifier(fetch_classifier(choice.value, context.hub), choice.detail)
        case GuardKind.LLAMA_GUARD:
            directory = fetch(choice.value, context.hub, cache).directory
            load = partial(registry.black_box, choice.value)
            return LlamaGuard(load, directory, env.guard_template().system)
        case GuardKind.MODERATION:
            variable = key_variable(choice.value)
            return ModerationGuard(
                choice.value,
                model=choice.detail,
                key=context.keys(variable) if variable else None,
                check=check,
                sleep=time.sleep,
            )


def _base(name: str, *, hub: HubSettings, cache: Path) -> Path:
    return fetch(name, hub, cache).directory
