"""The documents of a run, and what a machine reports in the exchange."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.fakes.filesystems import MemoryFiles
from tsgb.checkpoint.run import RunStore
from tsgb.cloud.documents import Intent, RunDocuments
from tsgb.cloud.lease import grant

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class RunWithExchange:
    """A run, its exchange, and processes that read both."""

    def __init__(self) -> None:
        self.files: dict[str, MemoryFiles] = {}
        self.run = self.open("store")

    def open(self, place: str) -> RunStore:
        files = self.files.setdefault(place, MemoryFiles(f"memory://{place}/r1"))
        return RunStore(files, files.url, sleep=lambda _: None)

    def documents(self) -> RunDocuments:
        return RunDocuments(self.run, self.open)

    def intend(self, attempt: int, folder: str) -> None:
        intent = Intent(
            label=f"tsgb/home/r1/{attempt}",
            ask_id=1,
            machine_id=2,
            host_id=3,
            gpu_name="RTX 3090",
            price=0.1,
            hourly=0.1,
            disk_gb=20,
            intended_at=NOW,
            exchange=folder,
        )
        self.documents().note(attempt, intent=intent.model_dump(mode="json"))


@pytest.fixture
def there() -> RunWithExchange:
    made = RunWithExchange()
    made.intend(1, "0001-aa")
    made.intend(2, "0002-bb")
    return made


def test_only_the_folder_of_the_attempt_is_read_and_written(there: RunWithExchange) -> None:
    documents = there.documents()
    there.open("0001-aa").write_json("machines/0002/beat.json", {"step": 99})
    there.run.write_json("machines/0001/exit.json", {"outcome": "done"})
    assert documents.heartbeat(2) is None
    there.open("0002-bb").write_json("machines/0002/beat.json", {"step": 7})
    assert documents.heartbeat(2) == {"step": 7}
    lease = grant(None, run="r1", attempt=2, owner="f", now=NOW)
    documents.put_lease(lease)
    assert documents.lease() == lease
    assert RunDocuments(there.open("0002-bb")).lease() == lease
    assert "lease.json" not in there.files["0001-aa"].files


def test_the_lease_of_record_is_not_the_copy(there: RunWithExchange) -> None:
    documents = there.documents()
    lease = grant(None, run="r1", attempt=2, owner="f", now=NOW)
    documents.put_lease(lease)
    there.open("0002-bb").write_bytes("lease.json", b"{")
    assert documents.lease() == lease


def test_last_words_are_kept_when_the_folder_goes(there: RunWithExchange) -> None:
    flow, other = there.documents(), there.documents()
    there.open("0001-aa").write_json("machines/0001/beat.json", {"step": 7, "rate": float("1e308")})
    assert flow.heartbeat(1)
    other.collected(1)
    there.files["0001-aa"].files.clear()
    for reader in (flow, other, there.documents()):
        assert reader.heartbeat(1) == {"step": 7, "rate": 1e308}
        assert reader.exit_record(1) is None
    found = there.documents().attempt(1)
    assert found is not None
    assert found.is_collected


def test_what_a_machine_tells_is_bounded_and_printable(there: RunWithExchange) -> None:
    folder = there.open("0001-aa")
    folder.write_text(
        "machines/0001/beat.json",
        '{"a": "\\u001b[2J\\u202e", "b": [NaN, {"c\\u0007": "x\\ny"}], "d": Infinity, "e": 1}',
    )
    assert there.documents().heartbeat(1) == {
        "a": "?[2J?",
        "b": [None, {"c?": "x\ny"}],
        "d": None,
        "e": 1,
    }
    for large in (b'{"a": "' + b"x" * 70_000 + b'"}', b" " * 3_000_000):
        folder.write_bytes("machines/0001/beat.json", large)
        assert there.documents().heartbeat(1) is None
        assert there.documents().has_reported(1)
    folder.write_json("machines/0001/beat.json", {"message": "x" * 60_000})
    assert len((there.documents().heartbeat(1) or {})["message"]) == 4096
