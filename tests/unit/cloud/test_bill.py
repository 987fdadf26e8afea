"""What a run's machines did for their money, from what they left in the store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.fakes.filesystems import MemoryFiles
from tsgb.checkpoint.run import RunStore
from tsgb.cloud.bill import MachineBill, RentalBill, make_bill
from tsgb.cloud.budget import Ledger
from tsgb.cloud.documents import Intent, RunDocuments
from tsgb.cloud.pricing import Rates, microdollars

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Run:
    """A run of one or two arms, and its machines."""

    def __init__(self) -> None:
        files = MemoryFiles()
        self.documents = RunDocuments(RunStore(files, files.url))
        self.ledger = Ledger.open(self.documents.run, microdollars("5.00"))

    def rent(self, attempt: int, cause: str = "preempted") -> None:
        """An hour for ten cents."""
        intent = Intent(
            label=f"tsgb/home/r1/{attempt}",
            ask_id=attempt,
            machine_id=attempt,
            host_id=1,
            gpu_name="RTX 3090",
            price=0.1,
            hourly=0.1,
            disk_gb=20,
            intended_at=NOW,
        )
        self.ledger.reserve(attempt, Rates(gpu_per_hour=100_000), NOW)
        outcome = {"cause": cause, "at": NOW.isoformat(), "boot_seconds": 60.0}
        self.ledger.commit(attempt, NOW + timedelta(hours=1))
        self.documents.note(
            attempt,
            intent=intent.model_dump(mode="json"),
            instance_id=attempt,
            outcome={**outcome, "hold_seconds": 3540.0},
        )

    def says(self, attempt: int, name: str = "beat", **arms: tuple[int, int, int, float]) -> None:
        """Of each arm: its first step, where it is, what is durable, its useful seconds."""
        names = ("first_step", "step", "durable_step", "useful_seconds")
        word = {"arms": {arm: dict(zip(names, said, strict=True)) for arm, said in arms.items()}}
        self.documents.run.write_json(f"machines/{attempt:04d}/{name}.json", word)

    def summary(self, updates: int) -> RentalBill:
        return make_bill(self.documents, self.ledger, updates)


@pytest.fixture
def run() -> Run:
    return Run()


def useful(machine: MachineBill) -> tuple[int, int | None, float]:
    return machine.updates, machine.lost_updates, machine.useful_seconds


def test_work_that_was_lost_is_not_useful(run: Run) -> None:
    run.rent(1)
    run.says(1, selfplay=(0, 60, 40, 600.0), sft=(0, 40, 40, 400.0))
    run.rent(2, "done")
    run.says(2, selfplay=(40, 90, 80, 500.0), sft=(40, 50, 50, 100.0))
    run.says(2, "exit", selfplay=(40, 100, 100, 600.0), sft=(40, 50, 50, 100.0))
    summary = run.summary(150)
    assert [useful(machine) for machine in summary.machines] == [(80, 20, 800.0), (70, 0, 700.0)]
    document = summary.as_json()
    assert document["useful_seconds"] == 1500.0
    assert document["lost_updates"] == 20
    assert document["boot_seconds"] == 120.0
    assert document["dollars"] == pytest.approx(0.2)
    assert document["dollars_per_1000_updates"] == pytest.approx(1000 * 0.2 / 150)
    assert [row["dollars_per_1000_updates"] for row in document["machines"]] == [
        pytest.approx(1000 * 0.1 / 80),
        pytest.approx(1000 * 0.1 / 70),
    ]


def test_what_a_machine_saved_after_its_last_word_is_its_own(run: Run) -> None:
    run.rent(1)
    run.says(1, selfplay=(0, 50, 40, 500.0))  # and went on to save 60
    run.rent(2, "done")
    run.says(2, selfplay=(60, 100, 100, 400.0))
    summary = run.summary(100)
    first, second = summary.machines
    assert useful(first) == (60, None, 600.0), "as fast as before; what it lost, nobody knows"
    assert str(summary).endswith("at least 0 updates lost")
    assert useful(second) == (40, 0, 400.0)


def test_one_that_never_got_to_work_brought_nothing(run: Run) -> None:
    run.rent(1)
    run.says(1, selfplay=(0, 50, 50, 500.0))
    run.rent(2, "bad_host")
    run.rent(3, "bad_host")
    run.says(3)  # it was still looking at the store
    run.rent(4, "done")
    run.says(4, selfplay=(50, 80, 80, 300.0))
    summary = run.summary(80)
    assert [machine.updates for machine in summary.machines] == [50, 0, 0, 30]
    assert summary.machines[1].dollars_per_1000_updates is None


def test_what_was_trained_elsewhere_before_is_no_machines_work(run: Run) -> None:
    run.rent(1, "done")
    run.says(1, selfplay=(70, 100, 100, 300.0))
    assert [useful(machine) for machine in run.summary(100).machines] == [(30, 0, 300.0)]


@pytest.mark.parametrize("stored", ['"soon"', "[1]", "1e308", "1e999", "NaN", "1" + "0" * 400])
@pytest.mark.parametrize("field", ["useful_seconds", "step", "first_step", "bytes_up"])
def test_numbers_that_no_machine_can_mean_keep_nobody_from_the_bill(
    run: Run, field: str, stored: str
) -> None:
    run.rent(1, "done")
    for name in ("beat", "exit"):
        document = f'{{"arms": {{"a": {{"{field}": {stored}}}, "b": {{"{field}": {stored}}}}}}}'
        run.documents.run.write_bytes(f"machines/0001/{name}.json", document.encode())
    summary = run.summary(20)
    assert summary.machines[0].useful_seconds == 0
    run.documents.run.write_json("summary.json", summary.as_json())
