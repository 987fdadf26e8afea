"""The command line in this process: wrong input is one line, and every error an exit code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.command_line import Run
from tests.fakes.sentinels import sentinel
from tests.fakes.users import unknown_user
from tsgb import errors
from tsgb.errors import TSGBError
from tsgb.run_options import RunOptions

PASSWORD = sentinel("webdav")


WRONG = {
    "profile": ("experiment --profile huge", "--profile 'huge' .* smoke, demo, paper"),
    "env": ("experiment --env mars", "'mars': choose one of canary, glyph, or .*module:attr"),
    "own env": ("experiment --env no_such:World", "'no_such:World' cannot be loaded"),
    "seed": ("experiment --seed x", r"'--seed'.* integer .*\(got 'x'\): see `tsgb experiment --h"),
    "world seed": ("experiment --world-seed=-1", r"'--world-seed'.* 0 \(got '-1'\)"),
    "arm": ("experiment --arms selfplay,magic", "'magic' is not known: choose from selfplay"),
    "no self-play": ("experiment --arms sft", "lack 'selfplay'"),
    "empty arm": ("experiment --arms sft,,selfplay", "empty name"),
    "target": (
        "experiment --target GPT",
        "'GPT' is not in the world 'glyph': choose of T_s, B_near",
    ),
    "set": ("experiment --set rounds", "--set 'rounds' is not NAME=VALUE"),
    "set unknown": (
        "experiment --set selfplay.round=1",
        "selfplay has no 'round': choose of rounds",
    ),
    "set group": ("experiment --set selfplay=1", "selfplay.rounds, selfplay.attacker_steps"),
    "set deep": ("experiment --set selfplay.rounds.x=1", "selfplay.rounds has no parts"),
    "set value": ("experiment --set selfplay.rounds=-1", "selfplay.rounds = -1: .* equal to 0"),
    "set text": ("experiment --set guard.loss=l2", "guard.loss = 'l2': .*'exact_pg'"),
    "set option": ("experiment --set seed=1", "use the option --seed"),
    "set shares": ("experiment --set guard.pool_share=0.9", "at most 1"),
    "run id": ("experiment --run-id a/b", "run id 'a/b' is not 1 to 128 of"),
    "store": ("experiment --store /proc/nowhere", "/proc/nowhere/.* choose another store"),
    "store secret": (f"experiment --store https://me:{PASSWORD}@dav.example/x", "holds a password"),
    "store scheme": ("experiment --store gopher2://x", "gopher2"),
    "option": ("experiment --frobnicate", "No such option: --frobnicate: see `tsgb experiment"),
    "command": ("frobnicate", "No such command 'frobnicate': see `tsgb --help`"),
    "episodes": ("train-local --episodes -3", r"'--episodes'.* to 1 \(got '-3'\)"),
    "episodes word": ("train-local --episodes=many", r"'--episodes'.*\(got 'many'\)"),
    "interval": ("train-local --checkpoint-interval 0", r"'--checkpoint-interval'.*\(got '0'\)"),
    "length": ("train-local --set selfplay.rounds=9", "schedule to .* --episodes says 100"),
    "train store": ("train-local --store /dev/null/x", "/dev/null/x/local/.*: Not a directory"),
    "no checkpoint": ("eval-local", "there is nothing at .*/here/checkpoints"),
    "no url": ("eval-local --checkpoint-path=", "the store URL is empty"),
    "target class": ("eval-local --target-class Mine", "'Mine' is not module:attribute"),
    "target module": ("eval-local --target-class no_such:Mine", "No module named 'no_such'"),
    "target attribute": ("eval-local --target-class json:Mine", "no attribute 'Mine'"),
    "target method": ("eval-local --target-class json:JSONDecoder", r"generate\(prompt: str\)"),
    "judge method": ("eval-local --judge-class json:JSONDecoder", r"judge\(response: str"),
    "export from": (f"export-guard https://me:{PASSWORD}@dav.example/x out", "holds a password"),
    "export to": ("export-guard x /proc/self/status", "/proc/self/status exists and is not"),
    "export whom": ("export-guard x out --attacker", "both --attacker and --i-understand"),
    "export what": ("export-guard", "Missing argument 'CHECKPOINT'.*: see `tsgb export-guard --h"),
    "part": ("worker build --resume-path x --part 2/2", "--part '2/2' is not K/N"),
    "no path": ("worker run", "Missing option '--resume-path'"),
    "two paths": ("worker run --resume-path a --resume-path b", "given 2 times"),
    "keep": ("checkpoint prune x --keep 0", r"'--keep'.* to 1 \(got '0'\)"),
    "no store": ("checkpoint ls", "there is nothing at .*/here/runs: check the path"),
    "store password": (
        f"checkpoint verify https://me:{PASSWORD}@dav.example/x",
        "holds a password",
    ),
    "empty store": ("checkpoint show --json", "there is nothing at"),
    "pull from": ("checkpoint pull", "Missing argument 'checkpoint': see"),
    "pull to": ("checkpoint pull x memory://y", "memory://y is not a directory of this machine"),
    "no worker": ("worker", "Missing command: see `tsgb worker --help`"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line_and_exit_code_2(tsgb: Run, words: str, message: str) -> None:
    ended = tsgb(*words.split())
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("tsgb: ")
    assert ended.err.count("\n") == 1
    assert re.search(message, ended.err)
    assert PASSWORD not in ended.err


def test_wrong_input_starts_no_run(tsgb: Run) -> None:
    tsgb("experiment", "--set", "selfplay.rounds=-1")
    tsgb("train-local", "--env", "mars")
    assert list(Path.cwd().iterdir()) == []


def test_an_environment_variable_that_breaks_its_rule(
    tsgb: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSGB_MAX_PARALLEL", "0")
    ended = tsgb("train-local")
    assert ended.code == 2
    assert re.fullmatch("tsgb: environment variable TSGB_MAX_PARALLEL: .*unset it\n", ended.err)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("no"), 2),
        (errors.StoreFull("/store: no space left"), 6),
        (errors.LeaseLost("newer"), 5),
        (errors.InvalidResult("too many"), 3),
        (errors.Interrupted("stopped"), 130),
        (errors.WorkerFailed("a\nb"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_codes(
    tsgb: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(_options: RunOptions) -> None:
        raise error

    monkeypatch.setattr("flows.experiment.run_experiment", fail)
    ended = tsgb("experiment")
    assert ended.code == code
    assert ended.err.count("\n") == 1
    if isinstance(error, TSGBError):
        assert ended.err == f"tsgb: {' '.join(str(error).split())}\n"


def test_a_bug_is_a_traceback(tsgb: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_options: RunOptions) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("flows.experiment.run_experiment", fail)
    with pytest.raises(ZeroDivisionError):
        tsgb("experiment")


def test_without_a_command_there_is_help(tsgb: Run) -> None:
    ended = tsgb()
    assert ended.code == 0
    commands = ("experiment", "train-local", "eval-local", "export-guard", "checkpoint", "worker")
    for command in commands:
        assert command in ended.out
    assert "Exit codes" in ended.out


def test_help_needs_nothing_heavy() -> None:
    code = "import sys, tsgb.cli; print(*sys.modules)"
    names = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"torch", "prefect", "numpy", "rich", "flows", "structlog", "fsspec"}
    assert heavy.isdisjoint(names)


def test_a_working_directory_that_was_deleted(tsgb: Run) -> None:
    Path.cwd().rmdir()
    ended = tsgb("checkpoint", "ls")
    assert ended.code == 2
    assert ended.err == "tsgb: the working directory was deleted: change to another one\n"


@pytest.mark.parametrize(
    "words",
    [
        "worker machine --resume-path ~/r1 --attempt 1 --arms sft",
        "plan --hours 1 --store ~/runs",
        "reap --store ~/runs",
        "checkpoint ls ~/runs",
        "train-local --store ~/runs",
    ],
)
def test_a_home_that_nobody_knows(
    tsgb: Run, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setenv("VAST_API_KEY", "key")
    monkeypatch.setenv("TSGB_CACHE_DIR", str(tmp_path / "cache"))
    with unknown_user():
        ended = tsgb(*words.split())
    assert ended.code == 2
    assert ended.err.endswith("write the whole path instead of ~\n")
    assert len(ended.err.splitlines()) == 1


def test_a_reader_that_has_enough_is_no_error() -> None:
    """As in `tsgb plan --help | head -1`."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "tsgb.cli", "plan", "--help"]
    try:
        ended = subprocess.run(
            command, check=False, stdout=write, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(write)
    assert (ended.returncode, ended.stderr) == (1, "")
