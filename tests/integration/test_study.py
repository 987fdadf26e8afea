"""A whole study in miniature: `tsgb experiment --profile study`, killed once, then read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
WORLD = """
from tsgb.envs.glyph import GlyphEnvironment

class Small(GlyphEnvironment):
    name = "small"

    def recipes(self, profile):
        return super().recipes("smoke")
"""
SIZES = (
    "attacker.sft_steps=10 attacker.warmup_steps=3 attacker.scenarios_per_step=8 guard.sft_steps=20"
    " guard.batch=64 guard.replay_batch=16 selfplay.rounds=1 selfplay.attacker_steps=3"
    " selfplay.guard_steps=5 selfplay.payoff_attacks=32 selfplay.buffer=64 evaluation.prompts=48"
    " evaluation.warmup_steps=2 evaluation.attack_steps=2 evaluation.scripted=150"
    " evaluation.bootstrap=200"
)


def begin(folder: Path) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TSGB_", "RCLONE_"))}
    words = "--profile study --env small_world:Small --run-id s --seed 5 --seeds 2 --world-seed 11"
    sizes = [word for size in SIZES.split() for word in ("--set", size)]
    return subprocess.Popen(
        [sys.executable, "-m", "tsgb.cli", "experiment", *words.split(), *sizes, "--json"],
        cwd=folder,
        env={**kept, "TSGB_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": f"{ROOT}:{folder}"},
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def summary_of(part: str) -> dict[str, Any]:
    return json.loads((Path(part).parent / "summary.json").read_text())


def test_a_study_that_is_killed_goes_on_and_says_what_it_found(tmp_path: Path) -> None:
    (tmp_path / "small_world.py").write_text(WORLD)
    home = tmp_path / "runs" / "s"
    first = begin(tmp_path)
    try:
        deadline = time.monotonic() + 900
        while not (home / "study.html").exists():  # the first of four parts is read
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=60)
    finally:
        first.kill()
    partial = json.loads((home / "study.json").read_text())
    assert partial["levels"] == [0.0]
    assert {gap["coverage"] for gap in partial["missing"]} >= {0.25, 0.5, 1.0}

    second = begin(tmp_path)
    out, err = second.communicate(timeout=1500)
    assert second.returncode == 0, err
    assert "about " in err
    document = json.loads(out)
    assert list(document["parts"]) == ["w11-c000", "w11-c100", "w11-c025", "w11-c050"]
    summaries = {name: summary_of(part) for name, part in document["parts"].items()}
    assert {name: found.get("coverage", 1.0) for name, found in summaries.items()} == {
        "w11-c000": 0.0,
        "w11-c100": 1.0,
        "w11-c025": 0.25,
        "w11-c050": 0.5,
    }
    for found in summaries.values():
        assert found["matched"]
        assert found["threshold_rule"] == "fpr=0.01, realised"
        assert "world.coverage" in found["provenance"]["command"] or found.get("coverage") is None
        benign = [row["fpr"]["value"] for row in found["results"] if row.get("fpr")]
        assert benign
    study = json.loads((home / "study.json").read_text())
    assert study["levels"] == [0.0, 0.25, 0.5, 1.0]
    assert not study["missing"]
    assert {claim["id"] for claim in study["claims"]} == {"P1", "P2", "P3", "P4"}
    assert document["claims"] == {claim["id"]: claim["verdict"] for claim in study["claims"]}
    costs = json.loads((home / "costs.json").read_text())
    assert set(costs) == set(document["parts"])
    assert all(spent["cpu_seconds"] > 0 for part in costs.values() for spent in part.values())
    page = (home / "study.html").read_text()
    assert "--profile study" in page
    assert "<svg" in page
    assert (home / "gain.svg").read_text().lstrip().startswith("<")
