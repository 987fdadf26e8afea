"""`tsgb manager run` on the simulated service, with real processes: everything goes wrong once.

Preemptions, a host that never boots, a rental whose answer is lost, a zombie that starts again
by itself. The end is that of a run which nobody disturbed, bit for bit, and the bill is right.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fakes.manager import RUN, Manager
from tests.fakes.miniature import MINIATURE, TRUST
from tests.fakes.vast.driver import until
from tests.integration.test_kill import STATE, TENSORS, undisturbed, without_time
from tests.integration.test_manager_ends import set_options
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.cloud.orphans import InstanceLabel
from tsgb.config import Arm, arm_overrides, make_config
from tsgb.envs import make_environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

CENT = Decimal("0.01")


@dataclass(frozen=True)
class Plan:
    """What is trained."""

    env: str
    overrides: Mapping[str, Any]
    preemptions: int


PLANS = [
    pytest.param(
        Plan(
            env=MINIATURE["env"],
            overrides={
                **{k: v for k, v in MINIATURE.items() if k not in {"profile", "env"}},
                "selfplay": {**MINIATURE["selfplay"], "rounds": 80},
                "checkpoint_interval": 4,
            },
            preemptions=2,
        ),
        id="miniature",
    ),
    pytest.param(
        Plan(env="glyph", overrides={"selfplay": {"rounds": 8}}, preemptions=5),
        id="glyph",
        marks=pytest.mark.slow,
    ),
]


class Trouble(threading.Thread):
    """Preempts each machine soon after it began to train; the first one comes back by itself."""

    def __init__(self, manager: Manager, preemptions: int) -> None:
        super().__init__(daemon=True)
        self.vast = manager.vast
        self.documents = manager.documents
        self.left = preemptions
        self.over = threading.Event()
        self.zombie: int | None = None
        self._rng = Random(5)

    def run(self) -> None:
        done: set[int] = set()
        while self.left and not self.over.wait(0.1):
            for row in self.vast.sim("state")["instances"]:
                if row["phase"] == "running" and row["id"] not in done and self._trains(row):
                    done.add(row["id"])
                    self.over.wait(self._rng.uniform(0.0, 1.0))
                    self._preempt(row["id"])

    def _trains(self, row: Mapping[str, Any]) -> bool:
        label = InstanceLabel.parse(row["label"])
        assert label is not None
        beat = self.documents.heartbeat(label.attempt) or {}
        arms = beat.get("arms") or {}
        return any((arm.get("step") or 0) > 0 for arm in arms.values())

    def _preempt(self, number: int) -> None:
        if self.zombie is None:
            self.zombie = number
            self._bring_back(number)
        else:
            self.vast.do(number, "preempt", outage_seconds=600)
        self.left -= 1

    def _bring_back(self, number: int) -> None:
        """It starts again by itself while the flow's wishes to destroy it are lost."""
        fault = {"method": "DELETE", "act": "answer", "preset": "bad_gateway", "times": None}
        self.vast.sim("faults", fault)
        self.vast.do(number, "preempt", outage_seconds=600)
        until(lambda: self._lost_wishes() > 0)
        self.vast.do(number, "resume")
        until(lambda: self.vast.truth(number)["num_starts"] == 2)
        self.over.wait(2.0)
        self.vast.http.request("DELETE", "/_sim/faults")
        lost = {"method": "PUT", "path": "/asks/", "when": "after", "act": "close"}
        self.vast.sim("faults", lost)

    def _lost_wishes(self) -> int:
        return sum(fault["taken"] for fault in self.vast.sim("faults", None)["faults"])


@pytest.mark.parametrize("plan", PLANS)
def test_everything_goes_wrong_once(
    plan: Plan, tmp_path: Path, report: Callable[[str], None]
) -> None:
    configs = {
        arm: make_config(
            make_environment(plan.env, world_seed=0, trust=TRUST).profile("smoke"),
            plan.overrides,
            {"profile": "smoke", "env": plan.env},
            arm_overrides(arm),
        )
        for arm in (Arm.SELFPLAY, Arm.SFT)
    }
    with Manager(tmp_path, list_lag_seconds=1.0) as manager:
        wanted = {arm: undisturbed(config, manager.cache)[0] for arm, config in configs.items()}
        manager.vast.sim(f"machines/{manager.first_choice()}", {"fate": "never_boots"})
        trouble = Trouble(manager, plan.preemptions)
        trouble.start()
        try:
            sets = set_options(plan.overrides)
            arguments = ["--profile", "smoke", "--env", plan.env, "--arms", "selfplay,sft"]
            code, out = manager.run(*arguments, "--no-evaluate", "--json", *sets)
        finally:
            trouble.over.set()
            trouble.join()
        log = manager.log.read_text()
        assert code == 0, log
        assert trouble.left == 0, f"it was over before all trouble had come\n{log}"
        for arm, config in configs.items():
            reader = CheckpointReader(manager.open(arm))
            ref = reader.newest()
            assert ref is not None
            assert ref.step == config.total_steps
            files = reader.read(ref)
            assert [name for name in TENSORS if files[name] != wanted[arm][name]] == []
            assert without_time(files[STATE]) == without_time(wanted[arm][STATE])
        bill = manager.vast.sim("ledger")
        planned = manager.vast.sim("faults")["faults"]
        ends = [found.result.cause.value for found in manager.documents.attempts() if found.result]
        spent = Decimal(manager.ledger().spent) / 10**6
        summary = manager.open().read_json("summary.json")
        zombie = manager.vast.truth(trouble.zombie or 0)
        tasks = task_names(manager.directory / "home" / "prefect")
    assert tasks == {"segment", "recover", "launch", "monitor", "terminate", "verify"}, (
        "the same as of a run on this computer"
    )
    assert not any(one["live"] for one in bill["instances"].values())
    assert bill["max_live"] == 1
    assert [fault["taken"] for fault in planned] == [1], "the answer to a rental was lost"
    assert ends.count("preempted") >= plan.preemptions
    assert "bad_host" in ends
    assert ends[-1] == "done"
    assert zombie["num_starts"] == 2, "it came back by itself"
    assert abs(spent - Decimal(bill["spent"])) < CENT
    assert len(summary["machines"]) == len(bill["instances"])
    assert sum(machine["updates"] for machine in summary["machines"]) == summary["updates"]
    for machine in summary["machines"]:
        # Both arms train at the same time.
        assert 0 <= machine["useful_seconds"] <= len(configs) * machine["hold_seconds"]
        assert machine["updates"] > 0 or machine["useful_seconds"] == 0
    # On a busy computer the last machine may find that all is trained.
    assert sum(machine["useful_seconds"] for machine in summary["machines"]) > 0
    assert json.loads(out)["stage1"]["state"] == "COMPLETED"
    report(f"{len(ends)} attempts {ends}, ${spent} in the books, ${bill['spent']} billed")


def task_names(home: Path) -> set[str]:
    """The names of all task runs, without their numbers."""
    (database,) = home.glob(f"{RUN}-*/prefect.db")
    with closing(sqlite3.connect(database)) as connection:
        return {
            name.partition("-")[0] for (name,) in connection.execute("select name from task_run")
        }


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Figures for whoever runs it with -s."""

    def tell(line: str) -> None:
        record_property("figures", line)
        sys.stdout.write(f"\n{line}\n")

    return tell
