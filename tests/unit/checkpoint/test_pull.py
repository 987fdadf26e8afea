"""Copies of checkpoints on this machine: what they are good for, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.fakes.checkpoints import (
    NAMES,
    content,
    flip,
    publish,
    publish_with_parts,
    with_parts,
)
from tests.fakes.deformations import DEFORMED
from tests.fakes.sentinels import sentinel
from tsgb.checkpoint.documents import canonical_json
from tsgb.checkpoint.inspect import CheckpointInfo
from tsgb.checkpoint.manifest import sha256_hex
from tsgb.checkpoint.pull import PullResult, pull
from tsgb.checkpoint.resolve import StoreLocation, load
from tsgb.checkpoint.store import CheckpointStore, open_run
from tsgb.errors import CheckpointError, UsageError


def no_file(_listed: CheckpointInfo, _name: str, _num_bytes: int) -> None:
    """Nobody watches."""


class TestPull:
    @pytest.fixture
    def store(self, tmp_path: Path) -> CheckpointStore:
        """Three checkpoints of a run on this disk."""
        run = open_run(str(tmp_path / "runs" / "r1"))
        run.write_json("config.json", {"seed": 1})
        store = CheckpointStore(run)
        store.claim()
        publish(store, 1, 2, 3)
        return store

    def pull(self, url: str, to: Path, notes: list[str] | None = None) -> PullResult:
        said = [] if notes is None else notes
        return pull(StoreLocation(url=url), str(to), on_skip=said.append, on_file=no_file)

    def test_a_copy_is_a_store(self, store: CheckpointStore, tmp_path: Path) -> None:
        newest = store.newest()
        assert newest is not None
        pulled = self.pull(str(tmp_path / "runs" / "latest"), tmp_path / "copy")
        assert sorted(pulled.copied) == sorted(NAMES)
        ref, files = load(str(tmp_path / "copy"))
        assert (ref.name, ref.sha256) == (newest.name, newest.sha256)
        assert files == content(3)
        assert open_run(ref.run_url).read_json("config.json") == {"seed": 1}
        assert not (tmp_path / "copy" / "r1" / "training_data.jsonl").exists()
        assert load(str(pulled.directory))[0] == ref

    def test_again_nothing_is_copied(self, store: CheckpointStore, tmp_path: Path) -> None:
        self.pull(store.run.run_url, tmp_path / "copy")
        again = self.pull(store.run.run_url, tmp_path / "copy")
        assert again.copied == {}
        assert sorted(again.present) == sorted(NAMES)

    def test_prompts_of_the_users_go_along(self, store: CheckpointStore, tmp_path: Path) -> None:
        store.run.write_bytes("training_data.jsonl", b'{"text":"a"}\n')
        for _ in range(2):
            pulled = self.pull(store.run.run_url, tmp_path / "copy")
        copy = pulled.directory.parents[1] / "training_data.jsonl"
        assert copy.read_bytes() == b'{"text":"a"}\n'

    def test_a_copy_that_was_cut_off_goes_on(self, store: CheckpointStore, tmp_path: Path) -> None:
        done = self.pull(store.run.run_url, tmp_path / "copy")
        (done.directory / "manifest.json").unlink()
        (done.directory / "trainer_state.json").unlink()
        (done.directory / "guard.safetensors").write_bytes(b"half")
        publish(store, 4)
        notes: list[str] = []
        pulled = self.pull(store.run.run_url, tmp_path / "copy", notes)
        assert pulled.directory == done.directory
        assert sorted(pulled.copied) == ["guard.safetensors", "trainer_state.json"]
        assert notes == [f"goes on with the copy of {done.directory.name} that was cut off"]
        assert load(str(tmp_path / "copy"))[1] == content(3)

    def test_the_newest_that_verifies(self, store: CheckpointStore, tmp_path: Path) -> None:
        newest = store.newest()
        assert newest is not None
        path = Path(newest.url) / "optim_guard.safetensors"
        path.write_bytes(flip(path.read_bytes(), 1))
        notes: list[str] = []
        pulled = self.pull(store.run.run_url, tmp_path / "copy", notes)
        assert pulled.source.checkpoint.step == 2
        assert [path.name for path in pulled.directory.parent.iterdir()] == [pulled.directory.name]
        assert len(notes) == 1
        with pytest.raises(CheckpointError, match=r"no checkpoint of .* verifies"):
            self.pull(newest.url, tmp_path / "other")
        assert not list((tmp_path / "other").rglob("*.safetensors"))

    def test_a_directory_with_anything_else_is_refused(
        self, store: CheckpointStore, tmp_path: Path
    ) -> None:
        pulled = self.pull(store.run.run_url, tmp_path / "copy")
        for strange in ("x", "r1/lease.json", "r1/checkpoints/x"):
            path = tmp_path / "copy" / strange
            path.write_text("")
            with pytest.raises(UsageError, match=f"holds {path.name}, .*give an empty directory"):
                self.pull(store.run.run_url, tmp_path / "copy")
            path.unlink()
        publish(store, 4)
        with pytest.raises(UsageError, match=pulled.directory.name):
            self.pull(store.run.run_url, tmp_path / "copy")
        with pytest.raises(UsageError, match="holds claims"):
            self.pull(store.run.run_url, tmp_path / "runs")
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="is a file"):
            self.pull(store.run.run_url, tmp_path / "file")

    def test_one_that_a_worker_prunes_meanwhile(
        self, store: CheckpointStore, tmp_path: Path
    ) -> None:
        newest = store.newest()
        assert newest is not None
        notes: list[str] = []

        def prune(listed: CheckpointInfo, name: str, _num_bytes: int) -> None:
            if listed.checkpoint.name == newest.name and name == NAMES[-1]:
                shutil.rmtree(newest.url)

        pulled = pull(
            StoreLocation(url=store.run.run_url),
            str(tmp_path / "copy"),
            on_skip=notes.append,
            on_file=prune,
        )
        assert pulled.source.checkpoint.step == 2
        assert notes == [f"{newest.name}: it was deleted meanwhile"]

    @pytest.mark.parametrize("name", ["../../../out.py", "/out.py", "a/b", ".x", "a\0"])
    def test_a_manifest_that_names_a_file_elsewhere(
        self, store: CheckpointStore, tmp_path: Path, name: str
    ) -> None:
        newest = store.newest()
        assert newest is not None
        manifest = Path(newest.url) / "manifest.json"
        content = json.loads(manifest.read_bytes())
        content["files"][name] = content["files"]["guard.safetensors"]
        del content["self_sha256"]
        digest = sha256_hex(canonical_json(content))
        manifest.write_bytes(canonical_json({**content, "self_sha256": digest}))
        before = sorted(tmp_path.rglob("*"))
        notes: list[str] = []
        assert self.pull(store.run.run_url, tmp_path / "copy", notes).source.checkpoint.step == 2
        assert "is no name of a checkpoint's file" in notes[0]
        inside = tmp_path / "copy"
        assert [p for p in sorted(tmp_path.rglob("*")) if not p.is_relative_to(inside)] == before

    @pytest.mark.parametrize("what", DEFORMED)
    def test_whatever_stands_in_the_place_of_a_manifest(
        self, store: CheckpointStore, tmp_path: Path, what: str
    ) -> None:
        newest = store.newest()
        assert newest is not None
        (Path(newest.url) / "manifest.json").write_bytes(DEFORMED[what])
        notes: list[str] = []
        assert self.pull(store.run.run_url, tmp_path / "copy", notes).source.checkpoint.step == 2
        assert len(notes) == 1
        assert len(notes[0]) < 1000
        with pytest.raises(CheckpointError, match="cannot be used"):
            load(newest.url)
        assert set(tmp_path.iterdir()) == {tmp_path / "runs", tmp_path / "copy"}

    def test_thousands_of_names_among_the_checkpoints(
        self, store: CheckpointStore, tmp_path: Path
    ) -> None:
        for number in range(2000):
            (tmp_path / "runs" / "r1" / "checkpoints" / f"step-{number}").touch()
        assert self.pull(store.run.run_url, tmp_path / "copy").source.checkpoint.step == 3

    def test_a_link_in_the_target_that_leads_out_of_it(
        self, store: CheckpointStore, tmp_path: Path
    ) -> None:
        (tmp_path / "copy").mkdir()
        (tmp_path / "out").mkdir()
        (tmp_path / "copy" / "r1").symlink_to(tmp_path / "out")
        with pytest.raises(UsageError, match=r"leads out of .*delete the symbolic link"):
            self.pull(store.run.run_url, tmp_path / "copy")
        assert not list((tmp_path / "out").iterdir())

    def test_foreign_files_in_the_target_do_no_harm(
        self, store: CheckpointStore, tmp_path: Path
    ) -> None:
        (tmp_path / "copy").mkdir()
        (tmp_path / "copy" / ".DS_Store").write_text("")
        assert self.pull(store.run.run_url, tmp_path / "copy").source.checkpoint.step == 3

    def test_a_run_without_its_configuration(self, store: CheckpointStore, tmp_path: Path) -> None:
        store.run.delete("config.json")
        assert not self.pull(store.run.run_url, tmp_path / "copy").has_config

    def test_parts_are_copied_too(self, store: CheckpointStore, tmp_path: Path) -> None:
        publish_with_parts(store, 4, 5)
        pulled = self.pull(store.run.run_url, tmp_path / "copy")
        assert load(str(tmp_path / "copy"))[1] == with_parts(5)
        assert len(pulled.copied) == len(NAMES) + 7
        part = min((tmp_path / "copy" / "r1" / "parts").iterdir())
        part.write_bytes(b"half")
        (pulled.directory / "manifest.json").unlink()
        again = self.pull(store.run.run_url, tmp_path / "copy")
        assert len(again.copied) == 1
        assert load(str(tmp_path / "copy"))[1] == with_parts(5)
        (part.parent / "strange").write_text("")
        with pytest.raises(UsageError, match="holds strange, which is no part of a copy"):
            self.pull(store.run.run_url, tmp_path / "copy")

    def test_parts_of_a_checkpoint_that_does_not_verify_are_not_left(
        self, store: CheckpointStore, tmp_path: Path
    ) -> None:
        publish_with_parts(store, 4, 5)
        parts = Path(store.run.run_url) / "parts"
        rotten = next(p for p in parts.iterdir() if p.read_bytes() == b"the guard of round 5")
        rotten.write_bytes(flip(b"the guard of round 5", 0))
        notes: list[str] = []
        assert self.pull(store.run.run_url, tmp_path / "copy", notes).source.checkpoint.step == 4
        assert len(notes) == 1
        assert load(str(tmp_path / "copy"))[1] == with_parts(4)
        assert len(list((tmp_path / "copy" / "r1" / "parts").iterdir())) == 6

    def test_nothing_to_copy(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="there is nothing at"):
            self.pull(str(tmp_path / "none"), tmp_path / "copy")
        shutil.copytree(Path(__file__).parent, tmp_path / "tree")
        with pytest.raises(CheckpointError, match="no usable checkpoint below"):
            self.pull(str(tmp_path / "tree"), tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


def test_with_a_key_only_signed_ones_are_copied_and_the_copy_stays_signed(tmp_path: Path) -> None:
    key = SecretStr(sentinel("manifest"))
    url = str(tmp_path / "runs" / "r1")
    plain = CheckpointStore(open_run(url))
    plain.claim()
    publish(plain, 1)
    signed = StoreLocation(url=url, manifest_key=key)
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        pull(signed, str(tmp_path / "copy"), on_skip=lambda _line: None, on_file=no_file)
    store = CheckpointStore(open_run(url, manifest_key=key))
    store.claim()
    publish(store, 2)
    pull(signed, str(tmp_path / "copy"), on_skip=lambda _line: None, on_file=no_file)
    ref, files = load(str(tmp_path / "copy"), manifest_key=key)
    assert (ref.step, files) == (2, content(2))
