"""The search for secrets at the end of a session finds them, and fails that session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFTEST = "from tests.fakes.sentinels import pytest_configure, searched_for_secrets"
SESSION = """
import base64, logging, os, warnings
import pytest
from tests.fakes.sentinels import sentinel

SECRET = sentinel("password")

def test_file(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "found.bin").write_bytes(os.urandom(20_000_000) + SECRET.encode())

@pytest.mark.parametrize("user", ["a", "me", "you"])
def test_base64(tmp_path, user):
    header = base64.b64encode(f"{user}:{SECRET}".encode()).decode()
    (tmp_path / "request.log").write_text(f"Authorization: Basic {header}")

def test_output():
    print("connecting with", SECRET)

def test_log():
    logging.getLogger("x").warning("refused: %s", SECRET)

def test_warning():
    warnings.warn(f"odd: {SECRET}")

def test_traceback():
    raise ValueError(SECRET)

@pytest.mark.parametrize("word", [SECRET])
def test_id(word):
    pass

def test_nothing(tmp_path):
    print("all is well")
    (tmp_path / "found.bin").write_text("all is well")
"""


def session(tmp_path: Path, *tests: str, options: Sequence[str] = ()) -> tuple[int, str]:
    """Run some of these tests in a session of their own, with secrets of its own."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(SESSION)
    kept = {k: v for k, v in os.environ.items() if k != "PYTEST_SENTINEL_SEED"}
    common = ["-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "base")]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *common,
            *options,
            *(f"test_it.py::{name}" for name in tests),
        ],
        env={**kept, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def places(text: str) -> list[str]:
    """Those that the one line about them names."""
    [line] = [line for line in text.splitlines() if line.startswith("SECRETS LEAKED in ")]
    head, _, named = line.partition(": ")
    found = named.split("; ")
    assert head == f"SECRETS LEAKED in {len(found)} places"
    return found


def test_tests_that_pass_and_leak_fail_the_session(tmp_path: Path) -> None:
    code, text = session(
        tmp_path, "test_file", "test_base64", "test_output", "test_log", "test_warning"
    )
    assert code == 1
    assert "7 passed" in text
    assert "failed" not in text
    base = tmp_path / "base"
    assert sorted(places(text)) == sorted(
        [
            "Captured log call of test_it.py::test_log",
            "Captured stdout call of test_it.py::test_output",
            "a warning of test_it.py::test_warning",
            *(f"{base}/test_base64_{user}_0/request.log" for user in ("a", "me", "you")),
            f"{base}/test_file0/deep/found.bin",
        ]
    )


def test_a_file_is_found_where_two_processes_run_the_tests(tmp_path: Path) -> None:
    code, text = session(tmp_path, "test_file", "test_nothing", options=["-n", "2"])
    assert code == 1
    assert "2 passed" in text
    [file] = places(text)
    assert file.endswith("/test_file0/deep/found.bin")


def test_tracebacks_and_ids_are_searched(tmp_path: Path) -> None:
    code, text = session(tmp_path, "test_traceback", "test_id")
    assert code == 1
    assert "1 failed, 1 passed" in text
    assert "the traceback of test_it.py::test_traceback (call)" in places(text)
    assert any(place.startswith("the id of test_it.py::test_id[") for place in places(text))


def test_a_session_that_leaks_nothing_passes(tmp_path: Path) -> None:
    code, text = session(tmp_path, "test_nothing")
    assert (code, "LEAKED" in text) == (0, False), text
