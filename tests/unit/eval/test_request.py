"""An evaluation's request, and what makes two questions one."""

from __future__ import annotations

import pytest

from tsgb.errors import UsageError
from tsgb.eval.request import identities


class Declared:
    name, version = "mine", "1"

    def generate(self, prompt: str) -> str:
        return prompt


class Silent:
    def generate(self, prompt: str) -> str:
        return prompt


def test_only_a_class_that_declares_itself_is_the_same_twice() -> None:
    path = f"{__name__}:Declared"
    assert identities([path], None, fresh=False) == identities([path], None, fresh=False)
    assert identities([], "tsgb:SimpleJudge", fresh=False) == identities(
        [], "tsgb:SimpleJudge", fresh=False
    )
    silent = f"{__name__}:Silent"
    assert identities([silent], None, fresh=False) != identities([silent], None, fresh=False)


def test_a_fresh_question_is_never_the_same() -> None:
    assert identities([], None, fresh=False) == {}
    assert identities([], None, fresh=True) != identities([], None, fresh=True)


def test_all_are_loaded_before_anything_else_happens() -> None:
    with pytest.raises(UsageError, match="No module named 'no_such'"):
        identities([], "no_such:Judge", fresh=False)
