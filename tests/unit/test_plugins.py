"""Loading a user's code, and what it declares of itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tsgb.errors import UsageError
from tsgb.plugins import load_plugin

MODULE = """
class Silent:
    pass
class Declared:
    name, version = "gpt", 3
class Empty:
    name, version = "gpt", ""
class Odd:
    name, version = "gpt", ["3"]
class Exits:
    def __init__(self): raise SystemExit(0)
made = Declared()
made.version = "4@https://host"
"""


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own_plugin", "quits", "cancels"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "own_plugin.py").write_text(MODULE)
    (tmp_path / "quits.py").write_text("raise SystemExit(0)")
    (tmp_path / "cancels.py").write_text("import asyncio\nraise asyncio.CancelledError")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("Mine", "is not module:attribute"),
        ("quits:Mine", "cannot be loaded: SystemExit"),
        ("cancels:Mine", "cannot be loaded: CancelledError"),
        ("own_plugin:Exits", "cannot be instantiated: SystemExit"),
    ],
)
def test_code_that_cannot_be_loaded(path: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"--target-class '{path}' {message}"):
        load_plugin(path, "--target-class")


def test_an_identity_is_what_the_code_declares(mine: Path) -> None:
    for name in ("Silent", "Empty", "Odd"):
        assert load_plugin(f"own_plugin:{name}", "--x").identity is None
    declared = load_plugin("own_plugin:Declared", "--x").identity
    assert declared is not None
    assert declared.items() >= {"name": "gpt", "version": "3"}.items()
    made = load_plugin("own_plugin:made", "--x").identity
    assert made is not None
    assert made["version"] == "4@https://host"
    (mine / "own_plugin.py").write_text(MODULE + "\n# changed")
    assert load_plugin("own_plugin:Declared", "--x").identity != declared
