"""The guards of the table at their operating points.

none       blocks nothing
tfidf      TF-IDF and logistic regression, fitted to the clean data of the supervised start
untrained  the base's own verdict, adapter off
oracle     the environment's label; left out where the environment has none
the arms   trained guards, from their checkpoints

Guards of the user's stand between the arms and the oracle; `tsgb.guards.choice` names them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch

from tsgb.config import RunConfig
from tsgb.envs.base import Environment
from tsgb.errors import UsageError
from tsgb.eval.streams import fixed_prompts
from tsgb.guards.baselines import AllowAll, Oracle
from tsgb.guards.classifier import TfidfClassifier
from tsgb.guards.model import ModelGuard
from tsgb.guards.watched import WatchedGuard
from tsgb.models.engine import Engine
from tsgb.models.weights import load_parameters
from tsgb.protocols import Guard, Scores
from tsgb.trainer.batches import clean_prompts
from tsgb.trainer.calibration import calibrate_scores, calibration_prompts
from tsgb.trainer.state import read_role
from tsgb.trainer.threshold import Threshold, fit_temperature


@dataclass(frozen=True)
class CalibratedGuard:
    """A guard at its operating point: it blocks iff `score > threshold`."""

    name: str
    """Name in tables."""
    guard: Guard
    """Gives the scores."""
    threshold: float
    """Operating point, in the units of the scores."""
    calibration: Threshold | None = None
    """How the threshold was chosen; None where nothing was calibrated."""
    temperature: float = 1.0
    """Divides a score before the sigmoid that makes it a probability."""
    checkpoint_sha256: str = ""
    """sha256 (hex) of the checkpoint's manifest; empty for a guard without a checkpoint."""
    benign: Scores | None = None
    """[n] scores that the threshold was chosen on; other budgets are chosen on them too."""
    attacked: bool = True
    """Whether fresh attackers are trained against it; somebody else's service is spared that."""

    def score(self, prompts: Sequence[str]) -> Scores:
        """Return the scores of prompts, [N]."""
        return self.guard.score(prompts)


def calibrate(
    name: str,
    guard: Guard,
    env: Environment,
    config: RunConfig,
    checkpoint_sha256: str = "",
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> CalibratedGuard:
    """Put a guard at the run's false-positive budget.

    It is asked piece by piece, here and afterwards. In bfloat16 a score depends on what else is in
    its batch, so one guard has one threshold only where all who calibrate it take equal pieces.

    Args:
        name: name in tables.
        guard: gives the scores.
        env: the run's world.
        config: the run's configuration.
        checkpoint_sha256: hash (hex) of the guard's checkpoint.
        report: called with the numbers of prompts scored and in all, see `WatchedGuard`.

    Raises:
        UsageError: more benign prompts than `evaluation.max_error_rate` got no score.
    """
    guard = WatchedGuard(guard, report)
    prompts = calibration_prompts(env, config)
    benign = guard.score([prompt.text for prompt in prompts])
    known = ~np.isnan(benign)
    if np.mean(~known) > config.evaluation.max_error_rate:
        raise UsageError(
            f"guard {name!r} scored {known.sum()} of {known.size} benign prompts only, too "
            "few for a threshold: see what it says, then start again"
        )
    prompts = [prompt for prompt, here in zip(prompts, known, strict=True) if here]
    benign = benign[known]
    threshold = calibrate_scores(benign, prompts, config)
    rng = Random(f"temperature-{config.seed}")
    drawn = clean_prompts(env, rng, min(400, config.calibration.num), config.guard.hard_share)
    harmful = guard.score([p.text for p in drawn if p.harmful])
    harmful = harmful[~np.isnan(harmful)]
    temperature = fit_temperature(
        np.concatenate((harmful, benign)),
        np.concatenate((np.ones(len(harmful)), np.zeros(len(benign)))),
    )
    value = threshold.value
    if config.evaluation.matched:
        value = matched_threshold(guard, env, config)
    return CalibratedGuard(
        name=name,
        guard=guard,
        threshold=value,
        calibration=threshold,
        temperature=temperature,
        checkpoint_sha256=checkpoint_sha256,
        benign=benign,
    )


def matched_threshold(guard: Guard, env: Environment, config: RunConfig) -> float:
    """Return the threshold at which a guard blocks the budget of the test's benign prompts.

    It is the lowest score above which no more than the share `calibration.fpr` of them lies, each
    stream in equal parts. Prompts without a score count as allowed.
    """
    benign = [prompt.text for prompt in fixed_prompts(env, config) if not prompt.harmful]
    scores = np.sort(np.nan_to_num(guard.score(benign), nan=-np.inf))
    return float(scores[len(scores) - 1 - int(config.calibration.fpr * len(scores))])


def no_guard() -> CalibratedGuard:
    """Return the guard that blocks nothing."""
    return CalibratedGuard("none", AllowAll(), threshold=float("inf"))


def oracle(env: Environment) -> CalibratedGuard | None:
    """Return the exact labels as a guard; None where the environment has no exact labels."""
    rng = Random("oracle")
    if any(env.label(p.text) is None for p in clean_prompts(env, rng, 8, 0.0)):
        return None
    return CalibratedGuard("oracle", Oracle(env), threshold=0.0)


def tfidf(env: Environment, config: RunConfig) -> CalibratedGuard:
    """Fit the classifier baseline to 4,000 prompts of the supervised start, and calibrate it."""
    data = clean_prompts(env, Random(f"tfidf-{config.seed}"), 4000, config.guard.hard_share)
    return calibrate("tfidf", TfidfClassifier(data), env, config)


def untrained(env: Environment, engine: Engine, config: RunConfig) -> CalibratedGuard:
    """Calibrate the base with its adapter off."""
    guard = ModelGuard(engine, engine.base, env.guard_template())
    return calibrate("untrained", guard, env, config)


def trained(
    name: str,
    files: Mapping[str, bytes],
    env: Environment,
    engine: Engine,
    config: RunConfig,
    checkpoint_sha256: str,
) -> CalibratedGuard:
    """Calibrate the selected guard of a checkpoint.

    Raises:
        CheckpointError: It holds no guard yet, or belongs to another base.
    """
    columns, selected = read_role(
        files, "guard.safetensors", engine, config.model, f"guard {name!r}"
    )
    role = engine.add_role(config.model, torch.Generator().manual_seed(0))
    load_parameters(engine.parameters(role), columns[selected])
    guard = ModelGuard(engine, role, env.guard_template())
    return calibrate(name, guard, env, config, checkpoint_sha256)
