"""Runs of both kinds of adapter, and the command that exports their guards."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.fakes.command_line import Run
from tests.fakes.families import save_family
from tests.fakes.miniature import MINIATURE, miniature_config
from tests.fakes.runs import save_run
from tsgb.cli import app
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


@pytest.fixture(scope="session")
def family_exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a family's run and its export, `run` and `out`; made once for all tests."""

    @cache
    def make(family: str) -> Path:
        root = tmp_path_factory.mktemp(family)
        base = save_family(root / "base", family)
        save_run(root / "run", tiny_config(str(base)), root / "cache", until_step=3)
        command = ["export-guard", str(root / "run"), str(root / "out"), "--env", "canary"]
        environment = {"TSGB_CACHE_DIR": str(root / "cache")}
        done = CliRunner().invoke(app, command, env=environment, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return root

    return make


@pytest.fixture
def export_family(
    tsgb: Run, tmp_path: Path, family_exports: Callable[[str], Path]
) -> Callable[[str], Path]:
    """`export_family("qwen2")`: copies of a run and its export, which a test may change."""

    def copy(family: str) -> Path:
        made = family_exports(family)
        shutil.copytree(made / "run", tmp_path / "run")
        shutil.copytree(made / "out", "out")
        return Path("out")

    return copy
