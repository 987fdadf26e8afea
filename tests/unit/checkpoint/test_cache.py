"""The local cache: never wrong, never too large, never an error; what it has is not fetched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.checkpoints import NAMES, content, flip, publish
from tests.fakes.filesystems import FaultyFiles, MemoryFiles
from tsgb.checkpoint.cache import FileCache
from tsgb.checkpoint.manifest import FileRecord
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.checkpoint.store import CheckpointReader, CheckpointStore

DATA = b"weights" * 1000


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache(tmp_path / "files", limit_bytes=50_000, reserve_bytes=0)


def put(cache: FileCache, data: bytes, age_seconds: float = 0) -> FileRecord:
    record = FileRecord.of(data)
    cache.put(record, data)
    path = cache.directory / record.sha256
    if age_seconds and path.exists():
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age_seconds))
    return record


class TestFiles:
    def test_what_was_put_is_there(self, cache: FileCache) -> None:
        record = put(cache, DATA)
        assert cache.get(record) == DATA
        assert cache.get(FileRecord.of(b"other")) is None
        assert put(cache, DATA) == record
        assert [path.name for path in cache.directory.iterdir()] == [record.sha256]

    @pytest.mark.parametrize("bad", [flip(DATA, 17), DATA[:-1], b""], ids=["bit", "cut", "empty"])
    def test_what_is_damaged_is_not_returned_and_goes(self, cache: FileCache, bad: bytes) -> None:
        record = put(cache, DATA)
        (cache.directory / record.sha256).write_bytes(bad)
        assert cache.get(record) is None
        assert list(cache.directory.iterdir()) == []

    def test_the_longest_unused_goes_first(self, cache: FileCache) -> None:
        oldest = put(cache, b"1" * 20_000, age_seconds=300)
        middle = put(cache, b"2" * 20_000, age_seconds=200)
        assert cache.get(oldest)  # used just now
        newest = put(cache, b"3" * 20_000)
        assert cache.get(middle) is None
        assert cache.get(oldest)
        assert cache.get(newest)

    def test_what_a_killed_process_left_goes_too(self, cache: FileCache) -> None:
        cache.directory.mkdir()
        torn = cache.directory / "0.tmp"
        torn.write_bytes(b"0" * 40_000)
        os.utime(torn, (0, 0))
        record = put(cache, b"1" * 20_000)
        assert not torn.exists()
        assert cache.get(record)

    def test_what_is_larger_than_the_cache_is_not_kept(self, cache: FileCache) -> None:
        assert cache.get(put(cache, b"1" * 60_000)) is None

    def test_a_full_disk_is_no_error(self, tmp_path: Path) -> None:
        full = FileCache(tmp_path / "files", reserve_bytes=2**62)
        assert full.get(put(full, DATA)) is None
        assert list(full.directory.iterdir()) == []

    def test_no_place_for_it_is_no_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        nowhere = FileCache(tmp_path / "file" / "below")
        assert nowhere.get(put(nowhere, DATA)) is None

    def test_two_processes_share_one(self, cache: FileCache) -> None:
        code = (
            "import sys\n"
            "from pathlib import Path\n"
            "from random import Random\n"
            "from tsgb.checkpoint.cache import FileCache\n"
            "from tsgb.checkpoint.manifest import FileRecord\n"
            "cache = FileCache(Path(sys.argv[1]), limit_bytes=50_000, reserve_bytes=0)\n"
            "rng, hits = Random(int(sys.argv[2])), 0\n"
            "for _ in range(1500):\n"
            "    data = b'%d' % rng.randrange(10) * 9_000\n"
            "    record = FileRecord.of(data)\n"
            "    kept = cache.get(record)\n"
            "    assert kept in (None, data)\n"
            "    hits += kept is not None\n"
            "    cache.put(record, data)\n"
            "print(hits)\n"
        )
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(cache.directory), str(seed)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for seed in range(2)
        ]
        for process in processes:
            out, _ = process.communicate(timeout=240)
            assert process.returncode == 0
            assert int(out) > 100
        sizes = [path.stat().st_size for path in cache.directory.iterdir()]
        assert sum(sizes) <= 50_000 + 9_000  # both may have made room for the last one


class TestRestore:
    def store(self, files: MemoryFiles | FaultyFiles, cache: FileCache | None) -> CheckpointStore:
        run = RunStore(files, files.url, cache=cache, sleep=lambda _seconds: None)
        return CheckpointStore(run)

    def reads(self, files: MemoryFiles, cache: FileCache | None) -> list[str]:
        """Names that a restore reads from the store."""
        read: list[str] = []

        def note(operation: str, path: str) -> None:
            if operation == "read":
                read.append(path.rpartition("/")[2])

        found = self.store(FaultyFiles(files, note), cache).newest_valid(pytest.fail)
        assert found is not None
        assert found[1] == content(found[0].step)
        return read

    def test_what_this_machine_saved_is_read_from_its_disk(self, cache: FileCache) -> None:
        files = MemoryFiles()
        store = self.store(files, cache)
        store.claim()
        publish(store, 7)
        assert self.reads(files, cache) == ["manifest.json"]
        assert self.reads(files, None) == ["manifest.json", *NAMES]

    def test_a_new_machine_reads_each_file_once(self, cache: FileCache) -> None:
        files = MemoryFiles()
        store = self.store(files, None)
        store.claim()
        publish(store, 7)
        assert self.reads(files, cache) == ["manifest.json", *NAMES]
        assert self.reads(files, cache) == ["manifest.json"]

    def test_a_damaged_copy_is_fetched_again(self, cache: FileCache) -> None:
        files = MemoryFiles()
        store = self.store(files, cache)
        store.claim()
        publish(store, 7)
        copy = cache.directory / FileRecord.of(content(7)["guard.safetensors"]).sha256
        copy.write_bytes(flip(copy.read_bytes(), 3))
        assert self.reads(files, cache) == ["manifest.json", "guard.safetensors"]
        assert self.reads(files, cache) == ["manifest.json"]

    def test_a_checkpoint_that_never_counted_leaves_nothing(self, cache: FileCache) -> None:
        files = MemoryFiles()

        def no_manifest(operation: str, path: str) -> None:
            if operation == "write" and path.endswith("manifest.json"):
                raise MemoryError

        store = self.store(FaultyFiles(files, no_manifest), cache)
        store.claim()
        with pytest.raises(MemoryError):
            publish(store, 7)
        assert not cache.directory.exists()

    def test_stores_on_this_machines_disk_need_none(self, tmp_path: Path, cache: FileCache) -> None:
        assert open_run(str(tmp_path / "r1"), cache=cache).cache is None
        assert open_run((tmp_path / "r1").as_uri(), cache=cache).cache is None
        remote = open_run("https://dav.test/r1", cache=cache)
        assert CheckpointReader(remote).run.cache is cache
