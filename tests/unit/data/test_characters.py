from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.data.characters import suspicious, visible, visible_in_cell


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, with é, ж, 図 and 👩", "plain, with é, ж, 図 and 👩"),
        ("a\u202eb", "a<U+202E>b"),
        ("a\nb\tc\r", "a<U+000A>b<U+0009>c<U+000D>"),
        ("\x1b[31m\0", "<U+001B>[31m<U+0000>"),
        ("a\u00a0b\u200bc\ufe0f", "a<U+00A0>b<U+200B>c<U+FE0F>"),
        ("\U000e0041\u3164\ud800", "<U+E0041><U+3164><U+D800>"),
    ],
)
def test_hidden_characters_are_shown_by_their_numbers(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text())
def test_what_is_shown_is_one_line_of_visible_characters(text: str) -> None:
    shown = visible(text)
    shown.encode()
    assert shown.splitlines() == ([shown] if shown else [])
    assert not [c for c in shown if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}]


def test_a_long_text_is_cut_and_says_so() -> None:
    assert visible("a" * 10, 4) == "aaaa… (6 more)"


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("plain\r\n\ttext é 図", []),
        ("a\0", ["control"]),
        ("a\u202e", ["bidi"]),
        ("a\u200b", ["invisible"]),
        ("\x07\u2066\ufeff", ["control", "bidi", "invisible"]),
    ],
)
def test_suspicious_characters(text: str, kinds: list[str]) -> None:
    assert suspicious(text) == kinds


def test_whatever_is_suspicious_is_shown_by_its_number() -> None:
    found = [c for c in map(chr, range(sys.maxunicode + 1)) if suspicious(c)]
    assert len(found) > 4096
    assert [c for c in found if visible(c) == c] == []


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("  @x", "'  @x"),
        ("\n-1", "'\n-1"),
        ("\uff0b1", "'\uff0b1"),
        ("\t=1", "<U+0009>=1"),
        ("\u200b=1", "<U+200B>=1"),
        ("a=1", "a=1"),
        ("", ""),
    ],
)
def test_no_cell_of_a_spreadsheet_is_a_formula(text: str, cell: str) -> None:
    assert visible_in_cell(text, keep="\n") == cell
    assert visible_in_cell(cell, keep="\n") == cell, "a cell stays as it is"
