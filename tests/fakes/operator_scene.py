"""What an operator's commands are tested with: leases, attempts that are over, one-line errors."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from tests.fakes.command_line import Ended
from tests.fakes.vast.driver import Driver
from tsgb.cloud.budget import Ledger
from tsgb.cloud.documents import AttemptResult, Intent, RunDocuments
from tsgb.cloud.lease import grant
from tsgb.cloud.pricing import Rates, microdollars
from tsgb.cloud.termination import TerminationReason

HOUR = 3600
NOW = datetime.now(UTC)
COMMANDS = ("machines ls", "machines destroy 7", "reap", "plan")


def one_line(ended: Ended, code: int, pattern: str) -> None:
    assert ended.code == code, ended
    assert ended.err.startswith("tsgb: ")
    assert ended.err.count("\n") == 1
    assert re.search(pattern, ended.err), ended.err


def live(vast: Driver) -> set[int]:
    rows = vast.sim("state")["instances"]
    return {row["id"] for row in rows if row["phase"] != "destroyed"}


def lease(documents: RunDocuments, attempt: int, at: datetime) -> None:
    run_id = documents.run.run_id
    documents.put_lease(grant(None, run=run_id, attempt=attempt, owner="flow", now=at))


def held(documents: RunDocuments, attempt: int, cause: TerminationReason, hours: float) -> None:
    """An attempt that is over."""
    intent = Intent(
        label=f"tsgb/home/{documents.run.run_id}/{attempt}",
        ask_id=1,
        machine_id=attempt,
        host_id=attempt,
        gpu_name="RTX 3090",
        price=0.2,
        hourly=0.21,
        disk_gb=20.0,
        intended_at=NOW,
    )
    outcome = AttemptResult(cause=cause, at=NOW, boot_seconds=100.0, hold_seconds=hours * HOUR)
    Ledger.open(documents.run, microdollars(5)).reserve(
        attempt,
        Rates(gpu_per_hour=200_000),
        NOW,
        intent={
            "intent": intent.model_dump(mode="json"),
            "outcome": outcome.model_dump(mode="json"),
        },
    )
