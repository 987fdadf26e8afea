from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.data.cells import RowDroppedError, group_of, group_of_text, normalised, text_of


@pytest.mark.parametrize("value", [None, "", " \n", 5, ["map"], "half \ud800"])
def test_a_cell_that_holds_no_prompt(value: object) -> None:
    with pytest.raises(RowDroppedError):
        text_of({"prompt": value}, "prompt")


@pytest.mark.parametrize("word", ["null", "NA", "None", "nan", " map "])
def test_a_prompt_may_be_any_word(word: str) -> None:
    assert text_of({"prompt": word}, "prompt") == word


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_spaces_and_form_do_not_tell_two_texts_apart(text: str) -> None:
    assert normalised(f"  {text}\n") == normalised(text)
    assert normalised(unicodedata.normalize("NFD", text)) == normalised(text)


def test_case_and_width_do_not_either() -> None:
    assert group_of_text("A  MAP\n") == group_of_text("a map") == group_of_text("\uff21 map")


def test_equal_values_of_two_kinds_are_two_groups() -> None:
    assert group_of("xstest", "1") != group_of("harmbench", "1")
    assert len(group_of("text", "\0")) == 16
