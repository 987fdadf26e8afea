"""Workers are killed at random moments; Prefect's retries alone must bring the run to the same end.

The same bit for bit: the tensor files of the last checkpoint, the trainer's state but for its
timestamp, and the metrics of every update are those of a run that nobody disturbed.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fakes.miniature import MINIATURE, TRUST
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import open_run
from tsgb.config import Arm, Profile, RunConfig, arm_overrides, make_config
from tsgb.envs import make_environment
from tsgb.models.registry import ModelRegistry
from tsgb.targets.build import build_surrogate
from tsgb.trainer.loop import Trainer
from tsgb.types import CheckpointRef
from tsgb.worker.build import setup_torch

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(3600),
    pytest.mark.usefixtures("prefect_api"),
]

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "tests" / "fakes" / "mortal_worker.py"
TENSORS = (
    "attacker.safetensors",
    "guard.safetensors",
    "optim_attacker.safetensors",
    "optim_guard.safetensors",
)
STATE = "trainer_state.json"


@dataclass(frozen=True)
class Plan:
    """What is trained and how it is disturbed."""

    env: str
    overrides: Mapping[str, Any]
    kills: int
    updates: int
    """A worker is killed after fewer updates than this."""
    seconds: float
    """Kills come within so many seconds after an update."""


PLANS = [
    pytest.param(
        Plan(
            env=MINIATURE["env"],
            overrides={k: v for k, v in MINIATURE.items() if k not in {"profile", "env"}},
            kills=3,
            updates=6,
            seconds=0.2,
        ),
        id="miniature",
    ),
    pytest.param(
        Plan(env="glyph", overrides={"segments": 2}, kills=10, updates=25, seconds=0.5),
        id="smoke",
        marks=pytest.mark.slow,
    ),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models are built once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tickets(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of tickets, and an environment in which workers take them."""
    for name in list(os.environ):
        if name.startswith(("TSGB_", "RCLONE_WEBDAV_")):
            monkeypatch.delenv(name)
    directory = tmp_path / "tickets"
    directory.mkdir()
    for name, value in {
        "TSGB_WORKER_COMMAND": shlex.join([sys.executable, str(WORKER)]),
        "TSGB_RETRY_DELAY_SECONDS": "0",
        "TSGB_POLL_SECONDS": "0.05",
        "TSGB_MAX_PARALLEL": "1",
        "TSGB_CACHE_DIR": str(cache),
        "TSGB_STORE": str(tmp_path / "store"),
        "TSGB_KILLS": str(directory),
        "PYTHONPATH": str(ROOT),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return directory


def undisturbed(config: RunConfig, cache: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """The last files and all metrics of the same run in this process."""
    setup_torch()
    env = make_environment(config.env, world_seed=config.world_seed, trust=TRUST)
    registry = ModelRegistry(env, config, cache / "models", lambda *_: None)
    trainer = Trainer(config, env, registry.base(), build_surrogate(registry))
    metrics: list[dict[str, Any]] = []
    while not trainer.done:
        metrics.append(trainer.step())
    return trainer.files(), metrics


def without_time(state: bytes) -> dict[str, Any]:
    content = json.loads(state)
    assert content.pop("timestamp")
    return content


@pytest.mark.parametrize("plan", PLANS)
def test_killed_workers_end_as_if_nobody_had_touched_them(
    plan: Plan, tickets: Path, tmp_path: Path, cache: Path
) -> None:
    from flows.stage1 import stage1

    env = make_environment(plan.env, world_seed=0, trust=TRUST)
    config = make_config(
        env.profile("smoke"),
        plan.overrides,
        {"profile": "smoke", "env": plan.env},
        arm_overrides(Arm.SELFPLAY),
    )
    wanted_files, wanted_metrics = undisturbed(config, cache)
    rng = Random(20261124)
    killed = 0
    for index in range(plan.kills):
        # A kill that comes when the work is done is none: then there is another run.
        for number in range(plan.kills - killed):
            ticket = {
                "update": rng.randrange(plan.updates),
                "seconds": rng.uniform(0, plan.seconds),
            }
            (tickets / f"{number:02d}.json").write_text(json.dumps(ticket))
        run_id = f"killed-{index}"
        state = stage1(
            run=run_id,
            profile=Profile.SMOKE,
            env=plan.env,
            arms=["selfplay"],
            overrides=dict(plan.overrides),
            return_state=True,
        )
        assert state.is_completed(), state.message
        run = tmp_path / "store" / run_id
        # A kill between the last checkpoint and the exit record leaves no `exits` at all, and one
        # within its writing a temporary file, which no reader counts.
        attempts, exits = (
            set(open_run(str(run)).list_if_present(name)) for name in ("attempts", "exits")
        )
        assert exits <= attempts
        killed += len(attempts - exits)

        ref = CheckpointRef(**state.result()["checkpoints"]["selfplay"])
        assert ref.step == config.total_steps
        files = CheckpointReader(open_run(ref.run_url)).read(ref)
        assert [name for name in TENSORS if files[name] != wanted_files[name]] == []
        assert without_time(files[STATE]) == without_time(wanted_files[STATE])
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [m["step"] for m in wanted_metrics]
        for line, metrics in zip(lines, wanted_metrics, strict=True):
            del line["seconds"], line["tokens_per_second"]
            assert line == pytest.approx(metrics, abs=1e-6)
        if killed >= plan.kills:
            break
        shutil.rmtree(tickets)
        tickets.mkdir()
    assert killed >= plan.kills
