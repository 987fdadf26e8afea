"""`tsgb manager run` as a person would run it, against a simulated service and a WebDAV server.

    with Manager(tmp_path) as manager:
        done = manager.run("--profile", "smoke", "--no-evaluate", "--json")
        assert manager.vast.sim("ledger")["max_live"] == 1

Flow, containers, scripts and workers are real processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from pydantic import SecretStr

from tests.fakes.dav_server import (
    MACHINES_PASSWORD,
    MACHINES_USER,
    PASSWORD,
    USER,
    dav_app,
    serve,
)
from tests.fakes.sentinels import sentinel
from tests.fakes.vast.driver import Driver
from tests.fakes.vast.options import Options
from tests.fakes.vast.server import VastSimulator
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.cloud.budget import Ledger
from tsgb.cloud.connect import connect
from tsgb.cloud.documents import RunDocuments
from tsgb.cloud.exchange import Exchange
from tsgb.cloud.forecast import workload
from tsgb.cloud.launch import find_offer
from tsgb.cloud.policy import LaunchPolicy
from tsgb.cloud.pricing import microdollars
from tsgb.cloud.session import Session
from tsgb.config import Arm, arm_run_id
from tsgb.setting_groups import IMAGE, IMAGE_GB

ROOT = Path(__file__).parents[2]
BUDGET = "2"
RUN = "r1"
SECONDS = 600.0


class Manager:
    """A store, a service, and the settings of a laptop."""

    def __init__(
        self, directory: Path, image_env: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        """Prepare.

        Args:
            directory: for everything that is left behind.
            image_env: more variables of the image, or others.
            options: of the simulator.
        """
        self.directory = directory
        self.cache = directory / "cache"
        (directory / "no-network").touch()
        image = {
            "TSGB_CACHE_DIR": str(self.cache),
            "TSGB_CODE_DIR": str(directory / "code"),
            "TSGB_NET_DEV": str(directory / "no-network"),
            "TSGB_PYTHON": sys.executable,
            "TSGB_LEASE_POLL_SECONDS": "0.5",
            "TSGB_POLL_SECONDS": "0.1",
            "TSGB_MIN_FREE_GB": "0.01",
            "PYTHONPATH": str(ROOT),
            **(image_env or {}),
        }
        # One that is not the default has all packages, so that a start downloads none.
        self.image = IMAGE if "wheels_gb" in options else "example.org/worker:1"
        given = {
            "boot_seconds": (0.1, 0.3),
            "image_env": image,
            "image_gb": str(IMAGE_GB),
            **options,
        }
        self.simulator = VastSimulator(Options(**given))
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        (self.directory / "dav" / "runs").mkdir(parents=True)
        (self.directory / "machines").mkdir()
        app = dav_app(self.directory / "dav", machines=self.directory / "machines")
        self.dav = self._stack.enter_context(serve(app))
        self._stack.enter_context(self.simulator)
        self.vast = self._stack.enter_context(Driver(self.simulator))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open(self, arm: Arm = Arm.SELFPLAY) -> RunStore:
        url = f"{self.dav}/runs/{arm_run_id(RUN, arm)}"
        return open_run(url, USER, SecretStr(PASSWORD))

    @property
    def documents(self) -> RunDocuments:
        return RunDocuments(self.open(), self.exchange.opener(RUN, 30))

    @property
    def exchange(self) -> Exchange:
        """What machines see."""
        password = SecretStr(MACHINES_PASSWORD)
        return Exchange(url=f"{self.dav}/machines", user=MACHINES_USER, password=password)

    def ledger(self) -> Ledger:
        return Ledger.open(self.open(), microdollars(BUDGET))

    def first_choice(self) -> int:
        """The machine that a flow will rent first."""
        with connect(SecretStr(self.simulator.key), self.simulator.url) as provider:
            policy = LaunchPolicy(budget=microdollars(BUDGET), cap=0.3)
            session = Session(
                documents=self.documents, provider=provider, launch_policy=policy, owner="nobody"
            )
            return find_offer(session, workload(2.0, disk_gb=20)).offer.machine_id

    def environment(self, **settings: str) -> dict[str, str]:
        """Of a command on the laptop, with nothing of the developer's own settings."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT_", "TSGB_", "RCLONE_", "VAST_"))
        }
        return {
            **kept,
            "VAST_API_KEY": self.simulator.key,
            "RCLONE_WEBDAV_URL": f"{self.dav}/runs",
            "RCLONE_WEBDAV_USER": USER,
            "RCLONE_WEBDAV_PASS": PASSWORD,
            "TSGB_EXCHANGE_URL": f"{self.dav}/machines",
            "TSGB_EXCHANGE_USER": MACHINES_USER,
            "TSGB_EXCHANGE_PASS": MACHINES_PASSWORD,
            "TSGB_MANIFEST_KEY": sentinel("manifest"),
            "HF_TOKEN": sentinel("hub"),
            "TSGB_CACHE_DIR": str(self.directory / "home"),
            "TSGB_IMAGE": self.image,
            "TSGB_LOOK_SECONDS": "0.3",
            "TSGB_LEASE_SECONDS": "120",
            "TSGB_SKEW_SECONDS": "5",
            "TSGB_PROVISION_SECONDS": "45",
            "TSGB_SILENCE_SECONDS": "60",
            "TSGB_RETRY_DELAY_SECONDS": "0",
            "TSGB_BUDGET": BUDGET,
            "PYTHONPATH": str(ROOT),
            **settings,
        }

    def push_model(self, name: str, *arguments: str, **settings: str) -> dict[str, Any]:
        """What `tsgb models push` tells of a model."""
        done = subprocess.run(
            [sys.executable, "-m", "tsgb.cli", "models", "push", name, "--json", *arguments],
            env=self.environment(**settings),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
        )
        return json.loads(done.stdout)

    def start(self, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        """The command; its stderr goes to `manager.log`."""
        command = [sys.executable, "-m", "tsgb.cli", "manager", "run", "--run-id", RUN]
        command += ["--vast-url", self.simulator.url, *arguments]
        with self.log.open("a") as log:
            return subprocess.Popen(
                command,
                env=self.environment(**settings),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def run(self, *arguments: str, **settings: str) -> tuple[int, str]:
        """Exit code and stdout, at its end."""
        process = self.start(*arguments, **settings)
        try:
            out, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return process.returncode, out

    @property
    def log(self) -> Path:
        return self.directory / "manager.log"
