"""The figure of a study as a document: whole, safe, and with every training in it."""

from __future__ import annotations

from xml.etree import ElementTree

from tests.fakes.study import DRAWS, FALLING, falling, study_inputs
from tsgb.eval.study import study_of
from tsgb.eval.study_figure import LABEL, description, gain_figure, gain_svg

SVG = "{http://www.w3.org/2000/svg}"


def test_the_document_stands_alone_and_has_every_training() -> None:
    text = gain_svg(falling())
    assert text is not None
    svg = ElementTree.fromstring(text)  # noqa: S314 - our own
    assert svg.tag == f"{SVG}svg"
    assert "var(" not in text
    assert "<script" not in text
    assert svg.findtext(f"{SVG}title") == LABEL
    told = svg.findtext(f"{SVG}desc") or ""
    assert told == description(falling())
    assert "adaptive ASR on B_far: at coverage 0 +" in told
    assert {"T_s, the surrogate", "B_far, overlap 0", "a training in world 12"} <= {
        "".join(node.itertext()) for node in svg.iter(f"{SVG}text")
    }
    marks = [node.get("style", "") for node in svg.iter(f"{SVG}use")]
    # A dot for each training in each of two rows, two targets and three levels, for each world.
    for tint in ("#0b6bb8", "#b26a00"):
        assert sum(tint in mark and "fill-opacity" in mark for mark in marks) == 2 * 2 * 3 * 5


def test_in_a_page_it_takes_the_colours_of_the_page() -> None:
    picture = gain_figure(falling())
    assert picture is not None
    assert "var(--s3)" in picture
    assert "currentColor" in picture


def test_without_both_guards_there_is_no_figure() -> None:
    alone = {0.0: {name: FALLING[0.0][name] for name in ("none", "frozen")}}
    study = study_of(study_inputs(alone, (11,), (1,)), num_draws=DRAWS)
    assert gain_svg(study) is None
    assert description(study) == "Gain, mean over trainings, with 95 % interval."


def test_names_of_strangers_are_escaped() -> None:
    study = falling()
    nasty = study.worlds[0].model_copy(update={"name": "<b>\u202e"})
    text = gain_svg(study.model_copy(update={"worlds": [nasty, *study.worlds[1:]]}))
    assert text is not None
    assert "<b>" not in text
    assert "\u202e" not in text
