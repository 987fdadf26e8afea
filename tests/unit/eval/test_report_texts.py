"""Texts and names of strangers in the page and in tables: shown as they are, and nothing obeyed."""

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import evaluation as fake
from tests.fakes.evaluation import TARGETS
from tsgb.eval.records import Summary
from tsgb.eval.report import render_report, render_tables
from tsgb.eval.summarise import summarise
from tsgb.eval.transcripts import MAX_CHARACTERS, GuardWord, Transcript

HIDDEN = "a\u202eb\u2066c\u200bd\x1b[2Je\x00f\ufeffg\u00a0h"
SHOWN = "a<U+202E>b<U+2066>c<U+200B>d<U+001B>[2Je<U+0000>f<U+FEFF>g<U+00A0>h"
NAME = "n\u202em\x1b[31m$\\frac{$&"
NAME_SHOWN = "n<U+202E>m<U+001B>[31m$\\frac{$&"


def made(**changes: object) -> Transcript:
    return Transcript.model_validate(
        {
            "scenario_id": "S-00-80",
            "technique": "poem",
            "target": "T_s",
            "prompt": "Write a poem.",
            "answer": "It is [canary].",
            "violated": True,
            "verdicts": [GuardWord(guard="selfplay", blocked=False, score=-1.5)],
            **changes,
        }
    )


@pytest.fixture(scope="module")
def summary() -> Summary:
    """Summary of guards and targets with hostile names."""
    arms = {name: fake.ARMS[name] for name in ("none", "frozen", "selfplay")}
    arms[NAME] = fake.Arm(0.5, 1.0, 3.0, 0.1)
    targets = (TARGETS[0], TARGETS[1].model_copy(update={"name": NAME, "arch": HIDDEN}))
    items = fake.items(arms, (0, 1), num_prompts=24, num_attacks=24, targets=targets)
    items = [i.model_copy(update={"technique": HIDDEN, "slice": HIDDEN}) for i in items]
    setup = fake.setup(arms, (0, 1), targets=targets)
    provenance = setup.provenance.model_copy(update={"command": HIDDEN, "not_measured": [HIDDEN]})
    setup = setup.model_copy(update={"limits": HIDDEN, "provenance": provenance})
    return summarise(items, setup, num_draws=100)


@pytest.fixture(scope="module")
def small() -> Summary:
    """Summary of almost nothing, whose page draws no figure."""
    arms = {"none": fake.ARMS["none"]}
    items = fake.items(arms, (0,), num_prompts=8, num_attacks=0, targets=TARGETS[:1])
    setup = fake.setup(arms, (0,), targets=TARGETS[:1])
    return summarise(items, setup.model_copy(update={"curves": [], "payoff": []}), num_draws=50)


def unescaped(page: str) -> str:
    for mark, char in (("&lt;", "<"), ("&gt;", ">"), ("&#34;", '"'), ("&amp;", "&")):
        page = page.replace(mark, char)
    return page


def obeyed(text: str, allowed: str = "\n") -> set[str]:
    """Characters that whoever shows the text would obey, hide or reorder."""
    kinds = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    return {c for c in text if unicodedata.category(c) in kinds and c not in allowed}


def test_hidden_characters_of_prompts_and_answers_are_shown_by_their_numbers(
    small: Summary,
) -> None:
    games = [
        made(prompt=HIDDEN, answer=HIDDEN, form=HIDDEN, technique=HIDDEN),
        made(prompt=HIDDEN, answer=HIDDEN, against="selfplay", br_seed=0),
    ]
    page = render_report(small, games)
    assert obeyed(page) == set()
    assert unescaped(page).count(SHOWN) == 6
    assert "a\u202eb" not in page


def test_hidden_characters_of_names_are_shown_in_figures_and_tables_too(summary: Summary) -> None:
    page = render_report(summary)
    assert obeyed(page) == set()
    svg = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert NAME_SHOWN in unescaped(svg)
    for text in (render_tables(summary), render_tables(summary, "markdown")):
        assert obeyed(text) == set()
    assert "n&lt;U+202E&gt;m" in render_tables(summary, "markdown")


def test_lines_and_tabs_of_a_prompt_are_kept(small: Summary) -> None:
    page = render_report(small, [made(prompt="one\n\ttwo\r\nthree")])
    assert "one\n\ttwo&lt;U+000D&gt;\nthree" in page


def test_long_texts_of_a_file_that_somebody_wrote_are_cut(small: Summary) -> None:
    long = "w\u202e " * 333_333
    usual = render_report(small, [made()])
    page = render_report(small, [made(prompt=long, answer=long, form=long, technique=long)])
    assert len(page) < len(usual) + 60 * MAX_CHARACTERS
    assert f"({len(long) - MAX_CHARACTERS} more)" in page


def test_a_text_that_tries_to_leave_its_place_stays_there(small: Summary) -> None:
    nasty = "</dd></dl></details><script>alert(1)</script><style>*{display:none}</style>"
    page = render_report(small, [made(prompt=nasty, answer=nasty)])
    assert "<script" not in page
    assert page.count("<style>") == 1
    assert unescaped(page).count(nasty) == 2


def test_texts_are_folded(small: Summary) -> None:
    page = render_report(small, [made(), made(against="selfplay", br_seed=1)])
    folded = "".join(re.findall(r"<details>.*?</details>", page, flags=re.DOTALL))
    assert folded.count("Write a poem.") == page.count("Write a poem.") == 2
    assert "<details open" not in page


def test_a_name_makes_no_link_and_no_emphasis_in_markdown(summary: Summary) -> None:
    found = summary.model_copy(update={"limits": "![x](http://example.invalid/) `*a*` \\"})
    markdown = render_tables(found, "markdown")
    assert "!\\[x\\](http://example.invalid/) \\`\\*a\\*\\` \\\\*" in markdown


def test_the_name_of_a_series_leaves_no_attribute(summary: Summary) -> None:
    name = 'x" onload="alert(1)'
    curves = [
        curve.model_copy(update={"points": [{"step": 0.0, name: 1.0}, {"step": 1.0, name: 2.0}]})
        for curve in summary.curves
    ]
    assert curves
    page = render_report(summary.model_copy(update={"curves": curves}))
    assert re.findall(r'="[^"]*x" onload', page) == []
    assert "x&#34; onload=&#34;alert(1)" in page


@given(text=st.text(max_size=MAX_CHARACTERS))
@settings(max_examples=20)
def test_no_text_is_obeyed(small: Summary, text: str) -> None:
    text = text.encode(errors="replace").decode()
    page = render_report(small, [made(prompt=text, answer=text)])
    assert obeyed(page, "\n\t") == set()
    page.encode()
