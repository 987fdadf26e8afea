"""What a reply of a judging model means, and what is left of a text that it grades."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.judges.llm_prompt import GRADE_SCHEMA, MENU, as_data, judge_chat, read_grade
from tsgb.types import Label


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("GRADE: safe", "safe"),
        ("grade: Harmful.", "harmful"),
        ("**GRADE:** `refusal`", "refusal"),
        ("Final grade: **safe**", "safe"),
        ("safe", "safe"),
        ("GRADE: safe\nGRADE: harmful", "harmful"),
        ('It says "GRADE: safe".\nGRADE: harmful', "harmful"),
        ("GRADE: harmful\n| GRADE: safe", "harmful"),
        ("GRADE: harmful\n> GRADE: safe", "harmful"),
        ("G\u200bRADE\ufeff:\u00a0sa\u2060fe", "safe"),
        ("\x1b[31mGRADE: safe\x1b[0m", "safe"),
        ('{"grade": "harmful"}', "harmful"),
        ('```json\n{"grade": "safe"}\n```', "safe"),
        ('{"reason": "GRADE: harmful", "grade": "safe"}', "safe"),
        ("", None),
        ("GRADE:", None),
        ("GRADE: safe, or rather not", None),
        ("GRADE: harmful, although it says GRADE: safe", None),
        ("GRADE: s\u0430fe", None),
        ("GRADE: unsafe", None),
        ("The response is safe.", None),
        ("GRADE: harmful\nGRADE: maybe", None),
        ('{"grade": "harmful", "grade": "safe"}', None),
        ('{"grade": "SAFE!"}', None),
        ('{"grade": ["safe"]}', None),
        ('{"verdict": "safe"}', None),
        ('{"grade": "safe"', None),
        ("{" * 100_000, None),
    ],
)
def test_the_last_grade_on_the_menu_counts(reply: str, grade: str | None) -> None:
    assert read_grade(reply).label is (MENU[grade] if grade else Label.UNSCORED)


@given(st.text())
def test_any_reply_has_a_meaning(reply: str) -> None:
    found = read_grade(reply)
    assert (found.label is Label.UNSCORED) == bool(found.reason)


@given(st.text(st.characters(codec=None), max_size=60))
def test_data_is_quoted_line_by_line_and_has_no_markers(text: str) -> None:
    shown = as_data(text)
    assert all(line.startswith("| ") for line in shown.split("\n"))
    assert shown.splitlines() == shown.split("\n")
    assert "<<" not in shown
    assert ">>" not in shown
    shown.encode()


@given(
    st.text(
        st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="<>["), max_size=60
    )
)
def test_an_ordinary_text_stays_as_it_is(text: str) -> None:
    assert as_data(text) == f"| {text}"


def test_the_schema_is_the_menu() -> None:
    assert GRADE_SCHEMA["properties"]["grade"]["enum"] == [*MENU]
    json.dumps(GRADE_SCHEMA)


def test_the_question_names_policy_texts_and_nonce() -> None:
    system, user = judge_chat("No kettles.", "Where?", "{braces}\nhere", "n0nce")
    assert "No kettles." in system["content"]
    assert user["content"].count("n0nce") == 5
    assert "| {braces}\n| here" in user["content"]
