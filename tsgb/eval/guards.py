"""Every guard of the table behind one face: a name, a score for each prompt, a threshold.

none       blocks nothing
tfidf      word 1- to 2-grams, logistic regression, the clean data of the supervised start
untrained  the base's own verdict, adapter off
oracle     the environment's label; left out where the environment has none
the arms   trained guards, from their checkpoints
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tsgb.config import RunConfig
from tsgb.envs.base import Environment
from tsgb.models.adapters import load_parameters
from tsgb.models.language_model import LanguageModel
from tsgb.models.network import Weights
from tsgb.trainer.batches import clean_prompts
from tsgb.trainer.calibration import calibration_prompts
from tsgb.trainer.players import make_adapter
from tsgb.trainer.saving import read_role
from tsgb.trainer.threshold import Threshold, fit_temperature, np_threshold

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Guard:
    """A guard at its operating point: blocks iff `score > threshold`."""

    name: str
    score: Callable[[Sequence[str]], Scores]
    """[N] prompts to [N] scores."""
    threshold: float
    calibration: Threshold | None = None
    """None where nothing was calibrated."""
    temperature: float = 1.0
    checkpoint_sha256: str = ""
    benign: Scores | None = None
    """[n] scores that the threshold was chosen on; other budgets are chosen on them too."""


def calibrate(
    name: str,
    score: Callable[[Sequence[str]], Scores],
    env: Environment,
    config: RunConfig,
    checkpoint_sha256: str = "",
) -> Guard:
    """Put a scoring function at the run's false-positive budget."""
    benign = score(calibration_prompts(env, config))
    rule = config.calibration
    threshold = np_threshold(benign, rule.fpr, rule.delta)
    rng = Random(f"temperature-{config.seed}")
    drawn = clean_prompts(env, rng, min(400, rule.num))
    harmful = score([p.text for p in drawn if p.harmful])
    temperature = fit_temperature(
        np.concatenate((harmful, benign)),
        np.concatenate((np.ones(len(harmful)), np.zeros(len(benign)))),
    )
    return Guard(
        name=name,
        score=score,
        threshold=threshold.value,
        calibration=threshold,
        temperature=temperature,
        checkpoint_sha256=checkpoint_sha256,
        benign=benign,
    )


def no_guard() -> Guard:
    """Blocks nothing."""
    return Guard("none", lambda prompts: np.zeros(len(prompts)), threshold=float("inf"))


def oracle(env: Environment) -> Guard | None:
    """The labels themselves, as a ceiling; None where the environment has no exact labels."""
    rng = Random("oracle")
    if any(env.label(p.text) is None for p in clean_prompts(env, rng, 8)):
        return None

    def score(prompts: Sequence[str]) -> Scores:
        return np.array([1.0 if env.label(prompt) else -1.0 for prompt in prompts])

    return Guard("oracle", score, threshold=0.0)


def tfidf(env: Environment, config: RunConfig) -> Guard:
    """A fair weak baseline: what a day's work without a language model gives."""
    # scikit-learn ships no types.
    from sklearn.feature_extraction.text import (  # pyright: ignore[reportMissingTypeStubs]
        TfidfVectorizer,
    )
    from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]
    from sklearn.pipeline import make_pipeline  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    rng = Random(f"tfidf-{config.seed}")
    data = clean_prompts(env, rng, 4000)
    pipeline: Any = make_pipeline(
        TfidfVectorizer(token_pattern=r"\S+", ngram_range=(1, 2), sublinear_tf=True),  # noqa: S106
        LogisticRegression(C=10.0, max_iter=1000),
    )
    pipeline.fit([p.text for p in data], [p.harmful for p in data])

    def score(prompts: Sequence[str]) -> Scores:
        values: Scores = pipeline.decision_function(list(prompts)) if prompts else np.zeros(0)
        return values

    return calibrate("tfidf", score, env, config)


def untrained(env: Environment, model: LanguageModel, config: RunConfig) -> Guard:
    """The base with its adapter off."""
    return calibrate("untrained", _scorer(env, model, model.base), env, config)


def trained(
    name: str,
    files: Mapping[str, bytes],
    env: Environment,
    model: LanguageModel,
    config: RunConfig,
    checkpoint_sha256: str,
) -> Guard:
    """The selected guard of a checkpoint.

    Raises:
        CheckpointError: it holds no guard yet, or belongs to another base.
    """
    columns, selected = read_role(
        files["guard.safetensors"], model, config.model, f"guard {name!r}"
    )
    generator = torch.Generator().manual_seed(0)
    adapter = make_adapter(model, config.model, generator)
    load_parameters(adapter, columns[selected])
    return calibrate(name, _scorer(env, model, adapter), env, config, checkpoint_sha256)


def _scorer(
    env: Environment, model: LanguageModel, weights: Weights
) -> Callable[[Sequence[str]], Scores]:
    template = env.guard_template()

    def score(prompts: Sequence[str]) -> Scores:
        return model.score_all(weights, template, prompts).double().numpy()

    return score
