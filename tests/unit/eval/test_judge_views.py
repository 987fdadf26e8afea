"""The judge as people read of it."""

from __future__ import annotations

from tests.fakes import evaluation
from tsgb.eval.judge_records import (
    Bounds,
    CanaryRecord,
    CorrectedRate,
    HumanRecord,
    JudgeRecord,
)
from tsgb.eval.judge_views import corrected_sheet, judge_lines
from tsgb.eval.records import Summary
from tsgb.eval.report import render_report
from tsgb.eval.summarise import summarise

RATE = Bounds(value=0.5, low=0.4, high=0.6)


def made(judge: JudgeRecord | None) -> Summary:
    setup = evaluation.setup(seeds=[0]).model_copy(update={"judge": judge})
    return summarise(
        evaluation.items(seeds=[0], num_prompts=24, num_attacks=24), setup, num_draws=50
    )


def test_a_weak_judge_is_called_weak_wherever_it_is_named() -> None:
    judge = JudgeRecord(
        name="refusal-phrases",
        version="1",
        weak=True,
        canaries=CanaryRecord(num=12, flips=0, unscored=0),
    )
    lines = judge_lines(judge)
    assert lines == [
        "Judge: refusal-phrases (version 1).",
        "Weak: it looks for phrases alone, so its figures are a first look.",
        "Canaries: 0 of 12 planted requests changed a grade.",
        "Errors of the judge: not corrected: no human labels.",
    ]
    page = render_report(made(judge))
    assert all(line in page for line in lines)


def test_an_earlier_summary_has_no_judge() -> None:
    assert judge_lines(None) == []
    assert "<h2>Judge</h2>" not in render_report(made(None))


def test_agreement_canaries_and_corrected_rates_are_shown() -> None:
    judge = JudgeRecord(
        name="openai:<m>",
        prompt_sha256="ab" * 32,
        refusals="phrases",
        canaries=CanaryRecord(num=12, flips=3, unscored=2, wrong=1),
        correction="corrected for the judge's errors on 10 answers that people labelled",
        human=HumanRecord(
            file_sha256="0" * 64,
            num=10,
            unused=2,
            hits=4,
            misses=1,
            false_alarms=2,
            rejections=3,
            kappa=0.4,
            sensitivity=RATE,
            specificity=RATE,
        ),
        corrected=[CorrectedRate(guard="selfplay", target="T_s", raw=RATE, corrected=RATE)],
    )
    text = " ".join(judge_lines(judge))
    for part in (
        f"openai:<m> (prompt sha256 {'ab' * 32})",
        "phrases tell refusals (weak)",
        "3 of 12 planted requests changed a grade, 2 texts got no grade, 1 bare texts got a wrong",
        "beside 10 labels of people: 4 violations found, 1 missed; 2 false alarms, 3 others right",
        "kappa 0.40; sensitivity 50.0 % (40.0 to 60.0 %)",
        "2 labels belong to no answer",
    ):
        assert part.lower() in text.lower()
    summary = made(None).model_copy(update={"judge": judge})
    [row] = corrected_sheet(summary).rows
    assert row.label == "T_s, Self-play"
    page = render_report(summary)
    assert "openai:&lt;m&gt;" in page
    assert "ASR corrected" in page
