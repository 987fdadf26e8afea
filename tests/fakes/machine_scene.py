"""The watcher of a rented machine in this process, between a store, a service and fake workers."""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from tests.fakes.miniature import miniature_config
from tests.fakes.rented import FAKE_WORKER, ROOT, plan
from tests.fakes.scripted_http import Script
from tests.fakes.sentinels import sentinel
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.cloud.lease import grant
from tsgb.config import Arm, arm_overrides, arm_run_id
from tsgb.errors import ExitCode
from tsgb.setting_groups import CloudSettings, InstanceSettings, StoreSettings, WorkerSettings
from tsgb.worker.context import MachineContext
from tsgb.worker.machine import WorkerMachine

KEY = SecretStr(sentinel("instance-key"))
ARMS = (Arm.SELFPLAY, Arm.SFT)
TOTAL = {arm: miniature_config(arm_overrides(arm)).total_steps for arm in ARMS}
SLOW = {"step_seconds": 0.1}
PATIENCE = 60.0


class Scene:
    """A run, a service that destroys whatever asks, and the machine between them."""

    def __init__(self, directory: Path, url: str, script: Script) -> None:
        self.store = str(directory / "store")
        self.script = script
        self.environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        self.context = MachineContext(
            store=StoreSettings(),
            worker=WorkerSettings(
                cache_dir=directory / "cache",
                worker_command=shlex.split(FAKE_WORKER),
                max_parallel=2,
                poll_seconds=0.05,
                grace_seconds=30.0,
            ),
            instance=InstanceSettings(
                container_id="77",
                container_api_key=KEY,
                lease_poll_seconds=0.2,
                min_free_gb=1e-9,
                net_dev=directory / "none",
                alive_file=directory / "alive",
            ),
            cloud=CloudSettings(vast_url=url),
            environment=self.environment,
        )
        self.begin()

    def begin(self) -> None:
        """What the flow writes before it rents."""
        for arm in ARMS:
            config = miniature_config(arm_overrides(arm))
            self.run(arm).write_text("config.json", config.canonical())
        self.lease = grant(None, run="r1", attempt=1, owner="me", now=datetime.now(UTC))
        self.put(self.lease)

    def run(self, arm: Arm = Arm.SELFPLAY) -> RunStore:
        return open_run(f"{self.store}/{arm_run_id('r1', arm)}")

    def put(self, lease: Any) -> None:
        self.run().write_json("lease.json", lease.to_json())

    def plan(self, **runs: Mapping[str, Any]) -> None:
        self.environment["TSGB_FAKE"] = plan(**{name: dict(what) for name, what in runs.items()})

    def work(self, attempt: int = 1, **changes: Any) -> ExitCode:
        """Run the machine; `changes` are fields of its groups of settings."""
        context = self.context
        for name in ("worker", "instance", "cloud"):
            group = getattr(context, name)
            own = {
                key: changes.pop(key) for key in list(changes) if key in type(group).model_fields
            }
            context = replace(context, **{name: group.model_copy(update=own)})
        assert not changes, "no group has these settings"
        return WorkerMachine(context, f"{self.store}/r1", attempt, ARMS).run()

    def exit(self, attempt: int = 1) -> dict[str, Any]:
        return self.run().read_json(f"machines/{attempt:04d}/exit.json")

    @property
    def destroyed(self) -> int:
        return len([one for one in self.script.seen if one.method == "DELETE"])

    def claims(self) -> list[str]:
        try:
            return list(self.run().list("claims"))
        except FileNotFoundError:
            return []

    def meanwhile(self, ready: Callable[[], object], act: Callable[[], object]) -> None:
        """Do something as soon as it is time, while the machine works."""

        def work() -> None:
            ends_at = time.monotonic() + PATIENCE
            while time.monotonic() < ends_at:
                if ready():
                    act()
                    return
                time.sleep(0.02)

        threading.Thread(target=work, daemon=True).start()

    def started(self) -> bool:
        """Both workers are at work."""
        for arm in ARMS:
            try:
                self.run(arm).read_json("heartbeats/0001.json")
            except FileNotFoundError:
                return False
        return True
