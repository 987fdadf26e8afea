"""Workers die, the network lies, the server's disk rots: the run ends as if nothing had happened.

The same bit for bit: weights, optimizers and generators of the last checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from pydantic import SecretStr

from tests.fakes.chaos import Chaos
from tests.fakes.dav_programs import run_program
from tests.fakes.dav_server import PASSWORD, USER, dav_app, serve
from tests.fakes.fault_proxy import FaultProxy, Rates
from tests.fakes.miniature import TRUST, miniature_config
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import open_run
from tsgb.config import RunConfig
from tsgb.envs import make_environment
from tsgb.models.registry import ModelRegistry
from tsgb.targets.build import build_surrogate
from tsgb.trainer.loop import Trainer
from tsgb.worker.build import setup_torch

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
CONFIG = miniature_config({"selfplay": {"rounds": 8}, "checkpoint_interval": 2})
LONGER = miniature_config({"selfplay": {"rounds": 25}, "checkpoint_interval": 2})
RATES = Rates(
    unavailable=0.03,
    delayed=0.005,
    put_full=0.005,
    put_cut=0.03,
    answer_lost=0.02,
    read_flipped=0.12,
    read_cut=0.03,
)

State = Mapping[str, Any]


def state_of(files: Mapping[str, bytes]) -> State:
    """All that a run is at its end, without the time of day."""
    state = json.loads(files["trainer_state.json"])
    assert state.pop("timestamp")
    return {**files, "trainer_state.json": state}


def undisturbed(config: RunConfig, cache: Path) -> State:
    setup_torch()
    env = make_environment(config.env, world_seed=config.world_seed, trust=TRUST)
    registry = ModelRegistry(env, config, cache / "models", lambda *_: None)
    trainer = Trainer(config, env, registry.base(), build_surrogate(registry))
    while not trainer.done:
        trainer.step()
    return state_of(trainer.files())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = tmp_path / "cache"
    made.mkdir()
    return made


def survive(url: str, disk: Path, cache: Path, config: RunConfig, seed: int, kills: int) -> None:
    """Have a run killed so often, and compare."""
    wanted = undisturbed(config, cache)
    through_the_server = open_run(f"{url}/r1", USER, SecretStr(PASSWORD))
    through_the_server.write_text("config.json", config.canonical())
    with FaultProxy(url, RATES, seed) as proxy:
        chaos = Chaos(f"{proxy.url}/r1", disk / "r1", cache, seed)
        chaos.run(kills)
    print(f"seed {seed}: {dict(chaos.counts)}, {dict(proxy.counts)}")  # noqa: T201 - with -rP
    found = CheckpointReader(open_run(str(disk / "r1"))).newest_valid(pytest.fail)
    assert found is not None
    assert found[0].step == config.total_steps
    end = state_of(found[1])
    assert [name for name in wanted if end[name] != wanted[name]] == []
    assert chaos.kills >= kills
    assert proxy.faults >= kills


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_a_run_that_everything_happens_to(tmp_path: Path, cache: Path, seed: int) -> None:
    disk = tmp_path / "dav"
    disk.mkdir()
    with serve(dav_app(disk)) as url:
        survive(url, disk, cache, CONFIG, seed, kills=10)


@pytest.mark.slow
def test_a_longer_run(tmp_path: Path, cache: Path) -> None:
    disk = tmp_path / "dav"
    disk.mkdir()
    with serve(dav_app(disk)) as url:
        survive(url, disk, cache, LONGER, seed=3, kills=25)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["rclone", "apache", "nginx"])
def test_a_longer_run_on_servers_of_others(cache: Path, program: str) -> None:
    # Not below pytest's directory, which nobody but its owner may enter.
    with TemporaryDirectory(prefix="tsgb-dav-") as made, run_program(program, Path(made)) as served:
        survive(*served, cache, LONGER, seed=4, kills=25)
