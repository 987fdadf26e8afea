"""How a worker finds its run, and what signals do to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.contexts import worker_context
from tests.fakes.deformations import DEFORMED
from tests.fakes.miniature import miniature_config
from tsgb.checkpoint.run import RunStore
from tsgb.errors import CheckpointError, ConfigError, Interrupted, StoreError, UsageError
from tsgb.worker.context import StopSignals, WorkerContext, find_run, read_config


@pytest.fixture
def context(tmp_path: Path) -> WorkerContext:
    return worker_context(tmp_path / "cache")


def begin(context: WorkerContext, path: Path) -> RunStore:
    run = context.open(str(path))
    run.write_text("config.json", miniature_config().canonical())
    return run


class TestFindRun:
    def test_by_its_own_address_or_by_that_of_a_store_with_one_run(
        self, context: WorkerContext, tmp_path: Path
    ) -> None:
        run = begin(context, tmp_path / "store" / "r1")
        (tmp_path / "store" / "notes").mkdir()
        (tmp_path / "store" / "a file").write_text("no run")
        for url in ("store/r1", "store/r1/", "store"):
            assert find_run(context, str(tmp_path / url)).run_url == run.run_url
        assert find_run(context, (tmp_path / "store").as_uri()).run_id == "r1"

    def test_of_several_one_must_be_named(self, context: WorkerContext, tmp_path: Path) -> None:
        for name in ("r2", "r1"):
            begin(context, tmp_path / name)
        with pytest.raises(UsageError, match=r"has 2 runs \(r1, r2\): name one, as in .*/r1$"):
            find_run(context, str(tmp_path))

    @pytest.mark.parametrize("name", ["empty", "absent"])
    def test_where_there_is_none_the_way_out_is_said(
        self, context: WorkerContext, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(UsageError, match=f"no run at .*/{name}: .* begin one with `tsgb exp"):
            find_run(context, str(tmp_path / name))


def test_a_configuration_is_read_as_it_was_written(context: WorkerContext, tmp_path: Path) -> None:
    assert read_config(begin(context, tmp_path / "r1")) == miniature_config()


def test_checkpoints_alone_do_not_say_what_they_belong_to(
    context: WorkerContext, tmp_path: Path
) -> None:
    run = context.open(str(tmp_path / "r1"))
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_config(run)
    run.write_text("config.json", '{"profile": ')
    with pytest.raises(ConfigError, match=re.escape(f"{run.run_url}/config.json")):
        read_config(run)


@pytest.mark.parametrize("what", DEFORMED)
def test_whatever_stands_in_the_place_of_a_configuration_is_one_line(
    context: WorkerContext, tmp_path: Path, what: str
) -> None:
    """As in a store that a stranger could write to; `eval-local` and workers read it so."""
    run = context.open(str(tmp_path / "r1"))
    run.write_bytes("config.json", DEFORMED[what])
    with pytest.raises((ConfigError, StoreError), match=r"config\.json") as raised:
        read_config(run)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1000


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_the_first_signal_only_asks(number: signal.Signals) -> None:
    signals = StopSignals.installed()
    signals.check()
    os.kill(os.getpid(), number)
    for _ in range(2):
        with pytest.raises(Interrupted, match=f"stopped by {number.name}; the same command goes"):
            signals.check()


def test_the_second_one_ends_the_process_at_once() -> None:
    code = """
import os, signal
from tsgb.worker.context import StopSignals
StopSignals.installed()
os.kill(os.getpid(), signal.SIGTERM)
print("asked", flush=True)
os.kill(os.getpid(), signal.SIGINT)
print("never")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + signal.SIGINT, "asked\n")
