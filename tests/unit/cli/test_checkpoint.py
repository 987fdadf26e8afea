"""`tsgb checkpoint ...` on a store on this disk."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.checkpoints import CONFIG, NAMES, content, flip
from tests.fakes.command_line import Run
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.checkpoint.store import CheckpointStore

SIZE = sum(map(len, content(1).values()))


@pytest.fixture
def runs(tsgb: Run) -> Path:
    """`./runs`, the default store, with the runs alpha and beta of three checkpoints each."""
    for run_id in ("alpha", "beta"):
        run = open_run(f"runs/{run_id}")
        run.write_json("config.json", {"run": run_id})
        store = CheckpointStore(run)
        store.claim()
        parent = None
        for step in (1, 2, 3):
            parent = store.publish(step, step * 10, content(step), CONFIG, parent).name
    return Path("runs").absolute()


def directory(runs: Path, run_id: str, step: int) -> Path:
    [found] = (runs / run_id / "checkpoints").glob(f"step-{step:08d}-*")
    return found


def damage(path: Path) -> None:
    path.write_bytes(flip(path.read_bytes(), 5))


Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(tsgb: Run) -> Ask:
    """`ask(*words, code=0)` is the one JSON document on stdout."""

    def run(*words: str, code: int = 0) -> dict[str, Any]:
        ended = tsgb("checkpoint", *words, "--json")
        assert ended.code == code, ended.err
        return json.loads(ended.out)

    return run


class TestLs:
    def test_everything_below(self, ask: Ask, runs: Path) -> None:
        (directory(runs, "beta", 3) / "manifest.json").unlink()
        (directory(runs, "beta", 2) / "manifest.json").write_text("{")
        document = ask("ls")
        assert document["store"] == str(runs)
        rows = document["checkpoints"]
        assert [(row["run_id"], row["step"], row["state"]) for row in rows] == [
            ("alpha", 3, "ok"),
            ("alpha", 2, "ok"),
            ("alpha", 1, "ok"),
            ("beta", 3, "unfinished"),
            ("beta", 2, "damaged"),
            ("beta", 1, "ok"),
        ]
        first = rows[0]
        assert Path(first["checkpoint"]) == directory(runs, "alpha", 3)
        assert first["name"] == Path(first["checkpoint"]).name
        assert (first["episode"], first["attempt"], first["size"]) == (30, 1, SIZE)
        assert first["writer"] in first["name"]
        assert datetime.fromisoformat(first["created_at"]).tzinfo is not None
        assert rows[3]["created_at"] is None
        assert "did not finish" in rows[3]["reason"]

    def test_one_run_one_checkpoint_or_the_newest(self, ask: Ask, runs: Path) -> None:
        def steps(store: str) -> list[int]:
            return [row["step"] for row in ask("ls", store)["checkpoints"]]

        assert steps("runs/beta") == [3, 2, 1]
        assert steps(f"file://{runs}/beta") == [3, 2, 1]
        assert steps("runs/beta/latest") == [3]
        assert steps(str(directory(runs, "beta", 2))) == [2]

    def test_for_people(self, tsgb: Run, runs: Path) -> None:
        (directory(runs, "beta", 3) / "manifest.json").unlink()
        ended = tsgb("checkpoint", "ls")
        assert ended.code == 0
        assert ended.err == ""
        name = directory(runs, "alpha", 2).name
        assert re.search(rf"{name}.* 2 .* 20 .* 1 .*:\d\d .*{SIZE} bytes.* ok", ended.out)
        assert f"{runs}/beta" in ended.out
        assert "unfinished" in ended.out
        assert "has no manifest.json" in ended.out

    def test_an_empty_store(self, tsgb: Run, ask: Ask) -> None:
        Path("runs").mkdir()
        assert ask("ls")["checkpoints"] == []
        assert "no checkpoints below" in tsgb("checkpoint", "ls").out

    def test_the_store_of_the_settings(
        self, ask: Ask, runs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TSGB_STORE", str(runs / "beta"))
        assert {row["run_id"] for row in ask("ls")["checkpoints"]} == {"beta"}

    def test_a_checkpoint_that_is_not_there(self, tsgb: Run, runs: Path) -> None:
        ended = tsgb("checkpoint", "ls", "runs/beta/checkpoints/step-00000009-a0001-0001b2c4")
        assert ended.code == 2
        assert re.search("there is no checkpoint step-00000009.*see `tsgb checkpoint ls", ended.err)


class TestShow:
    def test_the_named_one(self, ask: Ask, tsgb: Run, runs: Path) -> None:
        path = directory(runs, "alpha", 2)
        document = ask("show", str(path))
        assert document["parent"] == directory(runs, "alpha", 1).name
        assert document["config_sha256"] == CONFIG
        assert "torch" in document["versions"]
        assert [file["name"] for file in document["files"]] == list(NAMES)
        text = tsgb("checkpoint", "show", str(path)).out
        for file in document["files"]:
            assert re.search(rf"{file['name']} .*{file['size']} bytes .*{file['sha256']}", text)
        for word in (document["parent"], CONFIG, document["manifest_sha256"], "python 3."):
            assert word in text

    def test_the_newest_below(self, ask: Ask, runs: Path) -> None:
        assert ask("show", "runs/alpha")["step"] == 3
        assert ask("show", "runs/alpha/latest")["step"] == 3

    def test_one_that_does_not_count(self, tsgb: Run, runs: Path) -> None:
        path = directory(runs, "alpha", 3)
        (path / "manifest.json").unlink()
        ended = tsgb("checkpoint", "show", str(path))
        assert ended.code == 2
        assert re.search("cannot be used: it has no manifest.json.*/latest", ended.err)


class TestVerify:
    def test_a_good_store(self, ask: Ask, runs: Path) -> None:
        document = ask("verify")
        assert (document["ok"], document["damaged"], document["unfinished"]) == (6, 0, 0)
        assert {row["num_files"] for row in document["checkpoints"]} == {5}

    def test_what_is_unfinished_is_no_damage(self, ask: Ask, runs: Path) -> None:
        (directory(runs, "alpha", 3) / "manifest.json").unlink()
        document = ask("verify", "runs/alpha")
        assert (document["ok"], document["damaged"], document["unfinished"]) == (2, 0, 1)

    def test_damage(self, ask: Ask, tsgb: Run, runs: Path) -> None:
        damage(directory(runs, "alpha", 3) / "guard.safetensors")
        (directory(runs, "alpha", 2) / "trainer_state.json").write_bytes(b"short")
        (directory(runs, "alpha", 1) / "trainer_state.json").unlink()
        document = ask("verify", code=1)
        assert (document["ok"], document["damaged"]) == (3, 3)
        rows = {row["step"]: row for row in document["checkpoints"] if row["run_id"] == "alpha"}
        # The same file in beta tells where the byte is.
        [problem] = rows[3]["problems"]
        assert (problem["file"], problem["begin"], problem["end"]) == ("guard.safetensors", 5, 6)
        assert problem["expected_sha256"] != problem["found_sha256"]
        [problem] = rows[2]["problems"]
        assert (problem["begin"], problem["end"]) == (0, len(content(2)["trainer_state.json"]))
        assert rows[1]["problems"][0]["found_size"] is None
        ended = tsgb("checkpoint", "verify")
        assert ended.code == 1
        assert re.search(r"guard.safetensors: sha256 differs .*, bytes 5 to 6; expected", ended.out)
        assert "3 ok, 0 unfinished, 3 damaged" in ended.out
        assert re.fullmatch(r"tsgb: 3 of 6 checkpoints are damaged, .*alpha.*\n", ended.err)

    def test_nothing_to_verify_is_no_success(self, tsgb: Run) -> None:
        Path("runs").mkdir()
        ended = tsgb("checkpoint", "verify")
        assert ended.code == 2
        assert "no usable checkpoint below" in ended.err


class TestPull:
    def test_a_copy(self, ask: Ask, tsgb: Run, runs: Path) -> None:
        document = ask("pull", "runs/alpha", "mine")
        assert set(document["copied"]) == set(NAMES)
        assert ask("verify", "mine")["ok"] == 1
        assert ask("show", "mine")["step"] == 3
        again = tsgb("checkpoint", "pull", "runs/alpha", "mine")
        assert again.code == 0
        assert "5 files, " in again.out
        assert f"next: tsgb eval-local --checkpoint-path {document['checkpoint']}" in again.out

    def test_damage_is_not_copied(self, tsgb: Run, runs: Path) -> None:
        path = directory(runs, "alpha", 3)
        damage(path / "guard.safetensors")
        ended = tsgb("checkpoint", "pull", str(path), "mine")
        assert ended.code == 2
        assert "guard.safetensors is damaged" in ended.err
        assert tsgb("checkpoint", "pull", "runs/alpha", "mine").code == 0

    def test_a_foreign_directory(self, tsgb: Run, runs: Path) -> None:
        Path("mine").mkdir()
        Path("mine/thesis.tex").write_text("")
        ended = tsgb("checkpoint", "pull", "runs/alpha", "mine")
        assert ended.code == 2
        assert re.search("mine holds thesis.tex, .*: give an empty directory", ended.err)
        assert [path.name for path in Path("mine").iterdir()] == ["thesis.tex"]

    def test_without_a_configuration(self, tsgb: Run, runs: Path) -> None:
        (runs / "alpha" / "config.json").unlink()
        ended = tsgb("checkpoint", "pull", "runs/alpha", "mine")
        assert ended.code == 0
        assert "has no config.json" in ended.err
        assert "next:" not in ended.out


class TestPrune:
    def beat(self, runs: Path) -> RunStore:
        run = open_run(str(runs / "alpha"))
        run.write_json("heartbeats/0001.json", {"updated_at": datetime.now(UTC).isoformat()})
        return run

    def test_the_newest_stay(self, ask: Ask, tsgb: Run, runs: Path) -> None:
        dry = ask("prune", "runs/alpha", "--keep", "2", "--dry-run")
        assert [row["step"] for row in dry["deleted"]] == [1]
        assert len(ask("ls", "runs/alpha")["checkpoints"]) == 3
        ended = tsgb("checkpoint", "prune", "runs/alpha", "--keep", "2")
        assert ended.code == 0
        assert f"deleted 1 of 3 checkpoints of {runs}/alpha, {SIZE} bytes freed" in ended.out
        assert dry["deleted"][0]["name"] in ended.out
        assert ask("prune", "runs/alpha", "--keep=1")["freed_bytes"] == SIZE
        assert [row["step"] for row in ask("ls", "runs/alpha")["checkpoints"]] == [3]
        assert len(ask("ls", "runs/beta")["checkpoints"]) == 3

    def test_one_run_at_a_time(self, tsgb: Run, runs: Path) -> None:
        ended = tsgb("checkpoint", "prune")
        assert ended.code == 2
        assert re.search(r"holds 2 runs \(alpha, beta\): give the path or URL of one", ended.err)
        for words in ("runs/alpha/latest", str(directory(runs, "alpha", 1))):
            ended = tsgb("checkpoint", "prune", words)
            assert ended.code == 2
            assert re.search("is a checkpoint, not a run: give .*/alpha", ended.err)

    def test_a_worker_is_alive(self, tsgb: Run, ask: Ask, runs: Path) -> None:
        self.beat(runs)
        ended = tsgb("checkpoint", "prune", "runs/alpha", "--keep=1")
        assert ended.code == 2
        assert re.search("a worker is alive on run .*/alpha: .* s old.*--force", ended.err)
        assert len(ask("prune", "runs/alpha", "--keep=1", "--force")["deleted"]) == 2


def test_one_that_loads_nowhere_is_rejected_by_its_own_address(
    tsgb: Run, ask: Ask, runs: Path
) -> None:
    newest = ask("show", "runs/alpha")["checkpoint"]
    ended = tsgb("checkpoint", "reject", "runs/alpha")
    assert ended.code == 2
    assert "is not one checkpoint" in ended.err
    ended = tsgb("checkpoint", "reject", newest, "--reason", "it is odd")
    assert ended.code == 0
    assert "run alpha goes on from step-00000002-" in ended.out
    assert ask("show", "runs/alpha")["step"] == 2
    assert tsgb("checkpoint", "reject", newest).code == 2
