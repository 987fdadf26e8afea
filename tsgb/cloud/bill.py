"""Bill of a run on rented machines: useful time, lost work, boots and dollars of each machine.

The module reads the documents of attempts and machines in the store, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tsgb.checkpoint.documents import count_in, seconds_in
from tsgb.cloud.budget import Ledger
from tsgb.cloud.documents import AttemptDocument, RunDocuments, arms
from tsgb.cloud.pricing import MICRO


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineBill:
    """Cost and use of one attempt's machine.

    Example: `MachineBill(attempt=3, gpu_name="RTX 4090", cause="preempted", dollars=0.04, ...)`
    """

    attempt: int
    """Number of the attempt."""
    gpu_name: str
    """Name of its GPUs."""
    machine_id: int
    """The machine, over all its offers; -1 if unknown."""
    instance_id: int | None
    """The instance; None if unknown."""
    price: float
    """Bid, $/h."""
    cause: str
    """Termination reason; `open` while it has none."""
    boot_seconds: float | None
    """Seconds from the rental to the first heartbeat; None without one."""
    hold_seconds: float
    """Seconds from the first heartbeat to the end."""
    useful_seconds: float
    """Seconds of updates that are in a checkpoint, summed over all arms, which train at the same
    time; an estimate if the machine was lost."""
    lost_updates: int | None
    """Updates made that were in no checkpoint at its end; None if that is unknown, because its last
    heartbeat is older than the last checkpoint."""
    updates: int
    """Updates that it saved in checkpoints."""
    dollars: float
    """Dollars that it cost."""

    @property
    def dollars_per_1000_updates(self) -> float | None:
        """Dollars for 1000 updates; None if it saved none."""
        return 1000 * self.dollars / self.updates if self.updates else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RentalBill:
    """Cost and use of all machines of a run.

    Example: `str(summary)` is "6 machine(s), $0.214 for 1200 updates ($0.178 per 1,000), ..."
    """

    run: str
    """Id of the run."""
    budget_dollars: float
    """Dollars that it may cost."""
    dollars: float
    """Dollars that it has cost."""
    open_dollars: float
    """Dollars spent or set aside for machines that are not known to be gone."""
    updates: int
    """Updates in the newest checkpoints of all arms."""
    machines: tuple[MachineBill, ...]
    """Bills of the machines, by attempt."""

    @property
    def dollars_per_1000_updates(self) -> float | None:
        """Dollars for 1000 updates; None before the first one."""
        return 1000 * self.dollars / self.updates if self.updates else None

    @property
    def lost_updates(self) -> int:
        """Updates known to be lost."""
        return sum(m.lost_updates or 0 for m in self.machines)

    def as_json(self) -> dict[str, Any]:
        """Return the bill as a JSON document, with totals."""
        totals = {
            "boot_seconds": sum(m.boot_seconds or 0.0 for m in self.machines),
            "useful_seconds": sum(m.useful_seconds for m in self.machines),
            "lost_updates": self.lost_updates,
            "dollars_per_1000_updates": self.dollars_per_1000_updates,
        }
        return {**asdict(self), **totals, "machines": self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        """Return one table row for each machine."""
        return [
            {**asdict(m), "dollars_per_1000_updates": m.dollars_per_1000_updates}
            for m in self.machines
        ]

    def __str__(self) -> str:
        rate = self.dollars_per_1000_updates
        each = "" if rate is None else f" (${rate:.3f} per 1,000)"
        boots = sum(m.boot_seconds or 0.0 for m in self.machines)
        at_least = "" if all(m.lost_updates is not None for m in self.machines) else "at least "
        return (
            f"{len(self.machines)} machine(s), ${self.dollars:.4f} of ${self.budget_dollars:.2f} "
            f"for {self.updates} updates{each}, {boots:.0f} s of boots, "
            f"{at_least}{self.lost_updates} updates lost"
        )


def make_bill(documents: RunDocuments, ledger: Ledger, updates: int) -> RentalBill:
    """Return the bill of all rented attempts.

    Args:
        documents: Documents of the run.
        ledger: Accounts of the run.
        updates: Updates in the newest checkpoints of all arms.
    """
    rented = [
        found
        for found in documents.attempts()
        if found.attempt in ledger.accounts
        and (found.instance_id is not None or ledger.accounts[found.attempt].spent > 0)
    ]
    told = [documents.last_reports(found.attempt) for found in rented]
    machines: list[MachineBill] = []
    # Backwards: a machine that was lost does not know what it saved last, but the next one does.
    after = updates
    for document, reports in zip(reversed(rented), reversed(told), strict=True):
        report = reports.exit_record or reports.heartbeat
        resumed = arms(reports.heartbeat).values()
        first = sum(count_in(arm, "first_step") for arm in resumed) if resumed else after
        spent = ledger.accounts[document.attempt].spent
        machines.insert(0, _bill_machine(document, report, first, after, spent))
        after = first
    return RentalBill(
        run=documents.run.run_id,
        budget_dollars=ledger.budget / MICRO,
        dollars=ledger.spent / MICRO,
        open_dollars=sum(a.held for a in ledger.accounts.values() if a.is_open) / MICRO,
        updates=updates,
        machines=tuple(machines),
    )


def _bill_machine(
    document: AttemptDocument, report: Mapping[str, Any], first: int, after: int, spent: int
) -> MachineBill:
    """Return the bill of one machine.

    Args:
        document: Document of its attempt.
        report: Its exit record, or else its last heartbeat.
        first: Updates that were in the store when it began.
        after: Updates that were in the store when it had ended.
        spent: Micro-dollars that it cost.
    """
    intent, result = document.intent, document.result
    progress = arms(report).values()
    seconds = sum(seconds_in(arm, "useful_seconds") for arm in progress)
    made = max(0, sum(count_in(arm, "step") for arm in progress) - first)
    updates = max(0, after - first)
    return MachineBill(
        attempt=document.attempt,
        gpu_name="?" if intent is None else intent.gpu_name,
        machine_id=-1 if intent is None else intent.machine_id,
        instance_id=document.instance_id,
        price=0.0 if intent is None else intent.price,
        cause="open" if result is None else result.cause.value,
        boot_seconds=None if result is None else result.boot_seconds,
        hold_seconds=0.0 if result is None else result.hold_seconds,
        useful_seconds=seconds * updates / made if made else 0.0,
        lost_updates=made - updates if made >= updates else None,
        updates=updates,
        dollars=spent / MICRO,
    )
