"""Which prompts a guard reads as a whole, and which worlds have guards that read text."""

from __future__ import annotations

import pytest

from tsgb.data.readable import MAX_CHARACTERS, MAX_TOKENS, check_reads_text, fits
from tsgb.envs import make_environment
from tsgb.errors import UsageError


def test_a_prompt_is_read_as_a_whole_or_not_at_all() -> None:
    assert fits("a " * MAX_TOKENS, str.split)
    assert not fits("a " * (MAX_TOKENS + 1), str.split)
    asked: list[str] = []
    assert not fits("a" * (MAX_CHARACTERS + 1), lambda text: asked.append(text) or [])
    assert not asked, "what is sure to be too long is not tokenized"


def test_a_closed_list_of_words_reads_no_prompts() -> None:
    check_reads_text(make_environment("canary", world_seed=0), "--x")
    with pytest.raises(UsageError, match=r"^--x: .*'glyph' know \d+ words.*such as canary"):
        check_reads_text(make_environment("glyph", world_seed=0), "--x")
