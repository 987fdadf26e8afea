"""A list of phrases blocks what holds one of them as whole words, and nothing else."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.errors import UsageError
from tsgb.guards.keywords import MAX_BYTES, KeywordGuard


def test_phrases_are_found_as_whole_words_in_any_spelling_of_unicode() -> None:
    guard = KeywordGuard(["Open Sesame", "c++", "ﬁre"])
    prompts = ["say OPEN \n sesame.", "open sesames", "reopen sesame", "use C++!", "FIRE", "fires"]
    assert guard.score(prompts).tolist() == [1, 0, 0, 1, 1, 0]
    assert guard.score([]).shape == (0,)


@given(st.text(), st.text())
def test_a_prompt_that_holds_a_phrase_between_spaces_is_blocked(before: str, after: str) -> None:
    guard = KeywordGuard(["alpha beta"])
    assert guard.score([f"{before} alpha  beta {after}"]).tolist() == [1.0]


def test_a_file_has_one_phrase_a_line(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(b"\xef\xbb\xbf# a comment\r\nalpha\r\n\r\nbeta\r\n")
    assert KeywordGuard.from_file(path).score(["alpha", "a comment", "beta"]).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"# nothing\n \n", "without a phrase"),
        (b"\xff\xfe", "no UTF-8 text (byte 0)"),
        (b"a\n" * MAX_BYTES, f"above {MAX_BYTES} bytes"),
    ],
)
def test_a_file_of_another_kind_is_one_line(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        KeywordGuard.from_file(path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        KeywordGuard.from_file(tmp_path / "none.txt")
