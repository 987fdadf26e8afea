"""A ledger in a store that others write: what this computer wrote down itself is spent too."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.filesystems import MemoryFiles
from tsgb.checkpoint.filesystem import open_filesystem
from tsgb.checkpoint.run import RunStore
from tsgb.cloud.budget import NAME, Ledger
from tsgb.cloud.pricing import MICRO, Rates, Usage

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
POLL = timedelta(seconds=30)
RATES = Rates(gpu_per_hour=600_000, up_per_gb=10_000)


class Books:
    """A store that others may write to, and the journal of one computer."""

    def __init__(self, directory: Path) -> None:
        self.files = MemoryFiles()
        self.directory = directory

    def open(self, *, here: bool = True) -> Ledger:
        """On this computer, or on another one without its journal."""
        run = RunStore(self.files, "memory://fake/run-1", sleep=lambda _: None)
        url = str(self.directory)
        journal = RunStore(open_filesystem(url), url, sleep=lambda _: None)
        return Ledger.open(run, 5 * MICRO, journal if here else None)

    def change(self, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        content = json.loads(self.files.read(name))
        change(content)
        self.files.write(name, json.dumps(content).encode())


@pytest.fixture
def books(tmp_path: Path) -> Books:
    """One machine that is gone and cost $0.20, and one at work for ten minutes, $0.10."""
    made = Books(tmp_path / "journal")
    ledger = made.open()
    ledger.reserve(1, RATES, NOW)
    ledger.commit(1, NOW + 20 * MINUTE)
    ledger.reserve(2, RATES, NOW + 20 * MINUTE)
    ledger.keep(2, NOW + 30 * MINUTE, POLL, window=60 * MINUTE)
    return made


def delete_all(books: Books) -> None:
    for name in (NAME, "attempts/0001.json", "attempts/0002.json"):
        books.files.delete(name)


def close_for_nothing(books: Books) -> None:
    def close(account: dict[str, Any]) -> None:
        account |= {"charged": 0, "reserved": 0, "usage": {}}

    books.change(NAME, lambda c: [close(account) for account in c["accounts"].values()] and None)
    for number in (1, 2):
        books.change(f"attempts/{number:04d}.json", lambda c: close(c["account"]))


def rent_for_nothing(books: Books) -> None:
    def cheapen(account: dict[str, Any]) -> None:
        account |= {"rates": {}, "seen_at": "2090-01-01T00:00:00Z", "reserved": 900_000}

    books.change(NAME, lambda c: cheapen(c["accounts"]["2"]))
    books.change("attempts/0002.json", lambda c: cheapen(c["account"]))


@pytest.mark.parametrize("rewrite", [delete_all, close_for_nothing, rent_for_nothing])
def test_a_ledger_that_was_rewritten_gives_no_money_back(
    books: Books, rewrite: Callable[[Books], None]
) -> None:
    before = books.open()
    assert (before.spent, before.doubts) == (300_000, "")
    rewrite(books)
    ledger = books.open()
    assert ledger.spent >= 300_000
    assert "journal" in ledger.doubts
    if ledger.accounts[2].is_open:
        ledger.keep(2, NOW + 40 * MINUTE, POLL)
        assert ledger.spent == 400_000
    assert ledger.highest == 2, "no attempt is numbered twice"


def test_what_another_computer_did_meanwhile_is_believed(books: Books) -> None:
    other = books.open(here=False)
    other.keep(2, NOW + 50 * MINUTE, POLL, more=Usage(bytes_up=10**9), window=120 * MINUTE)
    assert books.open().spent == other.spent == 510_000
    other.commit(2, NOW + 55 * MINUTE)
    other.reserve(3, RATES, NOW + 60 * MINUTE)
    ledger = books.open()
    assert (ledger.spent, ledger.held, ledger.doubts) == (other.spent, other.held, "")


@pytest.mark.parametrize(
    "content", [b"{", b"[" * 200_000, b"\xff", b'{"accounts": 7}', b'{"accounts":{"1":{}}}', None]
)
def test_a_bad_journal_ends_nothing(books: Books, content: bytes | None) -> None:
    path = books.directory / NAME
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    ledger = books.open()
    assert ledger.spent == 300_000
    ledger.commit(2, NOW + 40 * MINUTE)
    assert books.open().spent == 400_000


def test_a_journal_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("a file where a directory should be")
    ledger = Books(tmp_path / "journal").open()
    ledger.reserve(1, RATES, NOW)
    assert ledger.commit(1, NOW + MINUTE).spent == 10_000


# -- the service's own account ----------------------------------------------------------------


def test_what_the_service_charges_beyond_the_ledger_is_spent(books: Books) -> None:
    """The credit fell by $0.40 and the ledger counted $0.10, while nobody else rented."""
    ledger = books.open()
    at = NOW + 30 * MINUTE
    ledger.check_credit(at, 5 * MICRO, alone=True)
    ledger.keep(2, at + 10 * MINUTE, POLL, window=60 * MINUTE)
    ledger.check_credit(at + 10 * MINUTE, 5 * MICRO - 400_000, alone=True)
    assert ledger.spent == 700_000
    ledger.commit(2, at + 10 * MINUTE)
    assert books.open().spent == 700_000, "the journal has it"
    assert books.open(here=False).spent == 400_000


@pytest.mark.parametrize("alone", [(False, True), (True, False)])
def test_what_others_may_have_rented_is_not_spent(books: Books, alone: tuple[bool, bool]) -> None:
    ledger = books.open()
    for index, is_alone in enumerate(alone):
        credit = 5 * MICRO - 400_000 * index
        drift = ledger.check_credit(NOW + 30 * MINUTE, credit, alone=is_alone)
    assert ledger.spent == 300_000
    assert drift.alarming


def test_an_instance_has_cost_what_its_own_row_says(books: Books) -> None:
    """On another computer, without the journal, after the ledger was deleted."""
    delete_all(books)
    ledger = books.open(here=False)
    assert ledger.spent == 0
    ledger.saw_row(2, 90_000)
    ledger.saw_row(2, 80_000)
    assert (ledger.spent, ledger.held) == (90_000, 90_000)
    ledger = books.open()
    ledger.saw_row(2, 105_000)
    assert ledger.spent == 300_000, "its account says about as much"
    ledger.saw_row(2, 400_000)
    assert ledger.spent == books.open().spent == 600_000
