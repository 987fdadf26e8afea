"""One attempt: resume, train to a target, heartbeat, save, obey signals, leave an exit record.

The only process that trains or evaluates. All that passes between it and whoever started it is the
store: config in; heartbeats, checkpoints, metrics, cells and the exit record out. Every command may
be killed at any moment and given again. It reads no environment: places and secrets are arguments.
"""

from __future__ import annotations

from tsgb.worker.attempt import Attempt
from tsgb.worker.commands import build, evaluate, report, train
from tsgb.worker.places import Places, find_run, make_zoo, read_config, setup_torch
from tsgb.worker.signals import Signals

__all__ = [
    "Attempt",
    "Places",
    "Signals",
    "build",
    "evaluate",
    "find_run",
    "make_zoo",
    "read_config",
    "report",
    "setup_torch",
    "train",
]
