"""A whole experiment with two endpoints as black boxes, one of whose workers is killed.

The command as a user gives it, real workers, and two servers on loopback: one speaks chat
completions, the other messages. While fresh attackers attack the second one, its worker gets
SIGKILL.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.endpoint_server import EndpointServer, Fault, serving
from tests.fakes.miniature import MINIATURE, SHORT_EVALUATION
from tests.fakes.sentinels import leaking_files, leaks, new_key

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
NUM_FIXED = 6 * SHORT_EVALUATION["scripted"]
ATTACKS = 48
AT_ONCE = 4


def settings() -> Iterator[str]:
    """The sizes of the miniature, as `--set` takes them."""
    sizes = {k: v for k, v in MINIATURE.items() if k not in {"profile", "env"}}
    for name, value in {**sizes, "evaluation": SHORT_EVALUATION}.items():
        inner = value if isinstance(value, dict) else {"": value}
        for key, one in inner.items():
            yield f"--set={name}{'.' if key else ''}{key}={json.dumps(one)}"


class Assassin:
    """Kills the worker of an evaluation when an endpoint gets a certain request."""

    def __init__(self, server: EndpointServer, request: int, reports: Path) -> None:
        self._plan, self._request, self._reports = server.next, request, reports
        self._server = server
        self.has_struck = False

    def next(self, prompt: str) -> Fault:
        if self._server.requests + 1 == self._request:
            self.has_struck = True
            [progress] = self._reports.glob("*/progress-0.json")
            os.kill(json.loads(progress.read_text())["pid"], signal.SIGKILL)
        return self._plan(prompt)


def experiment(tmp_path: Path, keys: list[str], servers: list[EndpointServer]) -> dict[str, Any]:
    """Give the command; return what it prints with `--json`."""
    declared = {"kind": "anthropic", "model": "m", "url": servers[1].url, "concurrency": AT_ONCE}
    lines = [f"{name} = {json.dumps(value)}" for name, value in declared.items()]
    (tmp_path / "targets.toml").write_text("\n".join(["[targets.wise]", *lines]))
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TSGB_", "RCLONE_"))}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tsgb.cli", "experiment", "--profile", "smoke", "--json"),
            *("--env", MINIATURE["env"], "--arms", "selfplay", "--run-id", "r1"),
            *("--target", "T_s", "--target", f"openai:big@{servers[0].openai}"),
            *("--target", "wise", "--targets-file", "targets.toml", "--adaptive", str(ATTACKS)),
            *settings(),
        ],
        env={
            **inherited,
            "PYTHONPATH": str(ROOT),
            "TSGB_CACHE_DIR": str(tmp_path / "cache"),
            "TSGB_STORE": str(tmp_path / "store"),
            "TSGB_MAX_PARALLEL": "1",
            "TSGB_RETRY_DELAY_SECONDS": "0",
            "TSGB_POLL_SECONDS": "0.1",
            "OPENAI_API_KEY": keys[0],
            "ANTHROPIC_API_KEY": keys[1],
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not leaks(done.stdout + done.stderr)
    return json.loads(done.stdout)


@pytest.mark.slow  # test_evaluate_endpoints.py attacks, test_responses_kills.py kills
def test_two_endpoints_are_attacked_and_a_kill_repeats_what_was_on_its_way(
    tmp_path: Path, migrated: Path
) -> None:
    (tmp_path / "cache" / "prefect").mkdir(parents=True)
    shutil.copy(migrated, tmp_path / "cache" / "prefect")
    keys = [new_key(), new_key()]
    with serving(key=keys[0]) as first, serving(key=keys[1]) as second:
        assassin = Assassin(second, NUM_FIXED + 8, tmp_path / "store" / "r1" / "reports")
        second.next = assassin.next  # type: ignore[method-assign]
        document = experiment(tmp_path, keys, [first, second])
        sent = {"big": first.requests, "wise": second.requests}
    summary = json.loads(Path(document["stage2"]["summary"]).read_text())
    assert document["stage2"]["state"] == "COMPLETED"
    assert not summary.get("invalid")
    rows = {row["target"]: row for row in document["results"] if row["guard"] == "none"}
    assert rows.keys() == {"T_s", "big", "wise"}
    for name, num in sent.items():
        [log] = (tmp_path / "cache" / "responses").glob(f"{name}-*.jsonl")
        kept = len(log.read_text().splitlines()) - 1
        assert NUM_FIXED < kept <= NUM_FIXED + ATTACKS
        assert num <= kept + (AT_ONCE if name == "wise" else 0)
        assert rows[name]["asr_no_guard"]["n"] == NUM_FIXED // 2
        assert rows[name]["adaptive_asr"] is not None
    assert assassin.has_struck
    page = Path(document["stage2"]["report"]).read_text()
    assert f"{ATTACKS} attacks sent at most" in page
    assert not leaking_files(tmp_path)
