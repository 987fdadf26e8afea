"""Runs of both kinds of adapter, and the command that exports their guards."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.fakes.command_line import Run
from tests.fakes.families import save_family
from tests.fakes.miniature import MINIATURE, miniature_config
from tests.fakes.runs import save_run
from tsgb.config import RunConfig, make_config
from tsgb.envs import make_environment
from tsgb.export.record import GuardFile

CALIBRATED = {"calibration": {"fpr": 0.02, "delta": 0.05, "num": 300}}
TRAIN_DATA = {
    "sha256": "ab" * 32,
    "harmful": 8,
    "benign": 9,
    "groups": 7,
    "mapping": "prompt=q label=bad",
    "files": [{"name": "o`wn.csv", "format": "map", "sha256": "cd" * 32}],
}
CONFIGS = {
    "full": miniature_config(CALIBRATED),
    "lora": miniature_config(
        CALIBRATED, {"model": {"adapter": "lora", "rank": 2}, "train_data": TRAIN_DATA}
    ),
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a run of each kind, and the cache that holds their base."""
    root = tmp_path_factory.mktemp("runs")
    for name, config in CONFIGS.items():
        save_run(root / name, config, root / "cache")
    return root


@pytest.fixture
def here(runs: Path, tsgb: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory beside a copy of the store, whose runs a test may break."""
    monkeypatch.setenv("TSGB_CACHE_DIR", str(runs / "cache"))
    for name in CONFIGS:
        shutil.copytree(runs / name, Path.cwd().parent / "store" / name)
    return Path.cwd()


@pytest.fixture
def tsgb(tsgb: Run) -> Run:
    """The command line of a user who names the world of these runs."""
    named = {"--env", "score", "recalibrate"}  # an export is read without its world
    return lambda *words: tsgb(*words, *([] if named & {*words} else ["--env", MINIATURE["env"]]))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def checkpoint_of(run: Path) -> Path:
    [found] = (run / "checkpoints").iterdir()
    return found


def read(folder: Path) -> GuardFile:
    return GuardFile.model_validate_json((folder / "guard.json").read_text())


def refused(tsgb: Run, here: Path, pattern: str, *words: str) -> None:
    kept = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    ended = tsgb("export-guard", *words)
    assert (ended.code, ended.out) == (2, "")
    assert re.search(rf"^tsgb: .*{pattern}.*\n\Z", ended.err, re.MULTILINE)
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == kept


def tiny_config(pretrained: str, dtype: str = "float32") -> RunConfig:
    model = {"pretrained": pretrained, "rank": 2, "dtype": dtype}
    return make_config(
        make_environment("canary", world_seed=0).profile("smoke"),
        {"profile": "smoke", "env": "canary", "model": model},
        {"calibration": {"fpr": 0.3, "delta": 0.3, "num": 8}},
    )


def export_family(tsgb: Run, tmp_path: Path, family: str) -> Path:
    base = save_family(tmp_path / "base", family)
    save_run(tmp_path / "run", tiny_config(str(base)), tmp_path / "cache", until_step=3)
    ended = tsgb("export-guard", str(tmp_path / "run"), "out", "--env", "canary")
    assert ended.code == 0, ended
    return Path("out")
