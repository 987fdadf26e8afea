"""Every import contract of pyproject.toml fails when it is broken; a contract that cannot, is none.

One copy of the source holds a violation of each contract, so that one look at it suffices; a
module without a layer is an error of another kind and needs a copy of its own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VIOLATIONS = {
    "tsgb is layered, and every module has a layer": "tsgb.types -> tsgb.trainer",
    "the library imports neither flows nor Prefect": "tsgb.eval.request -> prefect",
    "flows do not import the command line": "flows.hooks -> tsgb.cli",
    "the control plane runs without torch": "flows.prepare -> tsgb.models.fast.network",
    "only the edges read the environment": "tsgb.trainer.losses -> tsgb.settings",
    "nothing outside envs/glyph knows glyphs": "tsgb.worker.train -> tsgb.envs.glyph",
    "one module picks the provider, and nothing else knows Vast.ai": (
        "tsgb.cloud.launch -> tsgb.cloud.vast.client"
    ),
    "only the registry imports an engine": "tsgb.trainer.players -> tsgb.models.fast.network",
    "no cycles between siblings": "tsgb.checkpoint.manifest -> tsgb.checkpoint.store",
}
"""Contract, and an import that breaks it."""


def check(copy: Path) -> str:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
        env={"COLUMNS": "200", "PYTHONPATH": str(copy)},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The source, without what was built from it."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("tsgb", "flows"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_each_contract_is_broken_by_its_violation(copy: Path) -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = [contract["name"] for contract in config["tool"]["importlinter"]["contracts"]]
    assert names == list(VIOLATIONS)
    for violation in VIOLATIONS.values():
        importer, imported = violation.split(" -> ")
        with (copy / importer.replace(".", "/")).with_suffix(".py").open("a") as source:
            source.write(f"\nimport {imported}\n")
    report = check(copy)
    assert re.findall(r"^(.+) BROKEN$", report, re.MULTILINE) == names
    relative = {"tsgb.checkpoint.manifest -> tsgb.checkpoint.store": ".manifest -> .store"}
    for violation in VIOLATIONS.values():
        assert relative.get(violation, violation) in report


def test_a_module_without_a_layer(copy: Path) -> None:
    (copy / "tsgb" / "utils.py").write_text('"""Anything."""\n')
    assert "tsgb.utils" in check(copy)


def test_every_module_is_on_one_side_of_the_environment() -> None:
    """Who may read settings is said by leaving it out, so nothing may be left out by accident."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = {c["name"]: c for c in config["tool"]["importlinter"]["contracts"]}
    modules = {
        f"tsgb.{path.stem}"
        for path in (ROOT / "tsgb").iterdir()
        if path.suffix in {"", ".py"} and path.stem not in {"__init__", "__pycache__"}
    }
    kept_off = set(contracts["only the edges read the environment"]["source_modules"])
    assert modules - kept_off == {"tsgb.cli", "tsgb.settings"}
    library = set(contracts["the library imports neither flows nor Prefect"]["source_modules"])
    assert modules - library == {"tsgb.cli"}
