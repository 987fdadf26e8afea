"""Windows cover a text, fit, and overlap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.errors import UsageError
from tsgb.serve.windows import OVERLAP, windows


def tokens(text: str) -> int:
    """A tokenizer to which digits are worth three letters, with a template of 2."""
    return 2 + sum(3 if letter.isdigit() else 1 for letter in text)


@given(text=st.text("ab1", max_size=200), limit=st.integers(5, 40))
def test_every_short_passage_lies_whole_in_a_window(text: str, limit: int) -> None:
    found = windows(text, tokens, limit)
    assert all(tokens(window) <= limit for window in found)
    if tokens(text) <= limit:
        assert found == [text]
    passage = min(map(len, found[:-1]), default=len(text)) // OVERLAP
    for start in range(len(text) - passage + 1):
        assert any(text[start : start + passage] in window for window in found)
    position = 0
    for window in found:  # in order, and without a gap
        at = text.find(window)
        assert at != -1
        position = max(position, at)
    assert found[0] == text[: len(found[0])]
    assert text.endswith(found[-1])


def test_windows_of_unlike_letters_leave_no_gap() -> None:
    text = "".join(f"{i:05}" + "a" * (i % 7) for i in range(400))
    position = end = 0
    for window in windows(text, tokens, 50):
        position = text.index(window, position)
        assert position <= end
        end = position + len(window)
    assert end == len(text)


def test_any_length_fits_without_a_limit() -> None:
    assert windows("a" * 10_000, tokens, None) == ["a" * 10_000]


def test_a_template_that_fills_the_window_is_refused() -> None:
    with pytest.raises(UsageError, match="reads 2 tokens, which its template alone exceeds"):
        windows("abc", tokens, 2)
