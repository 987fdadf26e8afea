"""`tsgb experiment`: both stages on an embedded Prefect API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsgb.cli.options import DryRunOption, JsonOption, show_estimate, takes
from tsgb.config import Profile
from tsgb.run_options import RunOptions

TRAINING = (
    "profile",
    "env",
    "model",
    "target_model",
    "black_boxes",
    "seed",
    "world_seed",
    "store",
    "run",
    "arms",
    "targets",
    "targets_file",
    "adaptive",
    "max_requests",
    "max_cost",
    "target_class",
    "judge_class",
    "judge",
    "human_labels",
    "guards",
    "fresh",
    "overrides",
    "train_data",
    "train_map",
)
"""Options of every command that trains and evaluates."""


@takes(*TRAINING, "seeds")
def experiment(
    options: RunOptions, dry_run: DryRunOption = False, as_json: JsonOption = False
) -> None:
    """Train by self-play, evaluate on black boxes, report; resumes with the same --run-id.

    demo takes minutes on two cores: in the world glyph it lets the first attacker know publicly
    known techniques only, and evaluates on T_s and B_far. smoke takes about one minute, paper
    hours: it trains five seeds by default.
    study takes hours, too: it asks when self-play pays, at several levels of coverage.
    """
    from flows.prepare import costs_of

    if dry_run:
        show_estimate(costs_of(options), as_json=as_json)
    else:
        run(options, as_json=as_json)


def run(options: RunOptions, *, as_json: bool) -> None:
    """Run an experiment or a study, and print its result as JSON or as tables."""
    as_json = as_json or not options.evaluate
    if options.profile is Profile.STUDY:
        from flows.study import run_study

        _show_study(run_study(options), as_json=as_json)
    else:
        from flows.experiment import run_experiment

        show(run_experiment(options), as_json=as_json)


def _show_study(document: Mapping[str, Any], *, as_json: bool) -> None:
    from tsgb.cli import display, output

    if as_json:
        output.print_json(document)
    else:
        display.print_study(document["summary_path"], document["study"])


def show(document: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the result as JSON, or as the tables of the evaluation."""
    from tsgb.cli import display, output

    if as_json:
        output.print_json(document)
        return
    display.print_evaluation(
        display.read_summary(document["stage2"]["summary"]), document["stage2"]["report"]
    )
