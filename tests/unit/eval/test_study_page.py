"""The page of a study is whole and safe, and says what the study says."""

from __future__ import annotations

import pytest

from tests.fakes import evaluation as fake
from tests.fakes.study import DRAWS, FALLING, NEVER, falling, study_inputs
from tsgb.eval.records import TargetRecord
from tsgb.eval.report import CONTENT_SECURITY_POLICY
from tsgb.eval.study import study_of
from tsgb.eval.study_claims import STUDY_STATEMENTS
from tsgb.eval.study_page import render_study, study_text
from tsgb.eval.study_views import plain_sentence

COMMAND = "tsgb experiment --profile study <x>"


def test_the_page_has_every_part_and_runs_nothing() -> None:
    page = render_study(falling(), command=COMMAND, costs={"training": 3.25, "evaluation": 1.5})
    assert CONTENT_SECURITY_POLICY.replace("'", "&#39;") in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert falling().sentence in page
    for statement in STUDY_STATEMENTS.values():
        assert statement.replace("'", "&#39;") in page
    for part in ("Claims", "Gains", "Discovery", "Costs", "Provenance", "Limits"):
        assert f">{part}</h" in page
    assert "tsgb experiment --profile study &lt;x&gt;" in page
    assert ">4.75</td>" in page
    assert "eval-12-0.5" in page


def test_names_of_strangers_are_escaped() -> None:
    targets = [TargetRecord(name="<i>\u202e", role="surrogate", overlap=1.0)]
    level = {0.0: FALLING[0.0] | {"<u>\u202e": FALLING[0.0]["frozen"]}}
    study = study_of(study_inputs(level, (11,), (1, 2), targets=targets), num_draws=DRAWS)
    for text in (render_study(study, command="x", costs={}), study_text(study)):
        assert "\u202e" not in text
    page = render_study(study, command="x", costs={})
    assert "<i>" not in page
    assert "<u>" not in page
    assert "Not recorded." in page


def test_the_sentence_says_what_the_claims_say() -> None:
    shown = plain_sentence(falling())
    assert shown.startswith("Self-play pays where the first attacker knows public techniques only")
    assert "not measurably where it knows every technique" in shown
    assert "% at coverage 1, where the first attacker was shown all of the others" in shown
    nothing = plain_sentence(study_of(study_inputs(NEVER, (11,)), num_draws=DRAWS))
    assert nothing.startswith("It is not shown that self-play pays")
    part = study_of(study_inputs({0.5: FALLING[0.5]}, (11,), (1,)), num_draws=DRAWS)
    assert plain_sentence(part).startswith("Whether self-play pays was not measured in full")
    assert "at coverage 0.5, where the first attacker was shown 50 % of the" in plain_sentence(part)


def test_the_sentence_says_which_figures_are_in_doubt() -> None:
    assert plain_sentence(falling()).endswith(" (mean over targets).")
    missed = FALLING[0.0] | {"frozen": fake.Arm(0.05, 0.0, 0.0, -0.4)}
    doubtful = study_of(study_inputs({0.0: missed}, (11,)), num_draws=DRAWS)
    assert any("did not converge" in gap.reason for gap in doubtful.left_out)
    assert plain_sentence(doubtful).endswith(" (mean over targets, those in doubt included).")


@pytest.mark.parametrize("heading", ["Claims", "Gain of self-play", "Discovery", "world 12"])
def test_the_text_has_the_main_tables(heading: str) -> None:
    assert heading in study_text(falling())
