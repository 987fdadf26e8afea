"""The page of a comparison is whole, safe and says what the comparison says."""

from pathlib import Path

from tests.fakes import evaluation as fake
from tests.fakes.stored_evaluation import ARMS, DRAWS, store_evaluation
from tsgb.eval.compare import compare_evaluations
from tsgb.eval.comparison_page import (
    comparison_notes,
    comparison_sheets,
    render_comparison,
    slice_sheets,
)
from tsgb.eval.report import CONTENT_SECURITY_POLICY
from tsgb.eval.stored import find_evaluation

NASTY = "x<script>\u202e"


def test_every_figure_stands_in_it_and_names_are_escaped(tmp_path: Path) -> None:
    arms = {**ARMS, NASTY: fake.Arm(0.5, 1.0, 3.0, 0.1)}
    store_evaluation(tmp_path / "a", arms)
    arms = {**arms, "selfplay": fake.Arm(0.6, 1.0, 4.5, -0.4)}
    store_evaluation(tmp_path / "b", arms, eval_id="eval-0002")
    sides = [find_evaluation(str(tmp_path / name)) for name in "ab"]
    found = compare_evaluations(*((s.summary(), s.items()) for s in sides), num_draws=DRAWS)
    sheets = comparison_sheets(found)
    assert sum(len(sheet.rows) for sheet in sheets) == len(found.figures)
    notes = comparison_notes(found)
    assert any("Differences: adaptive ASR of Self-play on T_s" in note for note in notes)
    page = render_comparison(found)
    assert CONTENT_SECURITY_POLICY.replace("'", "&#39;") in page
    assert "<script" not in page
    assert "\u202e" not in page
    assert "x&lt;script&gt;&lt;U+202E&gt;" in page
    assert "eval-0001 and eval-0002" in page
    auroc = next(sheet for sheet in sheets if sheet.heading == "Held-out AUROC")
    [row] = [row for row in auroc.rows if row.name == "selfplay"]
    assert row.cells[2].figure.startswith("\u22120.")
    assert all("points" not in note for _, note in auroc.columns)
    assert "second only" in page
    assert "Share blocked, by technique" in page
    kinds = {sheet.heading for sheet in slice_sheets(found, differing=True)}
    assert kinds <= {sheet.heading for sheet in slice_sheets(found)}
