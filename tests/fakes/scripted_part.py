"""The scripted part of an evaluation as a process of its own, which a test may kill.

    python -m tests.fakes.scripted_part DIRECTORY URL MODEL

It asks the endpoint at URL about the fixed prompts of the glyph world, with eight requests at a
time, keeps answers in DIRECTORY/responses, and writes the items to DIRECTORY/items.json at its end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tsgb.config import RunConfig, make_config
from tsgb.envs import make_environment
from tsgb.eval.calibrated import CalibratedGuard, no_guard
from tsgb.eval.cells import scripted_items
from tsgb.eval.logged_target import LoggedTargets
from tsgb.judges.exact import ExactJudge
from tsgb.protocols import Scores
from tsgb.targets.endpoint import EndpointSpec
from tsgb.targets.http import HttpTarget

CONCURRENCY = 8
NUM_PROMPTS = 402
"""Harmful and benign ones."""


def config() -> RunConfig:
    return make_config({"evaluation": {"scripted": NUM_PROMPTS // 6}})


class LengthGuard:
    """Scores a prompt by its length."""

    def score(self, prompts: Sequence[str]) -> Scores:
        return np.array([float(len(prompt)) for prompt in prompts])


def guards() -> list[CalibratedGuard]:
    return [no_guard(), CalibratedGuard("tfidf", LengthGuard(), threshold=30.0)]


def main(directory: Path, url: str, model: str) -> None:
    """Make the items, asking what the log does not answer."""
    bot = HttpTarget(
        EndpointSpec.model_validate(
            {
                "name": "Bot",
                "kind": "openai",
                "model": model,
                "url": url,
                "concurrency": CONCURRENCY,
            }
        ),
        None,
    )
    env = make_environment("glyph", world_seed=0)
    with LoggedTargets(directory / "responses", "e1", config()) as logged:
        targets = list(logged.wrap([bot]).values())
        items, _ = scripted_items(env, config(), guards(), targets, ExactJudge(env))
    lines = [item.model_dump(mode="json") for item in items]
    (directory / "items.json").write_text(json.dumps(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
