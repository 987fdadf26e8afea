"""Workers that train a pretrained model are killed in every phase; the end is the same bit for bit.

Weights, optimizers, generators, past guards and attacks of the last checkpoint are those of a run
that nobody disturbed.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fakes.chaos import FORKS, live
from tests.fakes.families import save_general
from tests.fakes.small_run import SIZES
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import open_run
from tsgb.config import RunConfig, make_config
from tsgb.envs.canary import CanaryEnvironment
from tsgb.errors import ExitCode

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
CHANGES: dict[str, Any] = {"attacker": {"warmup_steps": 2}, "checkpoint_interval": 1}
LIFE_SECONDS = 900.0
KILL_SECONDS = 0.3
"""A kill comes within so many seconds after an update: during the next one, or during a save."""


def config_of(pretrained: str) -> RunConfig:
    model = {"model": {"pretrained": pretrained, "device": "cpu"}}
    return make_config(CanaryEnvironment(world_seed=0).profile("smoke"), SIZES, CHANGES, model)


def run_worker(store: Path, cache: Path, kill_at: int | None, seconds: float) -> int:
    """One worker's life, killed some seconds after an update; returns its exit code."""
    listen, tell = FORKS.Pipe(duplex=False)
    process = FORKS.Process(
        target=live,
        args=(str(store), cache, cache / "workers.log", tell),
        kwargs={"waits_after": kill_at},
        daemon=True,
    )
    process.start()
    tell.close()
    with suppress(EOFError):
        while listen.recv() != kill_at:
            pass
    if kill_at is not None and process.is_alive():
        time.sleep(seconds)
        os.kill(process.pid or 0, signal.SIGKILL)
    process.join(LIFE_SECONDS)
    assert process.exitcode is not None
    return process.exitcode


def end_of(store: Path, config: RunConfig) -> Mapping[str, Any]:
    """All files of the last checkpoint; the state without the time of day."""
    found = CheckpointReader(open_run(str(store))).newest_valid(pytest.fail)
    assert found is not None
    assert found[0].step == config.total_steps
    state = json.loads(found[1]["trainer_state.json"])
    assert state.pop("timestamp")
    return {**found[1], "trainer_state.json": state}


def survives_a_kill_in_each_phase(config: RunConfig, tmp_path: Path, cache: Path) -> None:
    stores = [tmp_path / "store" / name for name in ("undisturbed", "killed")]
    for store in stores:
        open_run(str(store)).write_text("config.json", config.canonical())
    assert run_worker(stores[0], cache, None, 0) == ExitCode.OK, (cache / "workers.log").read_text()
    dice = Random(11)
    phases = config.phases()
    assert {phase.kind for phase in phases} == {
        "sft_attacker",
        "warmup",
        "sft_guard",
        "attacker",
        "guard",
    }
    for phase in phases:
        # After the first update of the phase, so that the kill comes into what follows.
        seconds = dice.uniform(0, KILL_SECONDS)
        code = run_worker(stores[1], cache, phase.start + 1, seconds)
        assert code == -signal.SIGKILL, (cache / "workers.log").read_text()
    assert run_worker(stores[1], cache, None, 0) == ExitCode.OK
    wanted, found = (end_of(store, config) for store in stores)
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if wanted[name] != found[name]] == []
    assert len(open_run(str(stores[1])).list("claims")) == len(phases) + 1


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = tmp_path / "cache"
    made.mkdir()
    return made


def test_a_random_qwen3_through_the_general_engine(tmp_path: Path, cache: Path) -> None:
    model = save_general(tmp_path / "model")
    survives_a_kill_in_each_phase(config_of(str(model)), tmp_path, cache)


@pytest.mark.slow
@pytest.mark.smollm2
def test_smollm2(tmp_path: Path, cache: Path) -> None:
    survives_a_kill_in_each_phase(config_of("smollm2"), tmp_path, cache)
