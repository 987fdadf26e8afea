"""`tsgb manager run --machines N`: seeds at once, or arms of one, on machines of their own.

They share one budget. With real processes it takes minutes, so it is slow; test_seeds.py and
test_homes.py in tests/unit/flows and tests/unit/cloud/test_budget_shared.py hold its parts.
"""

from __future__ import annotations

import json
import signal
import time
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.fakes.contexts import worker_context
from tests.fakes.dav_server import PASSWORD, USER
from tests.fakes.manager import RUN, Manager
from tests.fakes.miniature import MINIATURE, TRUST
from tests.fakes.vast.driver import until
from tests.integration.test_manager_ends import set_options
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.cloud.orphans import InstanceLabel
from tsgb.config import Arm, arm_run_id
from tsgb.worker.build import setup_torch
from tsgb.worker.context import StopSignals, read_config
from tsgb.worker.train import TrainingAttempt

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

CENT = Decimal("0.01")
SIZES = {
    **{name: value for name, value in MINIATURE.items() if name not in {"profile", "env"}},
    "selfplay": {**MINIATURE["selfplay"], "rounds": 60},
    "checkpoint_interval": 4,
}
COMMON = ["--profile", "smoke", "--env", MINIATURE["env"], "--no-evaluate", *set_options(SIZES)]
WORDS = [*COMMON, "--arms", "selfplay", "--seeds", "3", "--machines", "2", "--json"]
ARMS = (Arm.SELFPLAY, Arm.FROZEN)


def at_work(manager: Manager) -> list[str]:
    """Runs whose machines are running now."""
    rows = manager.vast.sim("state")["instances"]
    labels = [InstanceLabel.parse(row["label"]) for row in rows if row["phase"] == "running"]
    return [label.run for label in labels if label is not None]


def test_seeds_at_once_stopped_and_resumed(tmp_path: Path) -> None:
    with Manager(tmp_path, list_lag_seconds=1.0) as manager:
        flow = manager.start(*WORDS)
        until(lambda: len(at_work(manager)) == 2, seconds=120)
        runs = at_work(manager)
        assert len(set(runs)) == 2, "two machines of two runs"
        until(lambda: manager.log.read_text().count("is at work") == 2, seconds=60)
        time.sleep(1.0)
        flow.send_signal(signal.SIGINT)
        flow.communicate(timeout=120)
        assert flow.returncode == 130
        log = manager.log.read_text()
        assert log.splitlines()[-1].endswith("go on with --run-id r1 --seeds 3")
        assert at_work(manager) == [], log
        code, out = manager.run(*WORDS)
        assert code == 0, manager.log.read_text()
        bill = manager.vast.sim("ledger")
        steps: list[int] = []
        for seed in range(3):
            url = f"{manager.dav}/runs/{RUN}-s{seed}"
            newest = CheckpointReader(open_run(url, USER, SecretStr(PASSWORD))).newest()
            steps.append(-1 if newest is None else newest.step)
    document = json.loads(out)
    assert [run["step"] for run in document["runs"].values()] == steps
    assert len(set(steps)) == 1
    assert not any(one["live"] for one in bill["instances"].values())
    assert bill["max_live"] == 2
    assert abs(Decimal(str(document["held_dollars"])) - Decimal(bill["spent"])) < CENT


def final_tensors(run: RunStore) -> tuple[int, dict[str, bytes]]:
    found = CheckpointReader(run).newest_valid(print)
    assert found is not None
    ref, files = found
    return ref.step, {name: data for name, data in files.items() if ".safetensors" in name}


def undisturbed(run: RunStore, directory: Path) -> tuple[int, dict[str, bytes]]:
    """The same configuration, trained by this process without a break."""
    local = open_run(str(directory / run.run_id))
    local.write_text("config.json", run.read_text("config.json"))
    setup_torch()
    context, config = worker_context(directory / "cache", trust=TRUST), read_config(local)
    TrainingAttempt(local, config, context, StopSignals(), attempt=None).train(None)
    return final_tensors(local)


def at_exchange(manager: Manager, arm: Arm) -> bool:
    """Whether the machine of all arms has saved updates of this one."""
    name = arm_run_id(RUN, arm)
    found = (manager.directory / "machines").glob(f"{RUN}/*/{name}/checkpoints/*/manifest.json")
    return any(not path.parent.name.startswith("step-00000000-") for path in found)


def test_arms_move_to_machines_of_their_own_and_back(tmp_path: Path) -> None:
    words = [*COMMON, "--arms", ",".join(ARMS), "--json"]
    with Manager(tmp_path, list_lag_seconds=1.0) as manager:
        flow = manager.start(*words)
        until(lambda: all(at_exchange(manager, arm) for arm in ARMS), seconds=120)
        flow.send_signal(signal.SIGINT)
        flow.communicate(timeout=120)
        flow = manager.start(*words, "--machines", "2")
        homes = {arm_run_id(RUN, arm) for arm in ARMS}
        until(lambda: set(at_work(manager)) == homes, seconds=120)
        until(lambda: manager.log.read_text().count("is at work") == 3, seconds=60)
        flow.kill()
        flow.communicate(timeout=120)
        assert set(at_work(manager)) == homes, "they work on for their lease"
        code, out = manager.run(*words)
        log = manager.log.read_text()
        assert code == 0, log
        bill = manager.vast.sim("ledger")
        for arm in ARMS:
            run = manager.open(arm)
            assert final_tensors(run) == undisturbed(run, tmp_path / "local")
    document = json.loads(out)
    assert not any(one["live"] for one in bill["instances"].values())
    assert bill["max_live"] == 2
    assert abs(Decimal(str(document["held_dollars"])) - Decimal(bill["spent"])) < CENT
