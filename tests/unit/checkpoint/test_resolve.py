"""A person names a checkpoint by a path or URL in any form."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tsgb.checkpoint.store import (
    CheckpointStore,
    load,
    open_run,
    resolve,
)
from tsgb.errors import CheckpointError
from tsgb.types import CheckpointRef

CONFIG = "0" * 64


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
