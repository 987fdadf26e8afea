"""The segments of a training, one task each, on whatever machine trains it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from flows import tasks
from flows.artifacts import show_bill, show_training
from flows.machines import machine_of
from flows.progress import listener, listening
from flows.workers import Workers
from tsgb.config import Arm, RunConfig
from tsgb.run_options import MachineKind

RETRIES = {MachineKind.LOCAL: None, MachineKind.RENTED: 10_000}
"""Retries of a segment by kind of machine; None as the settings say. For rented ones the number
bounds nothing: budget, refusals, lost hosts and failed workers have bounds of their own."""


def train_segments(
    workers: Workers,
    configs: Mapping[Arm, RunConfig],
    key: str,
    kind: MachineKind,
    notes: Iterable[str],
) -> dict[str, dict[str, Any]]:
    """Train arms to their last step; return where their checkpoints are, by arm.

    Args:
        workers: Workers of the run.
        configs: Configurations of the arms to train.
        key: Name under which finished segments are kept.
        kind: Kind of machine.
        notes: Lines for people, once the machine may be used.
    """
    home, refs = workers.home, dict[str, dict[str, Any]]()
    with (
        listening(tasks.PrefectListener(listener())),
        machine_of(kind, workers, configs, partial(show_bill, home)) as machine,
    ):
        for line in notes:
            listener().note(line)
        segment = tasks.resilient(tasks.segment, workers.settings, RETRIES[kind])
        for index in range(next(iter(configs.values())).segments):
            refs = segment(home, key, index, machine, partial(show_training, workers, configs))
    return refs
