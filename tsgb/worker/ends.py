"""How the ends of several arms make the end of a machine: `machines/0003/exit.json`.

It knows exit records and exit codes. It reads nothing: what the workers left comes in.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from tsgb.errors import ExitCode

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
"""What another attempt would meet again comes first; then what says the most about the machine."""
EXIT_CODES: Mapping[str, ExitCode] = {
    "done": ExitCode.OK,
    "interrupted": ExitCode.INTERRUPTED,
    "lease_lost": ExitCode.LEASE_LOST,
    "config": ExitCode.USAGE,
    "disk_full": ExitCode.STORE_FULL,
    "store_unreachable": ExitCode.STORE_UNREACHABLE,
}
"""Of the watcher; 1 for the others."""
_BY_EXIT_CODE = {int(code): outcome for outcome, code in EXIT_CODES.items()}
_ASKED = frozenset({-signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT})


def outcome_of(exit_code: int | None, record: Mapping[str, Any] | None) -> str:
    """How a worker ended: its own word, or its exit code."""
    said = None if record is None else record.get("outcome")
    if said in WORST_FIRST:
        return str(said)
    if exit_code in _ASKED:
        return "interrupted"
    return "crash" if exit_code is None else _BY_EXIT_CODE.get(exit_code, "crash")


def worst(outcomes: Iterable[str]) -> str:
    """The one that decides."""
    return min(outcomes, key=WORST_FIRST.index, default="crash")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmEnd:
    """How the worker of one arm ended.

    Example: `ArmEnd(arm="sft", outcome="done", step=500, message="trained to step 500")`
    """

    arm: str
    outcome: str | None
    """None if it was never started."""
    step: int
    durable_step: int = -1
    """Of its newest checkpoint in the store; -1 if there is none."""
    message: str = ""
    """Its own words, or the last line of its log."""
    useful_seconds: float = 0.0
    log_tail: str = ""

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
    ) -> ArmEnd:
        """Of a worker that was started, by what it left behind.

        Args:
            arm: Its name.
            exit_code: Of the process; None if it is gone.
            record: What it left in `exits/`.
            step: As last known.
            durable_step: As last known.
            useful_seconds: As last known.
            earlier_seconds: Those that its record does not hold, from before a restart.
            log_tail: The end of its log.
        """
        lines = log_tail.strip().splitlines()
        how = "gone" if exit_code is None else f"exit code {exit_code}"
        if exit_code == -signal.SIGKILL:
            how += " (as a rule, out of memory)"
        message = str(record.get("message") or (f"{how}: {lines[-1]}" if lines else how))
        return cls(
            arm=arm,
            outcome=outcome_of(exit_code, record),
            step=max(step, int(record.get("step") or 0)),
            durable_step=max(durable_step, _saved_step(record)),
            message=" ".join(message.split()),
            useful_seconds=max(
                useful_seconds, earlier_seconds + float(record.get("useful_seconds") or 0.0)
            ),
            log_tail=log_tail,
        )


def exit_record(
    ends: Sequence[ArmEnd], *, outcome: str | None, message: str, log_characters: int = 4096
) -> dict[str, Any]:
    """The document of a machine's end.

    Args:
        ends: Of all arms.
        outcome: Why the machine ended before its workers did; None if they ended it.
        message: The reason, if there is an outcome.
        log_characters: Kept of the logs of all arms together.
    """
    known = [end for end in ends if end.outcome is not None]
    if outcome is None or (outcome == "interrupted" and ends and _all_done(ends)):
        outcome = worst(end.outcome for end in known if end.outcome is not None)
        said = [f"{end.arm}: {end.message}" for end in known if end.outcome == outcome]
        message = said[0] if said else "no worker was started"
    share = log_characters // max(1, len(known))
    tails = [f"[{end.arm}]\n{end.log_tail[-share:]}" for end in known if end.log_tail]
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


def _all_done(ends: Sequence[ArmEnd]) -> bool:
    return all(end.outcome == "done" for end in ends)
