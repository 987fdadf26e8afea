"""The box says what a guard gains and costs, in all forms of a report, and leaves out the rest."""

from collections.abc import Callable

import pytest

from tests.fakes import evaluation as fake
from tsgb.eval.box import box_lines, box_sheet, main_guard
from tsgb.eval.judge_records import JudgeRecord
from tsgb.eval.records import Item, ItemSource, Summary
from tsgb.eval.report import render_report, render_tables
from tsgb.eval.summarise import summarise
from tsgb.eval.usage_records import GuardTime, Milliseconds, UsageRecord

NAME = "big\u202e<b>"
ARMS = {name: fake.ARMS[name] for name in ("none", "tfidf", "selfplay")}
TARGETS = (
    fake.TARGETS[0],
    fake.TARGETS[1].model_copy(update={"name": NAME, "added": True}),
)
USAGE = UsageRecord(
    name=NAME,
    answers=190,
    errors=2,
    calls=198,
    untold=0,
    tokens_in=9000,
    tokens_out=21000,
    billed_unknown=1,
    latency=Milliseconds(n=190, median=812.0, p95=2310.0),
    dollars=1.86,
)


def made(change: Callable[[Item], Item] = lambda item: item, **facts: object) -> Summary:
    """Summary of an endpoint that was asked benign prompts too, beside a world's target."""
    items = fake.items(ARMS, (0,), num_prompts=48, num_attacks=24, targets=TARGETS)
    for item in list(items):
        if item.source is ItemSource.BENIGN:
            refused = item.item_id.endswith("-7")
            items.append(item.model_copy(update={"target": NAME, "refused": refused}))
    setup = fake.setup(ARMS, (0,), targets=TARGETS).model_copy(update=facts)
    return summarise(map(change, items), setup, num_draws=100)


def failing(item: Item) -> Item:
    """Two harmful prompts to the endpoint have no outcome."""
    lost = item.item_id in {"static-3", "wide-5"} and item.target == NAME
    return item.model_copy(update={"violated": None, "error": "http_500"}) if lost else item


@pytest.fixture(scope="module")
def summary() -> Summary:
    times = [GuardTime(guard="selfplay", prompt=Milliseconds(n=20, median=1.21, p95=38.4))]
    judge = USAGE.model_copy(update={"name": "openai:j", "role": "judge", "dollars": None})
    return made(failing, usage=[USAGE, judge], guard_times=times)


def test_a_row_says_gain_harmless_traffic_errors_time_and_money(summary: Summary) -> None:
    sheet = box_sheet(summary)
    assert sheet.heading == "No guard \u2192 Self-play"
    assert [name for name, _ in sheet.columns] == [
        *("Scripted ASR", "Difference", "Over-refusal", "Errors", "Latency", "Cost")
    ]
    ours, theirs = ([str(cell) for cell in row.cells] for row in sheet.rows)
    row = next(r for r in summary.results if (r.guard, r.target) == ("selfplay", NAME))
    assert row.over_refusal is not None
    assert f"\u2192 {100 * row.over_refusal.value:.1f} %" in theirs[2]
    assert "guard alone" in ours[2]
    assert ours[3] == "0 of 144"
    assert theirs[3].startswith("2 of 144 (")
    assert theirs[4] == "812 ms (median; 95 % up to 2.3 s)"
    assert theirs[5] == "$1.86 (198 requests; 30,000 tokens; 1 more perhaps billed)"
    assert ours[4:] == ["\u2013", "\u2013"]
    difference = next(
        c for c in summary.comparisons if (c.metric, c.guard, c.target) == ("asr", "selfplay", NAME)
    )
    assert theirs[1].startswith(f"\u2212{abs(100 * difference.difference):.1f} (")


def test_lines_say_the_time_of_the_guard_and_what_the_judge_took(summary: Summary) -> None:
    guard, judge = box_lines(summary)
    assert guard.startswith("Self-play takes 1.2 ms for a prompt alone (95 % take up to 38 ms;")
    assert judge.startswith("The judge openai:j: 190 answers, 812 ms each")
    assert "cost not known (no prices;" in judge


def test_every_form_has_the_box_and_escapes_it(summary: Summary) -> None:
    page = render_report(summary)
    top = page[page.index('class="verdict"') : page.index("</section>")]
    text, markdown = render_tables(summary), render_tables(summary, "markdown")
    for form in (top, text, markdown):
        assert "$1.86" in form
        assert "Self-play takes 1.2 ms" in form
        assert "\u202e" not in form
    assert "big&lt;U+202E&gt;&lt;b&gt;" in top
    assert "### No guard \u2192 Self-play" in markdown
    assert "<b>" not in markdown


def test_what_nobody_measured_is_left_out() -> None:
    found = made()
    assert [name for name, _ in box_sheet(found).columns] == [
        *("Scripted ASR", "Difference", "Over-refusal", "Errors")
    ]
    assert box_lines(found) == []


def test_an_evaluation_that_is_not_valid_shows_no_difference() -> None:
    def broken(item: Item) -> Item:
        lost = item.target == NAME and item.source is ItemSource.SCRIPTED
        return item.model_copy(update={"violated": None, "error": "http_500"}) if lost else item

    found = made(broken)
    assert found.invalid
    assert [str(row.cells[1]) for row in box_sheet(found).rows] == ["\u2013", "\u2013"]
    assert str(box_sheet(found).rows[1].cells[3]).startswith("144 of 144")


def test_without_a_guard_but_baselines_there_is_no_box() -> None:
    arms = {name: fake.ARMS[name] for name in ("none", "tfidf")}
    items = fake.items(arms, (0,), num_prompts=8, num_attacks=0, targets=TARGETS[:1])
    found = summarise(items, fake.setup(arms, (0,), targets=TARGETS[:1]), num_draws=50)
    assert main_guard(found) is None
    assert box_sheet(found).rows == []
    assert "No guard \u2192" not in render_tables(found)


def test_what_rests_on_a_judge_who_may_err_is_called_as_judged() -> None:
    judge = JudgeRecord(name="refusal-phrases", weak=True)
    found = made(judge=judge)
    line = (
        "ASR here, in all differences, in the claims and in the verdict is as judged by "
        "refusal-phrases (weak), and not corrected for its errors."
    )
    assert line in box_lines(found)
    text, page = render_tables(found, "markdown"), render_report(found)
    assert "adaptive ASR on T_s, as judged: Self-play minus" in page
    assert "hard-benign FPR: Self-play minus" in page
    assert line in text
    assert line in page
    exact = made(judge=JudgeRecord(name="exact", exact=True))
    assert "as judged" not in render_report(exact)
