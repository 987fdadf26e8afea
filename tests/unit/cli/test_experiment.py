"""`tsgb experiment`: what reaches the flow, and what a person or a program is shown."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import evaluation
from tests.fakes.command_line import Run
from tsgb.config import Profile
from tsgb.eval.effect import effect_sentence
from tsgb.eval.records import Summary
from tsgb.eval.summarise import summarise
from tsgb.run_options import RunOptions


@pytest.fixture(scope="module")
def summary() -> Summary:
    setup = evaluation.setup(seeds=[0])
    items = evaluation.items(seeds=[0], num_prompts=24, num_attacks=24)
    return summarise(items, setup, num_draws=50)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, summary: Summary) -> dict[str, Any]:
    """What a stand-in for the flow was called with."""
    path = tmp_path / "summary.json"
    path.write_text(summary.model_dump_json())
    seen: dict[str, Any] = {}

    def run_experiment(options: RunOptions) -> dict[str, Any]:
        seen.update(options.model_dump(exclude_unset=True))
        sys.stderr.write("progress\n")
        return {"run_id": "r1", "stage2": {"summary": str(path), "report": "/r/report.html"}}

    monkeypatch.setattr("flows.experiment.run_experiment", run_experiment)
    return seen


def test_options_reach_the_flow(tsgb: Run, asked: dict[str, Any]) -> None:
    words = (
        "experiment --profile smoke --env canary --seed 3 --seeds 2 --world-seed 4 --store /s"
        " --run-id r1 --arms selfplay,sft --target T_s --target openai:m@https://h/v1"
        " --targets-file t.toml --adaptive 600 --max-requests 900 --max-cost 3"
        " --target-class mine:Bot --judge-class mine:Judge --judge exact --fresh"
        " --human-labels labels.csv"
        " --guard always-block --guard keywords:words.txt"
        " --train-data a.csv --train-data b.csv --map prompt=q"
        " --model a/b --target-model c/d --black-box e/f --black-box g/h"
        " --set selfplay.rounds=2 --set guard.loss=exact_pg --set selfplay.pool=false --json"
    )
    assert tsgb(*words.split()).code == 0
    assert asked == {
        "run": "r1",
        "profile": Profile.SMOKE,
        "env": "canary",
        "model": "a/b",
        "target_model": "c/d",
        "black_boxes": ["e/f", "g/h"],
        "seed": 3,
        "seeds": 2,
        "world_seed": 4,
        "store": "/s",
        "arms": ["selfplay", "sft"],
        "targets": ["T_s", "openai:m@https://h/v1"],
        "targets_file": "t.toml",
        "adaptive": 600,
        "max_requests": 900,
        "max_cost": 3.0,
        "target_class": ["mine:Bot"],
        "judge_class": "mine:Judge",
        "judge": "exact",
        "human_labels": "labels.csv",
        "guards": ["always-block", "keywords:words.txt"],
        "fresh": True,
        "train_data": ["a.csv", "b.csv"],
        "train_map": ["prompt=q"],
        "overrides": {"selfplay": {"rounds": 2, "pool": False}, "guard": {"loss": "exact_pg"}},
    }


def test_defaults(tsgb: Run, asked: dict[str, Any]) -> None:
    tsgb("experiment")
    given = {name: value for name, value in asked.items() if value is not None}
    assert given == {
        "profile": Profile.DEMO,
        "env": "glyph",
        "seed": 0,
        "world_seed": 0,
        "adaptive": 0,
        "fresh": False,
    }


@pytest.mark.usefixtures("asked")
def test_json_is_one_document_on_stdout(tsgb: Run) -> None:
    ended = tsgb("experiment", "--json")
    assert json.loads(ended.out)["run_id"] == "r1"
    assert ended.err == "progress\n"


@pytest.mark.usefixtures("asked")
def test_people_get_figures_verdict_and_report(tsgb: Run, summary: Summary) -> None:
    ended = tsgb("experiment")
    assert ended.code == 0
    for word in ("Self-play", "Frozen attacker", "T_s", "B_far", "Fresh attackers"):
        assert word in ended.out
    assert re.search(r"\d\.\d %.*\n.*\d+\.\d+.\d+\.\d", ended.out)
    words = " ".join(ended.out.split())
    assert words.startswith(effect_sentence(summary))
    assert summary.verdict.sentence in words
    assert ended.out.endswith("Report: /r/report.html\n")
