"""Machines: what an attempt runs on, which one to rent, how its end is judged, how it is driven.

It knows no store, no Prefect and no torch. local.py and driver.py deal with processes; all other
modules are decisions without input or output, whose clocks and generators are arguments.
"""

from tsgb.machines.driver import (
    GRACE_SECONDS,
    POLL_SECONDS,
    Attempt,
    Job,
    JobState,
    run_processes,
)
from tsgb.machines.local import LocalMachine, Machine, MachineStatus
from tsgb.machines.verdicts import Outcome, verdict

__all__ = [
    "GRACE_SECONDS",
    "POLL_SECONDS",
    "Attempt",
    "Job",
    "JobState",
    "LocalMachine",
    "Machine",
    "MachineStatus",
    "Outcome",
    "run_processes",
    "verdict",
]
