"""`tsgb manager run --machines 2`: seeds at once, each on a machine of its own, under one budget.

With real processes it takes a minute, so it is slow; tests/unit/flows/test_seeds.py and
tests/unit/cloud/test_budget_shared.py hold its parts.
"""

from __future__ import annotations

import json
import signal
import time
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.fakes.dav_server import PASSWORD, USER
from tests.fakes.manager import RUN, Manager
from tests.fakes.miniature import MINIATURE
from tests.fakes.vast.driver import until
from tests.integration.test_manager_ends import set_options
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import open_run
from tsgb.cloud.orphans import InstanceLabel

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

CENT = Decimal("0.01")
SIZES = {
    **{name: value for name, value in MINIATURE.items() if name not in {"profile", "env"}},
    "selfplay": {**MINIATURE["selfplay"], "rounds": 60},
    "checkpoint_interval": 4,
}
WORDS = [
    *("--profile", "smoke", "--env", MINIATURE["env"], "--arms", "selfplay"),
    *("--seeds", "3", "--machines", "2", "--no-evaluate", "--json"),
    *set_options(SIZES),
]


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
