"""Documents, run ids, the local lock, and finding a checkpoint by what a person types."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.fakes.filesystems import FaultyFiles, MemoryFiles
from tsgb.checkpoint.store import (
    CheckpointStore,
    RunLock,
    RunStore,
    load,
    open_run,
    resolve,
)
from tsgb.errors import CheckpointError, StoreError, UsageError
from tsgb.types import CheckpointRef

CONFIG = "0" * 64


class TestDocuments:
    def test_json_is_canonical(self, tmp_path: Path) -> None:
        run = open_run(str(tmp_path / "r1"))
        run.write_json("heartbeats/0003.json", {"step": 3, "episode": 12})
        assert run.read_json("heartbeats/0003.json") == {"step": 3, "episode": 12}
        assert run.read_text("heartbeats/0003.json") == '{"episode":12,"step":3}\n'
        assert run.list("heartbeats") == ["0003.json"]
        run.delete("heartbeats/0003.json")
        with pytest.raises(FileNotFoundError):
            run.read_json("heartbeats/0003.json")

    def test_a_torn_read_is_repeated(self) -> None:
        files = MemoryFiles()
        files.write("lease.json", b'{"a":')
        pauses: list[float] = []

        def heal(seconds: float) -> None:
            pauses.append(seconds)
            files.write("lease.json", b'{"a":1}')

        assert RunStore(files, files.url, sleep=heal).read_json("lease.json") == {"a": 1}
        assert len(pauses) == 1

    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff"])
    def test_a_damaged_document_is_not_a_missing_one(self, data: bytes) -> None:
        files = MemoryFiles()
        files.write("lease.json", data)
        run = RunStore(files, files.url, sleep=lambda _seconds: None)
        with pytest.raises(StoreError, match=r"lease.json is not a JSON object"):
            run.read_json("lease.json")

    @pytest.mark.parametrize("bracket", [b"[", b'{"a":'])
    def test_a_document_that_is_nested_too_deep(self, bracket: bytes) -> None:
        files = MemoryFiles()
        files.write("lease.json", bracket * 200_000)
        run = RunStore(files, files.url, sleep=lambda _seconds: None)
        with pytest.raises(StoreError, match=r"lease.json is not a JSON object .*nested"):
            run.read_json("lease.json")

    def test_a_document_that_is_too_large(self, tmp_path: Path) -> None:
        run = open_run(str(tmp_path / "r1"))
        run.write_json("lease.json", {"a": "x" * 100})
        assert run.read_json("lease.json", max_bytes=200)
        with pytest.raises(StoreError, match=r"lease.json has more than 100 bytes"):
            run.read_json("lease.json", max_bytes=100)
        with pytest.raises(StoreError, match=r"lease.json has more than 100 bytes"):
            run.read_text("lease.json", max_bytes=100)

    def test_half_a_surrogate_pair_is_written(self, tmp_path: Path) -> None:
        run = open_run(str(tmp_path / "r1"))
        run.write_json("a.json", {"answer": "\ud800"})
        assert run.read_json("a.json") == {"answer": "\ud800"}
        run.write_text("a.md", "\ud800é")
        assert run.read_text("a.md") == r"\ud800é"

    def test_text_that_is_not_utf_8(self, tmp_path: Path) -> None:
        run = open_run(str(tmp_path / "r1"))
        run.write_bytes("config.json", "é".encode("latin-1"))
        with pytest.raises(StoreError, match=r"config.json is not UTF-8 text \(byte 0\)"):
            run.read_text("config.json")

    def test_documents_about_attempts_among_foreign_files(self, tmp_path: Path) -> None:
        run = open_run(str(tmp_path / "r1"))
        assert run.attempt_documents("attempts") == []
        for name in ("0010.json", "0003.json", "x.json", "3.json", "9999999999.json"):
            run.write_json(f"attempts/{name}", {})
        for name in (".DS_Store", ".nfs0001", "0004 (conflicted copy).json", "0005.json~"):
            (tmp_path / "r1" / "attempts" / name).write_text("")
        (tmp_path / "r1" / "attempts" / ".#0006.json").symlink_to("nowhere")
        assert run.attempt_documents("attempts") == [3, 10]

    def test_an_outage_is_passed_on(self) -> None:
        def down(operation: str, path: str) -> None:
            raise StoreError("store cannot be reached")

        files = FaultyFiles(MemoryFiles(), down)
        pauses: list[float] = []
        run = RunStore(files, files.url, sleep=pauses.append)
        with pytest.raises(StoreError, match="reached"):
            run.read_json("lease.json")
        assert pauses == []


class TestLock:
    def test_a_second_process_is_refused_until_the_first_dies(self, tmp_path: Path) -> None:
        url = str(tmp_path / "r1")
        code = (
            "import time\n"
            "from tsgb.checkpoint.run import RunLock\n"
            f"lock = RunLock({url!r})\n"
            "lock.acquire()\n"
            "print('held', flush=True)\n"
            "time.sleep(300)\n"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"held\n"
                with pytest.raises(UsageError, match=f"in use by process {process.pid}") as caught:
                    RunLock(url).acquire()
                assert "\n" not in str(caught.value)
            finally:
                process.kill()
        with RunLock(url):
            pass

    def test_can_be_taken_again_after_release(self, tmp_path: Path) -> None:
        url = (tmp_path / "r1").as_uri()
        with RunLock(url), pytest.raises(UsageError):
            RunLock(url).acquire()
        with RunLock(url):
            pass

    def test_a_remote_store_has_none(self) -> None:
        with RunLock("memory://x/r1"), RunLock("memory://x/r1"):
            pass

    def test_no_place_for_it(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match="choose another store"):
            RunLock(str(tmp_path / "file" / "r1")).acquire()


def publish(run_url: str, step: int, *, minutes: int = 0) -> CheckpointRef:
    now = datetime(2026, 1, 2, tzinfo=UTC) + timedelta(minutes=minutes)
    store = CheckpointStore(open_run(run_url), clock=lambda: now)
    store.claim()
    return store.publish(step, step, {"guard.safetensors": b"%d" % step, "x": b"-"}, CONFIG)


@pytest.fixture(params=["path", "file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    store = tmp_path / "store"
    forms = {"path": str(store), "file": store.as_uri(), "memory": f"memory://{tmp_path.name}"}
    return forms[request.param]


class TestResolve:
    def test_every_form(self, root: str) -> None:
        first = publish(f"{root}/r1", 10)
        newest = publish(f"{root}/r1", 20)
        run = f"{root}/r1"
        for url in (run, f"{run}/", f"{run}/latest", f"{run}/checkpoints", f"{run}/latest/"):
            assert resolve(url) == newest
        assert resolve(root) == resolve(f"{root}/latest") == newest
        assert resolve(newest.url) == newest
        assert resolve(f"{first.url}/") == first
        assert load(first.url) == (first, {"guard.safetensors": b"10", "x": b"-"})
        assert load(run, names=["x"]) == (newest, {"x": b"-"})

    def test_a_store_may_be_called_checkpoints(self, tmp_path: Path) -> None:
        newest = publish(str(tmp_path / "checkpoints" / "r1"), 10)
        for path in ("checkpoints", "checkpoints/latest", "checkpoints/r1/checkpoints/latest"):
            assert resolve(str(tmp_path / path)) == newest

    def test_a_store_means_the_latest_save_of_all_runs(self, root: str) -> None:
        publish(f"{root}/long-ago", 900, minutes=0)
        newest = publish(f"{root}/today", 3, minutes=60)
        publish(f"{root}/yesterday", 500, minutes=30)
        open_run(f"{root}/fresh").write_json("config.json", {})
        assert resolve(root) == newest

    def test_damage_falls_back_with_a_word(self, tmp_path: Path) -> None:
        older = publish(str(tmp_path / "r1"), 10, minutes=0)
        newer = publish(str(tmp_path / "r2"), 20, minutes=60)
        (Path(newer.url) / "x").write_bytes(b"!")
        skipped: list[str] = []
        assert resolve(str(tmp_path / "latest"), on_skip=skipped.append) == older
        assert any("x is damaged: sha256" in line for line in skipped)
        with pytest.raises(CheckpointError, match="x is damaged"):
            resolve(newer.url)

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("nowhere", "there is nothing at"),
            ("nowhere/latest", "there is nothing at"),
            ("empty", "no usable checkpoint below"),
            ("empty/latest", "no usable checkpoint below"),
            ("r1/checkpoints/step-00000001-a0001-00000000", "has no manifest.json"),
        ],
    )
    def test_nothing_there(self, tmp_path: Path, path: str, message: str) -> None:
        (tmp_path / "empty").mkdir()
        publish(str(tmp_path / "r1"), 10)
        with pytest.raises(CheckpointError, match=message) as caught:
            resolve(str(tmp_path / path))
        assert "\n" not in str(caught.value)

    def test_names_that_a_checkpoint_lacks(self, tmp_path: Path) -> None:
        ref = publish(str(tmp_path / "r1"), 10)
        with pytest.raises(CheckpointError, match="holds no attacker"):
            load(ref.url, names=["attacker.safetensors"])


def test_bytes_are_handled_without_torch() -> None:
    code = (
        "import sys, tsgb.checkpoint.store, tsgb.checkpoint.manifest, tsgb.checkpoint.filesystem\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'safetensors', 'numpy')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
