"""The log of a target, read by inspect_ai itself in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.testing

from tests.fakes import evaluation as fake
from tests.fakes.stored_evaluation import ARMS, store_evaluation
from tsgb.cli import app
from tsgb.eval.records import Item, ItemSource

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

INSPECT = "inspect-ai==0.3.285"
READER = """
import json, sys
from inspect_ai.log import list_eval_logs, read_eval_log, read_eval_log_samples
found = []
for info in list_eval_logs(sys.argv[1]):
    head, log = read_eval_log(info.name, header_only=True), read_eval_log(info.name)
    assert head.results == log.results and head.status == log.status
    streamed = list(read_eval_log_samples(info.name, all_samples_required=False))
    assert sorted(s.id for s in streamed) == sorted(s.id for s in log.samples)
    scored = [s for s in log.samples if s.scores]
    found.append({
        "task": info.task,
        "task_id": info.task_id,
        "model": log.eval.model,
        "status": log.status,
        "samples": len(log.samples),
        "errors": sum(s.error is not None for s in log.samples),
        "asr": {s.name: s.metrics["asr"].value for s in log.results.scores},
        "mean": {k: sum(s.scores[k].value for s in scored) / len(scored) for k in scored[0].scores},
        "text": log.samples[0].input,
    })
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python in an environment with inspect_ai and without TSGB."""
    place = tmp_path_factory.mktemp("elsewhere") / "venv"
    python = place / "bin" / "python"
    for command in (
        ["uv", "venv", "-q", "--python", sys.executable, str(place)],
        ["uv", "pip", "install", "-q", "--python", str(python), INSPECT],
    ):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or str(error)
            pytest.skip(f"{INSPECT} cannot be had: {reason[-200:]}")
    return python


def test_it_is_listed_and_read_with_all_its_samples(tmp_path: Path, elsewhere: Path) -> None:
    def changed(item: Item) -> Item:
        lost = item.source is ItemSource.SCRIPTED and item.item_id in {"static-0", "wide-3"}
        if not lost or item.seed or item.target != "B_mid":
            return item
        return item.model_copy(update={"violated": None, "error": "http_500"})

    arms = {**ARMS, "x<b>\u202e&$": fake.Arm(0.5, 1.0, 3.0, 0.1)}
    summary = store_evaluation(tmp_path / "e", arms, changed=changed)
    logs = tmp_path / "logs"
    words = ["report", str(tmp_path / "e"), "--format", "inspect", "--out", str(logs)]
    assert typer.testing.CliRunner().invoke(app, words).exit_code == 0
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TSGB_", "PYTHON", "VIRTUAL"))}
    home = {**kept, "HOME": str(tmp_path)}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, env=home, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    found = {log["model"]: log for log in json.loads(run(str(elsewhere), "-c", READER, str(logs)))}
    assert found.keys() == {f"tsgb/{target.name}" for target in summary.targets}
    rows = {(r.guard, r.target): r for r in summary.results if r.seed is None}
    for target in summary.targets:
        log = found[f"tsgb/{target.name}"]
        errors = 2 if target.name == "B_mid" else 0
        assert (log["status"], log["samples"], log["errors"]) == ("success", 5 * 3 * 48, errors)
        for guard in arms:
            rate = rows[guard, target.name].asr
            assert rate is not None
            name = "no_guard" if guard == "none" else guard
            assert log["asr"][name] == pytest.approx(rate.value)
            # A mean over samples and not over seeds, of which two have fewer.
            assert log["mean"][name] == pytest.approx(rate.value, abs=1e-3)
        assert log["task"] == "tsgb"
        assert "_" not in log["task_id"]
    inspect = str(elsewhere.with_name("inspect"))
    listed = json.loads(run(inspect, "log", "list", "--json", "--log-dir", str(logs)))
    assert len(listed) == len(summary.targets)
    header = json.loads(run(inspect, "log", "headers", *(entry["name"] for entry in listed)))
    assert {one["eval"]["model"] for one in header} == found.keys()
