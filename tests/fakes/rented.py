"""A run in a store of this machine, and rented machines of the simulator that train it.

    with Rented(tmp_path) as rented:
        rented.grant(1)
        number = rented.rent(1)
        until(lambda: not rented.vast.bill(number)["live"])
        assert rented.exit(1)["outcome"] == "done"

The containers run the real scripts of `infra/`; their workers are fakes unless a test says so.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from pydantic import SecretStr

from tests.fakes.miniature import miniature_config
from tests.fakes.vast.driver import Driver
from tests.fakes.vast.options import Options
from tests.fakes.vast.server import VastSimulator
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.checkpoint.urls import join_run
from tsgb.cloud.bundle import BootSpec, boot, pack_code, publish_code
from tsgb.cloud.connect import connect
from tsgb.cloud.lease import Lease, grant
from tsgb.cloud.provider import LaunchSpec
from tsgb.config import Arm, arm_overrides, arm_run_id

ROOT = Path(__file__).parents[2]
FAKE_WORKER = shlex.join([sys.executable, str(ROOT / "tests" / "fakes" / "worker.py")])
ARMS = (Arm.SELFPLAY, Arm.SFT)


class Rented:
    """A simulator, a run `r1` with two arms, and what the flow would do."""

    def __init__(
        self,
        directory: Path,
        *,
        store: str | None = None,
        user: str | None = None,
        password: str | None = None,
        **image: str,
    ) -> None:
        """Prepare.

        Args:
            directory: for everything that is left behind.
            store: its URL; a directory without it.
            user: of the store.
            password: of the store.
            image: more variables of the image.
        """
        self.directory = directory
        self.store = store or f"file://{directory}/store"
        self.user = user
        self.password = None if password is None else SecretStr(password)
        empty = directory / "no-network"
        empty.touch()
        self.image = {
            "TSGB_CACHE_DIR": str(directory / "cache"),
            "TSGB_CODE_DIR": str(directory / "code"),
            "TSGB_NET_DEV": str(empty),
            "TSGB_PYTHON": sys.executable,
            "TSGB_WORKER_COMMAND": FAKE_WORKER,
            "TSGB_LEASE_POLL_SECONDS": "0.3",
            "TSGB_POLL_SECONDS": "0.05",
            "TSGB_GRACE_SECONDS": "20",
            "TSGB_MIN_FREE_GB": "0.01",
            "PYTHONPATH": str(ROOT),
            **image,
        }
        options = Options(boot_seconds=(0.05, 0.05), image_env=self.image)
        self._simulator = VastSimulator(options)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._simulator)
        self.vast = self._stack.enter_context(Driver(self._simulator))
        for arm in ARMS:
            config = miniature_config(arm_overrides(arm))
            self.run(arm).write_text("config.json", config.canonical())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, arm: Arm = Arm.SELFPLAY) -> RunStore:
        url = join_run(self.store, arm_run_id("r1", arm))
        return open_run(url, self.user, self.password, deadline_seconds=5)

    def grant(self, attempt: int, *, seconds: float = 1200.0, owner: str = "me") -> Lease:
        """What the flow writes before it rents."""
        ttl = timedelta(seconds=seconds)
        lease = grant(None, run="r1", attempt=attempt, owner=owner, now=datetime.now(UTC), ttl=ttl)
        self.write(lease)
        return lease

    def write(self, lease: Lease) -> None:
        self.run().write_json("lease.json", lease.to_json())

    def boot(self, attempt: int, arms: Sequence[Arm] = ARMS, **more: Any) -> BootSpec:
        given = {
            "code": more.pop("code", None) or publish_code(self.run(), pack_code()),
            "vast_url": self._simulator.url,
            "webdav_user": self.user,
            "webdav_pass": self.password,
            "boot_seconds": 60.0,
            **more,
        }
        names = [arm.value for arm in arms]
        return boot(run_url=self.run().run_url, attempt=attempt, arms=names, **given)

    def rent(self, attempt: int, **more: Any) -> int:
        """An instance that boots as the flow's would."""
        made = self.boot(attempt, **more)
        offer = self.vast.search()[0]
        spec = LaunchSpec(
            image="img",
            label=f"tsgb/test/r1/{attempt}",
            price=1.1 * offer["min_bid"],
            disk_gb=20,
            onstart=made.onstart,
            env=made.env,
        )
        with connect(SecretStr(self._simulator.key), self._simulator.url) as provider:
            return provider.create(offer["ask_contract_id"], spec)

    def log(self, number: int) -> str:
        """What its container has said so far; nothing once it is destroyed."""
        try:
            return (
                Path(self._simulator._directory.name) / str(number) / "container.log"
            ).read_text()
        except FileNotFoundError:
            return ""

    def is_live(self, number: int) -> bool:
        return bool(self.vast.bill(number)["live"])

    def document(self, name: str) -> dict[str, Any] | None:
        try:
            return self.run().read_json(name)
        except FileNotFoundError:
            return None

    def exit(self, attempt: int) -> dict[str, Any] | None:
        return self.document(f"machines/{attempt:04d}/exit.json")

    def beat(self, attempt: int) -> dict[str, Any] | None:
        return self.document(f"machines/{attempt:04d}/beat.json")

    def requests(self, method: str, number: int) -> list[dict[str, Any]]:
        """What was asked of the service about an instance."""
        path = f"/api/v0/instances/{number}/"
        made = self.vast.sim("requests")["requests"]
        return [one for one in made if one["method"] == method and one["path"] == path]


def plan(**runs: dict[str, Any]) -> str:
    """`TSGB_FAKE` of the fake worker; `r1_sft` is the run `r1.sft`."""
    return json.dumps({name.replace("_", "."): what for name, what in runs.items()})
