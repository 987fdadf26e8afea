"""The card of an export has the figures of a report that lies near its checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

from tests.fakes import evaluation
from tests.fakes.command_line import Run
from tests.unit.export.conftest import read
from tsgb.checkpoint.run import open_run
from tsgb.eval.judge_records import JudgeRecord
from tsgb.eval.summarise import summarise


def test_realised_figures_of_a_report_nearby(tsgb: Run, here: Path) -> None:
    run = open_run(str(here.parent / "store" / "full"))
    assert tsgb("export-guard", "../store/full", "before").code == 0
    assert "No report of this checkpoint" in (here / "before" / "README.md").read_text()
    summary = summarise(
        evaluation.items(seeds=[0], num_prompts=24, num_attacks=24),
        evaluation.setup(seeds=[0]),
        num_draws=50,
    )
    provenance = summary.provenance.model_copy(
        update={"checkpoints": {"full/selfplay": read(here / "before").checkpoint.sha256}}
    )
    judge = JudgeRecord(name="refusal-phrases", weak=True)
    mine = summary.model_copy(update={"provenance": provenance, "judge": judge})
    run.write_text("reports/other/summary.json", summary.model_dump_json())
    run.write_text("reports/mine/summary.json", mine.model_dump_json())
    run.write_text("reports/torn/summary.json", mine.model_dump_json()[:-9])
    tsgb("export-guard", "../store/full", "after")
    card = (here / "after" / "README.md").read_text()
    assert f"Evaluation `{summary.eval_id}`" in card
    rows = re.findall(r"^\| (T_s|B_\w+) \|.*\d %", card, re.MULTILINE)
    assert rows == [target.name for target in summary.targets]
    assert "Judge: refusal-phrases. Weak: it looks for phrases alone" in card


def test_a_card_says_on_which_targets_no_protection_was_measurable(tsgb: Run, here: Path) -> None:
    run = open_run(str(here.parent / "store" / "full"))
    assert tsgb("export-guard", "../store/full", "first").code == 0
    targets = [
        target.model_copy(update={"min_leaks": 10_000} if target.name == "T_s" else {})
        for target in evaluation.TARGETS
    ]
    summary = summarise(
        evaluation.items(seeds=[0], num_prompts=24, num_attacks=24),
        evaluation.setup(seeds=[0], targets=targets),
        num_draws=50,
    )
    provenance = summary.provenance.model_copy(
        update={"checkpoints": {"full/selfplay": read(here / "first").checkpoint.sha256}}
    )
    mine = summary.model_copy(update={"provenance": provenance})
    run.write_text("reports/mine/summary.json", mine.model_dump_json())
    tsgb("export-guard", "../store/full", "then")
    card = (here / "then" / "README.md").read_text()
    assert "\nNo protection measurable on T_s: " in card
    assert "10000 leaks of the target.\n" in card
