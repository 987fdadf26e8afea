"""A report's own account: how long the evaluation took, and the command that starts its run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import evaluation as fake
from tests.fakes.contexts import worker_context
from tsgb.checkpoint.replays import ReplayRecord, write_replay
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.checkpoint.store import CheckpointStore
from tsgb.config import RunConfig, make_config
from tsgb.envs import make_environment
from tsgb.envs.glyph import GlyphEnvironment
from tsgb.errors import StoreError, UsageError
from tsgb.eval.merge import Part, merge
from tsgb.eval.records import Provenance, ReplayShare, Summary, TargetRecord
from tsgb.eval.request import plan, read_request, write_request
from tsgb.eval.transcripts import NUM_ADAPTIVE, TRANSCRIPTS, Transcript
from tsgb.targets.plugins import target_specs
from tsgb.types import CheckpointRef, Denominator
from tsgb.worker.report import report

Evaluated = Callable[..., RunStore]
ARMS = {name: fake.ARMS[name] for name in ("none", "sft", "selfplay")}


def config(seed: int) -> RunConfig:
    named = {"profile": "smoke", "seed": seed, "evaluation": {"bootstrap": 100}}
    return make_config(make_environment("glyph", world_seed=0).profile("smoke"), named)


def ref(arm: str, step: int) -> CheckpointRef:
    place: dict[str, Any] = {
        "name": f"step-{step:08d}-a0001-00000000",
        "attempt": 1,
        "writer": "00000000",
    }
    return CheckpointRef(
        run_url=f"file:///s/{arm}", step=step, episode=0, sha256="ab" * 32, **place
    )


def game(target: str, br_seed: int, number: int) -> Transcript:
    return Transcript(
        scenario_id="H-1",
        technique="frame",
        target=target,
        prompt=f"prompt {br_seed}.{number}",
        answer="an answer",
        violated=True,
        against="sft",
        br_seed=br_seed,
        verdicts=[],
    )


@pytest.fixture
def evaluated(tmp_path: Path) -> Evaluated:
    """Make a run whose training began long ago, with the filled cells of evaluation `e1`."""

    def make(
        seed: int = 0,
        *,
        asked: timedelta | None,
        games: int | None = None,
        own: Sequence[str] = (),
    ) -> RunStore:
        run = open_run(str(tmp_path / f"r{seed}"))
        run.write_text("config.json", config(seed).canonical())
        CheckpointStore(run).claim()
        (name,) = run.list("claims")
        run.write_json(f"claims/{name}", {"created_at": "2020-01-01T00:00:00+00:00"})
        write_request(
            run,
            "e1",
            {arm: ref(arm, config(seed).total_steps) for arm in ("selfplay", "sft")},
            None,
            target_class=own,
        )
        request = read_request(run, "e1")
        request["asked_at"] = (datetime.now(UTC) - asked).isoformat() if asked else None
        run.write_json("reports/e1/request.json", request)
        setup = fake.setup(ARMS, (seed,))
        mine = [TargetRecord(name=name, role="black_box") for name in target_specs(own)]
        targets = (*fake.TARGETS, *mine)
        items = fake.items(ARMS, (seed,), num_prompts=24, num_attacks=24, targets=targets)
        for cell in plan(config(seed), [target.name for target in targets]):
            content: dict[str, Any] = {"items": []}
            if cell.target is None:
                content = {
                    "items": [item.model_dump(mode="json") for item in items],
                    "thresholds": [t.model_dump(mode="json") for t in setup.thresholds],
                    "payoff": [],
                    "curves": [],
                    "variance": None,
                    "transcripts": [],
                }
            elif games is not None:
                content["transcripts"] = [
                    game(cell.target, cell.br_seed, number).model_dump(mode="json")
                    for number in range(games)
                ]
            run.write_text(f"reports/e1/cells/{cell.name}.json", json.dumps(content))
        return run

    return make


def made(*runs: RunStore) -> tuple[Provenance, str]:
    """What a report says of itself, and its page."""
    report(worker_context(Path("unused")), [run.run_url for run in runs], "e1")
    summary = Summary.model_validate_json(runs[0].read_text("reports/e1/summary.json"))
    return summary.provenance, runs[0].read_text("reports/e1/report.html")


def test_the_time_is_that_of_the_evaluation_not_of_the_training(evaluated: Evaluated) -> None:
    provenance, page = made(evaluated(asked=timedelta(seconds=100)))
    assert provenance.wall_seconds == pytest.approx(110, abs=10)
    assert f", evaluated in {provenance.wall_seconds:.0f} s</dd>" in page
    assert provenance.command == (
        "tsgb experiment --profile smoke --env glyph --seed 0 --arms selfplay,sft "
        "--set evaluation.bootstrap=100"
    )


def test_a_report_says_what_was_replayed(evaluated: Evaluated) -> None:
    run = evaluated(asked=None)
    provenance, page = made(run)
    assert provenance.replays == {}
    assert "Replayed" not in page
    total = config(0).total_steps

    def note(arm: RunStore, last: int, deviation: float) -> None:
        record = ReplayRecord(
            start=f"step-{0:08d}-a0001-00000000",
            stop=f"step-{last:08d}-a0001-00000000",
            start_sha256="a",
            stop_sha256="b",
            first_step=0,
            last_step=last,
            total_steps=total,
            deviation=deviation,
            where="",
            moved=0.1,
            tolerance=1e-4,
            at=datetime(2026, 11, 29, tzinfo=UTC),
        )
        write_replay(arm, record)

    note(run, total // 2, 0.0)
    note(run, total, 0.5)
    note(open_run(f"{run.run_url}.sft"), total, 0.0)
    provenance, page = made(run)
    assert provenance.replays == {
        "r0/selfplay": ReplayShare(share=total // 2 / total, deviating=1),
        "r0/sft": ReplayShare(share=1.0),
    }
    assert (
        "<dd>r0/sft: 100.0 % of its updates, trained again elsewhere, came to the same</dd>" in page
    )
    assert "came to the same; 1 stretch(es) did not</dd>" in page


def test_cells_of_two_dtypes_are_no_report(evaluated: Evaluated) -> None:
    run = evaluated(asked=timedelta(seconds=50))
    name = f"reports/e1/cells/{run.list('reports/e1/cells')[0]}"
    run.write_json(name, {**run.read_json(name), "dtype": "bfloat16"})
    with pytest.raises(UsageError, match=r"in bfloat16 and float32, .*: evaluate again"):
        made(run)
    run.write_json(name, {**run.read_json(name), "dtype": "float32"})
    _, page = made(run)
    assert "<dd>float32</dd>" in page, "cells of earlier versions, which name none, are in float32"


def test_runs_of_several_seeds_count_from_the_first_request(evaluated: Evaluated) -> None:
    first = evaluated(0, asked=timedelta(seconds=50))
    provenance, _ = made(first, evaluated(1, asked=timedelta(seconds=200)))
    assert provenance.wall_seconds == pytest.approx(210, abs=10)
    assert " --seed 0 --seeds 2 " in provenance.command


@pytest.mark.parametrize("stored", ["{}", '{"items": 5}', '{"items": [{}]}'])
def test_a_cell_of_another_form_is_named(evaluated: Evaluated, stored: str) -> None:
    run = evaluated(asked=None)
    name = run.list("reports/e1/cells")[0]
    run.write_text(f"reports/e1/cells/{name}", stored)
    with pytest.raises(StoreError, match=f"cells/{name} is no cell of this version .* delete it"):
        report(worker_context(Path("unused")), [run.run_url], "e1")


def test_an_unknown_time_is_not_told(evaluated: Evaluated) -> None:
    provenance, page = made(evaluated(asked=None))
    assert provenance.wall_seconds is None
    assert "evaluated in" not in page


def test_a_few_games_of_all_attackers_are_kept(evaluated: Evaluated) -> None:
    run = evaluated(asked=None, games=5)
    _, page = made(run)
    games = TRANSCRIPTS.validate_json(run.read_text("reports/e1/transcripts.json"))
    assert Counter(game.target for game in games) == {t.name: NUM_ADAPTIVE for t in fake.TARGETS}
    assert page.count("an answer") == len(games)
    assert "an answer" not in run.read_text("reports/e1/results.jsonl")
    assert "an answer" not in run.read_text("reports/e1/summary.json")


def test_cells_of_an_earlier_version_have_no_games(evaluated: Evaluated) -> None:
    run = evaluated(asked=None)
    _, page = made(run)
    assert "transcripts.json" not in run.list("reports/e1")
    assert "What adaptive attackers wrote" not in page


def test_a_report_asks_for_the_leaks_that_its_world_asks_for(evaluated: Evaluated) -> None:
    class Asking(GlyphEnvironment):
        def denominator(self, target: str) -> Denominator | None:
            return Denominator(leaks=10_000, asr=0.5) if target == "T_s" else None

    run = evaluated(asked=None)
    summary = merge([Part(run, config(0))], Asking(world_seed=0), "e1", "tsgb")
    asked = {u.target: u.measurable for u in summary.unguarded if u.metric == "asr"}
    assert asked == {"T_s": False, "B_near": True, "B_mid": True, "B_far": True}
    stored = Summary.model_validate_json(run.read_text("reports/e1/summary.json"))
    assert stored == summary
    figures = {(r.guard, r.target): r.asr for r in stored.results if r.seed is None}
    assert figures["selfplay", "T_s"] is None
    assert figures["selfplay", "B_mid"] is not None


def test_a_black_box_of_the_users_must_leak_also_where_its_world_asks_for_nothing(
    evaluated: Evaluated,
) -> None:
    run = evaluated(asked=None, own=["no_such_module:Bot"])
    made(run)
    summary = Summary.model_validate_json(run.read_text("reports/e1/summary.json"))
    asked = {target.name: (target.added, target.min_leaks) for target in summary.targets}
    assert asked.pop("Bot") == (True, 1)
    assert set(asked.values()) == {(False, 0)}


def test_a_request_is_as_old_as_its_first_cell(tmp_path: Path) -> None:
    run = open_run(str(tmp_path / "r1"))

    def ask() -> str:
        write_request(run, "e1", {"selfplay": ref("selfplay", 9)}, ["T_s"])
        return read_request(run, "e1")["asked_at"]

    first = ask()
    second = ask()
    assert second > first, "nothing was evaluated in between"
    run.write_json("reports/e1/cells/scripted.json", {"items": []})
    assert ask() == second, "a cell was made, and goes into the report"
