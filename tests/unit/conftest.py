"""The command line in this process, for all unit tests of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.fakes.command_line import Ended, Run
from tests.fakes.sentinels import leaks


@pytest.fixture
def tsgb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """`tsgb(*words)` in an empty folder."""
    from tsgb.cli import main

    for name in list(os.environ):
        if name.startswith(("TSGB_", "RCLONE_WEBDAV_", "VAST_", "HF_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TSGB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["tsgb", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        found = Ended(int(ended.value.code or 0), *capfd.readouterr())
        assert not leaks(found.out + found.err)
        return found

    return run
