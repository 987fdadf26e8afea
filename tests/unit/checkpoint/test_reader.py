"""What a reader takes for a new run, and what it refuses to take for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.checkpoints import content, open_store, publish, writer
from tests.fakes.filesystems import FaultyFiles, Killed, MemoryFiles, dies_after
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import open_run
from tsgb.checkpoint.store import CheckpointStore
from tsgb.errors import CheckpointError, StoreError


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """A run on this disk with a checkpoint of step 3."""
    store = CheckpointStore(open_run(str(tmp_path / "r1")))
    store.claim()
    publish(store, 3)
    return store


class TestIsItNew:
    def test_a_run_without_anything(self) -> None:
        assert open_store(MemoryFiles()).newest() is None

    def test_a_run_that_was_killed_before_its_first_checkpoint(self) -> None:
        files = MemoryFiles()
        run = writer(files).run
        run.write_text("metrics.jsonl", "")
        run.write_json("exits/0001.json", {"outcome": "crash", "checkpoint": None})
        dying = FaultyFiles(files)
        store = writer(dying)
        dying.before = dies_after(3)
        with pytest.raises(Killed):
            publish(store, 0)
        assert writer(files).newest_valid(lambda _line: None) is None

    def test_metrics_of_updates_without_a_checkpoint(self) -> None:
        run = writer(MemoryFiles()).run
        run.write_text("metrics.jsonl", '{"step": 1}\n{"step": 2}\n')
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl has 2 updates.*to start over"):
            CheckpointReader(run).newest()

    def test_an_exit_record_that_names_a_checkpoint(self) -> None:
        run = writer(MemoryFiles()).run
        run.write_json("exits/0001.json", {"outcome": "done", "checkpoint": {"step": 7}})
        run.write_bytes("exits/0002.json", b"{")
        run.write_bytes("exits/x.json", b"")
        store = open_store(run.filesystem)
        store.claim()
        with pytest.raises(CheckpointError, match=r"exits/0001.json names a checkpoint of step 7"):
            store.newest_valid(lambda _line: None)


class TestForeignFiles:
    @pytest.mark.parametrize("name", [".#manifest.json", "manifest.json~", "step-00000009-x"])
    def test_a_link_to_nowhere_beside_checkpoints(self, store: CheckpointStore, name: str) -> None:
        checkpoints = Path(store.run.run_url) / "checkpoints"
        (checkpoints / name).symlink_to("nowhere")
        found = store.newest_valid(pytest.fail)
        assert found is not None
        assert found[1] == content(3)

    def test_checkpoints_on_a_disk_that_is_not_mounted(
        self, store: CheckpointStore, tmp_path: Path
    ) -> None:
        checkpoints = Path(store.run.run_url) / "checkpoints"
        checkpoints.rename(tmp_path / "disk")
        checkpoints.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StoreError, match=r"checkpoints is a link to .*elsewhere.*mount"):
            store.newest()
        with pytest.raises(StoreError, match="is a link to"):
            store.run.read_bytes("checkpoints/x")


def test_a_manifest_that_is_too_large_or_too_deep_is_damage(store: CheckpointStore) -> None:
    newest = store.newest()
    assert newest is not None
    path = Path(newest.url) / "manifest.json"
    for data in (b"[" * 200_000, b" " * (17 << 20)):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
            store.newest()


def test_a_file_that_grew_is_damage_and_not_read_to_its_end(store: CheckpointStore) -> None:
    newest = store.newest()
    assert newest is not None
    with (Path(newest.url) / "guard.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match="more than the 75 bytes that were written"):
        store.read(newest)
