"""A tiny exported guard, and `tsgb serve` with one as a real process.

with serving(export_tiny(tmp_path), "--queue", "8", log=tmp_path / "log") as served:
    httpx.post(f"{served.url}/v1/moderations", json={"input": "hello"})
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tests.fakes.families import save_family
from tests.fakes.runs import save_run
from tsgb.cli import app
from tsgb.config import make_config
from tsgb.envs import make_environment

PATIENCE_SECONDS = 120


def export_tiny(root: Path, family: str = "llama3") -> Path:
    """Train a random model a little, and export its guard with its base."""
    return export_of(root, str(save_family(root / "base", family)))


def export_of(root: Path, pretrained: str, cache: Path | None = None) -> Path:
    """Train a pretrained model a little, and export its guard with its base."""
    cache = root / "cache" if cache is None else cache
    config = make_config(
        make_environment("canary", world_seed=0).profile("smoke"),
        {"profile": "smoke", "env": "canary"},
        {"model": {"pretrained": pretrained, "rank": 2, "dtype": "float32"}},
        {"calibration": {"fpr": 0.3, "delta": 0.3, "num": 8}},
    )
    save_run(root / "run", config, cache, until_step=3)
    command = ["export-guard", str(root / "run"), str(root / "out"), "--env", "canary"]
    done = CliRunner().invoke(
        app,
        [*command, "--dtype", "float32"],
        env={"TSGB_CACHE_DIR": str(cache)},
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    return root / "out"


@dataclass
class Served:
    """A process that serves."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""

    def events(self) -> list[dict[str, Any]]:
        """The lines that it wrote so far."""
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        return [json.loads(line) for line in lines if line.startswith("{")]


@contextmanager
def serving(
    directory: Path, *options: str, log: Path, environment: Mapping[str, str] | None = None
) -> Generator[Served]:
    """Start it on any port, wait until it answers, and end it."""
    command = [sys.executable, "-m", "tsgb.cli", "serve", str(directory), "--port", "0", *options]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TSGB_")}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env={**kept, **(environment or {})}, stdout=file, stderr=file, cwd=log.parent
        )
    served = Served(process, log)
    try:
        end = time.monotonic() + PATIENCE_SECONDS
        while not served.url:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)
            served.url = next((e["url"] for e in served.events() if e["event"] == "serving"), "")
        yield served
    finally:
        process.kill()
        process.wait()
