"""Exit records: how a worker ended, and how a machine ended, from the ends of its workers.

A worker writes `exits/0003.json`, a rented machine `machines/0003/exit.json`. The module reads no
store: exit codes and records are arguments.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from tsgb.checkpoint.documents import count_in, seconds_in
from tsgb.errors import (
    CheckpointError,
    ConfigError,
    ExitCode,
    HubUnreachable,
    Interrupted,
    LeaseLost,
    StoreError,
    StoreFull,
    StoreUnreachable,
)

WORST_FIRST = (
    "lease_lost",
    "config",
    "disk_full",
    "crash",
    "bad_host",
    "store_unreachable",
    "interrupted",
    "done",
)
"""Outcomes of workers: first those that another attempt would have too, then those that say the
most about the machine."""
EXIT_CODES: Mapping[str, ExitCode] = {
    "done": ExitCode.OK,
    "interrupted": ExitCode.INTERRUPTED,
    "lease_lost": ExitCode.LEASE_LOST,
    "config": ExitCode.USAGE,
    "disk_full": ExitCode.STORE_FULL,
    "store_unreachable": ExitCode.STORE_UNREACHABLE,
}
"""Exit codes of a machine's watcher by outcome; 1 for the others."""
_BY_EXIT_CODE = {int(code): outcome for outcome, code in EXIT_CODES.items()}
_BY_ERROR: Sequence[tuple[type[BaseException], str]] = (
    (Interrupted, "interrupted"),
    (LeaseLost, "lease_lost"),
    (StoreFull, "disk_full"),
    (StoreUnreachable, "store_unreachable"),
    (HubUnreachable, "store_unreachable"),
    (StoreError, "config"),
    (CheckpointError, "config"),
    (ConfigError, "config"),
)
_TERMINATED = frozenset({-signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT})


def outcome_of_error(error: BaseException) -> str:
    """Return the outcome of a worker that ended with an exception."""
    return next((outcome for kind, outcome in _BY_ERROR if isinstance(error, kind)), "crash")


def outcome_of(exit_code: int | None, record: Mapping[str, Any] | None) -> str:
    """Return the outcome of a worker: the one in its exit record, else that of its exit code."""
    recorded = None if record is None else record.get("outcome")
    if recorded in WORST_FIRST:
        return str(recorded)
    if exit_code in _TERMINATED:
        return "interrupted"
    return "crash" if exit_code is None else _BY_EXIT_CODE.get(exit_code, "crash")


def worst(outcomes: Iterable[str]) -> str:
    """Return the outcome that decides for the machine; `crash` for none."""
    return min(outcomes, key=WORST_FIRST.index, default="crash")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEnd:
    """The end of one arm's worker.

    Example: `WorkerEnd(arm="sft", outcome="done", step=500, message="trained to step 500")`
    """

    arm: str
    """Name of the arm."""
    outcome: str | None
    """One of `WORST_FIRST`; None if the worker was never started."""
    step: int
    """Updates made."""
    durable_step: int = -1
    """Step of the newest checkpoint in the store; -1 if there is none."""
    message: str = ""
    """Message of the worker, or the last line of its log."""
    useful_seconds: float = 0.0
    """Seconds spent on updates in this attempt."""
    log_tail: str = ""
    """End of its log."""

    @classmethod
    def of(
        cls,
        arm: str,
        *,
        exit_code: int | None,
        record: Mapping[str, Any],
        step: int,
        durable_step: int,
        useful_seconds: float,
        earlier_seconds: float,
        log_tail: str,
    ) -> WorkerEnd:
        """Return the end of a worker that was started.

        Args:
            arm: Name of the arm.
            exit_code: Exit code of the process; None if the process is gone.
            record: Its document in `exits/`; empty without one.
            step: Updates in its last heartbeat.
            durable_step: Step of the newest checkpoint in its last heartbeat.
            useful_seconds: Seconds spent on updates, by its last heartbeat.
            earlier_seconds: Seconds from before a restart, which its record lacks.
            log_tail: End of its log.
        """
        lines = log_tail.strip().splitlines()
        how = "gone" if exit_code is None else f"exit code {exit_code}"
        if exit_code == -signal.SIGKILL:
            how += " (usually out of memory)"
        message = str(record.get("message") or (f"{how}: {lines[-1]}" if lines else how))
        return cls(
            arm=arm,
            outcome=outcome_of(exit_code, record),
            step=max(step, count_in(record, "step")),
            durable_step=max(durable_step, _saved_step(record)),
            message=" ".join(message.split()),
            useful_seconds=max(
                useful_seconds, earlier_seconds + seconds_in(record, "useful_seconds")
            ),
            log_tail=log_tail,
        )


def machine_exit_record(
    ends: Sequence[WorkerEnd], *, outcome: str | None, message: str, log_characters: int = 4096
) -> dict[str, Any]:
    """Return the exit record of a machine.

    Args:
        ends: Ends of all arms.
        outcome: Outcome of a machine that ended before its workers did; None if they ended it.
        message: Reason for that outcome.
        log_characters: Characters kept of the logs of all arms together.
    """
    started = [end for end in ends if end.outcome is not None]
    if outcome is None or (outcome == "interrupted" and ends and _all_done(ends)):
        outcome = worst(end.outcome for end in started if end.outcome is not None)
        reasons = [f"{end.arm}: {end.message}" for end in started if end.outcome == outcome]
        message = reasons[0] if reasons else "no worker was started"
    share = log_characters // max(1, len(started))
    tails = [f"[{end.arm}]\n{end.log_tail[-share:]}" for end in started if end.log_tail]
    return {
        "outcome": outcome,
        "message": " ".join(message.split()),
        "step": sum(end.step for end in ends),
        "arms": {
            end.arm: {
                "step": end.step,
                "durable_step": end.durable_step,
                "outcome": end.outcome,
                "useful_seconds": end.useful_seconds,
            }
            for end in ends
        },
        "ended_at": datetime.now(UTC).isoformat(),
        "useful_seconds": round(sum(end.useful_seconds for end in ends), 3),
        "log_tail": "\n".join(tails),
    }


def _saved_step(record: Mapping[str, Any]) -> int:
    checkpoint: object = record.get("checkpoint")
    if not isinstance(checkpoint, Mapping):
        return -1
    step = cast("Mapping[str, object]", checkpoint).get("step")
    return step if isinstance(step, int) else -1


def _all_done(ends: Sequence[WorkerEnd]) -> bool:
    return all(end.outcome == "done" for end in ends)
