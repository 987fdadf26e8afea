"""What a run asks of a machine, as far as it is known before one has worked on it."""

from __future__ import annotations

from tsgb.checkpoint.interval import save_interval
from tsgb.cloud.preemption import Workload

STALL_SECONDS = 0.1
"""Training stands still for it at each save; measured for states of up to 0.7 GB."""
UPLOAD_SECONDS = 10.0
BOOT_SECONDS = 300.0


def workload(
    hours: float,
    *,
    disk_gb: float,
    boot_seconds: float = BOOT_SECONDS,
    stall_seconds: float = STALL_SECONDS,
    upload_seconds: float = UPLOAD_SECONDS,
    step_seconds: float = 1.0,
    save_updates: int | None = None,
    restore_gb: float = 0.0,
    save_gb: float = 0.0,
) -> Workload:
    """Return the workload of a run whose worker saves as `tsgb/worker/checkpointing.py` does.

    Args:
        hours: Of training that are left.
        disk_gb: To be rented.
        boot_seconds: From the rental until training goes on.
        stall_seconds: Of training, at each save.
        upload_seconds: From a save until it is durable.
        step_seconds: Of one update; nothing can be saved within.
        save_updates: Between two saves, where that is fixed; None: by Young's rule.
        restore_gb: Of the checkpoints that are loaded at each start.
        save_gb: Of those that each save sends.
    """

    def interval(mtbf: float) -> float:
        if save_updates is not None:
            return save_updates * step_seconds
        return save_interval(stall_seconds, upload_seconds, step_seconds, mtbf)

    return Workload(
        work_hours=hours,
        interval=interval,
        boot_seconds=boot_seconds,
        stall_seconds=stall_seconds,
        upload_seconds=upload_seconds,
        disk_gb=disk_gb,
        restore_gb=restore_gb,
        save_gb=save_gb,
    )
