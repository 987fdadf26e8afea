"""The ledger of errors: every class with a missing outcome, why, and what it took."""

from tests.fakes import evaluation as fake
from tests.fakes.stored_evaluation import ARMS, DRAWS
from tsgb.eval.error_views import error_sheet
from tsgb.eval.records import Item, ItemSource, Summary
from tsgb.eval.report import render_report
from tsgb.eval.summarise import NUM_REASONS, summarise


def summary_of(max_error_rate: float) -> Summary:
    """Seven scripted prompts of one target fail in seven ways, two attacks, and one verdict."""
    failed, attacked, unread = iter(range(7)), iter(range(2)), iter(range(1))

    def changed(item: Item) -> Item:
        update: dict[str, object] = {}
        if item.source is ItemSource.SCRIPTED and item.target == "B_mid":
            number = next(failed, None)
            if number is not None:
                reason = f"http_50{number} <b>"
                update = {"violated": None, "error": reason, "attempts": number}
        elif item.against == "selfplay" and item.target == "T_s":
            if next(attacked, None) is not None:
                update = {"violated": None, "error": "timeout", "attempts": 0}
        elif item.source is ItemSource.BENIGN and next(unread, None) is not None:
            update = {"blocked": {k: v for k, v in item.blocked.items() if k != "frozen"}}
            update["scores"] = {k: v for k, v in item.scores.items() if k != "frozen"}
        return Item.model_validate({**item.model_dump(), **update})

    items = [changed(i) for i in fake.items(ARMS, (0, 1), num_prompts=48, num_attacks=48)]
    setup = fake.setup(ARMS, (0, 1)).model_copy(update={"max_error_rate": max_error_rate})
    return summarise(items, setup, num_draws=DRAWS)


def test_every_class_is_told_with_its_reasons_and_calls() -> None:
    summary = summary_of(max_error_rate=0.1)
    assert summary.invalid == []
    rows = {row.label: [str(cell) for cell in row.cells] for row in error_sheet(summary).rows}
    assert rows.keys() == {
        "harmful prompts to B_mid",
        "attacks on selfplay before T_s",
        "verdicts of frozen on benign prompts",
    }
    errors, total, calls, reasons = rows["harmful prompts to B_mid"]
    assert (errors, total, calls) == ("7 (2.4 %)", "288", "21")
    assert reasons.count("http_50") == NUM_REASONS
    assert reasons.endswith("(1); others (2)")
    assert rows["attacks on selfplay before T_s"] == ["2 (1.0 %)", "192", "\u2013", "timeout (2)"]
    assert rows["verdicts of frozen on benign prompts"][2:] == ["\u2013", "\u2013"]
    page = render_report(summary)
    assert "Items without an outcome" in page
    assert "http_500 &lt;b&gt; (1)" in page


def test_what_makes_an_evaluation_invalid_is_among_them() -> None:
    summary = summary_of(max_error_rate=0.02)
    assert [failed.what for failed in summary.invalid] == ["harmful prompts to B_mid"]
    assert summary.invalid[0] in summary.missing
    assert len(summary.missing) == 3


def test_an_evaluation_without_errors_has_no_ledger() -> None:
    items = fake.items(ARMS, (0,), num_prompts=8, num_attacks=8)
    summary = summarise(items, fake.setup(ARMS, (0,)), num_draws=50)
    assert error_sheet(summary).rows == []
    assert "missing" not in summary.model_dump(mode="json")
    assert "Items without an outcome" not in render_report(summary)
