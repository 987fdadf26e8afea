"""Documents, run ids, the local lock, and finding a checkpoint by what a person types."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.fakes.filesystems import FaultyFiles, MemoryFiles
from tests.fakes.sentinels import sentinel
from tsgb.checkpoint.store import (
    RunLock,
    RunStore,
    open_run,
)
from tsgb.errors import StoreError, UsageError

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

    def test_a_signed_document_counts_with_our_key_only(self, tmp_path: Path) -> None:
        key, other = SecretStr(sentinel("manifest")), SecretStr(sentinel("other"))
        ours = open_run(str(tmp_path / "r1"), manifest_key=key)
        ours.write_signed("reports/7/summary.json", b'{"shown": false}')
        assert ours.read_signed_json("reports/7/summary.json") == {"shown": False}
        assert open_run(str(tmp_path / "r1")).read_signed_json("reports/7/summary.json")
        for forge in (
            lambda: ours.write_text("reports/7/summary.json", '{"shown": true}'),
            lambda: open_run(str(tmp_path / "r1"), manifest_key=other).write_signed(
                "reports/7/summary.json", b'{"shown": true}'
            ),
            lambda: ours.write_text("reports/7/summary.json.hmac", "\x00" * 5000),
            lambda: ours.delete("reports/7/summary.json.hmac"),
        ):
            ours.write_signed("reports/7/summary.json", b'{"shown": false}')
            forge()
            with pytest.raises(FileNotFoundError):
                ours.read_signed_json("reports/7/summary.json")

    def test_a_signature_is_no_good_for_another_name_or_run(self, tmp_path: Path) -> None:
        key = SecretStr(sentinel("manifest"))
        ours, theirs = (open_run(str(tmp_path / name), manifest_key=key) for name in ("r1", "r2"))
        ours.write_signed("reports/7/summary.json", b"{}")
        for run, name in ((ours, "reports/8/summary.json"), (theirs, "reports/7/summary.json")):
            for ending in ("", ".hmac"):
                run.write_bytes(name + ending, ours.read_bytes(f"reports/7/summary.json{ending}"))
            with pytest.raises(FileNotFoundError):
                run.read_signed(name)

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


def test_bytes_are_handled_without_torch() -> None:
    code = (
        "import sys, tsgb.checkpoint.store, tsgb.checkpoint.manifest, tsgb.checkpoint.filesystem\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'safetensors', 'numpy')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
