from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tsgb.data.cells import normalised
from tsgb.data.duplicates import NEAR, SHINGLE, PromptGroups, signature
from tsgb.data.records import DataPrompt

WORDS = [f"{a}{b}{c}" for a in "bdfglmnprst" for b in "aeiou" for c in "klmnst"]
Row = tuple[str, str]
"""Text and group."""


def text(seed: int, num: int = 60) -> str:
    return " ".join(Random(seed).choices(WORDS, k=num))


def prompt(words: str, group: str, harmful: bool | None = None) -> DataPrompt:
    return DataPrompt(text=words, harmful=harmful, group=group, source="x", row=1)


def grouped(rows: Sequence[Row], files: Sequence[int] | None = None) -> PromptGroups:
    found = PromptGroups()
    for i, (words, group) in enumerate(rows):
        found.add(prompt(words, group), files[i] if files else 0)
    return found


def changed(words: str, num: int) -> str:
    """The text with some of its words replaced by others, evenly spread."""
    parts = words.split()
    for i in range(num):
        parts[i * len(parts) // num] = f"zz{i}"
    return " ".join(parts)


def similarity(one: str, other: str) -> float:
    def shingles(words: str) -> set[tuple[str, ...]]:
        clean = normalised(words).split()
        return {tuple(clean[i : i + SHINGLE]) for i in range(len(clean) - SHINGLE + 1)}

    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def test_equal_texts_join_their_groups() -> None:
    found = grouped([("A map", "a"), ("a  MAP\n", "b"), ("a list", "c")])
    assert found.groups() == ["a", "a", "c"]
    assert found.counts().exact_within == 1
    assert found.counts().shared_groups == 1


def test_nearly_equal_texts_join_their_groups() -> None:
    found = grouped([(text(1), "a"), (text(2), "b"), (changed(text(1), 1), "c")])
    assert similarity(text(1), changed(text(1), 1)) > NEAR
    assert found.groups() == ["a", "b", "a"]
    assert found.counts()[:4] == (0, 0, 1, 0)


def test_the_estimate_is_that_of_the_shingles() -> None:
    errors: list[float] = []
    for seed in range(40):
        one, other = text(seed), changed(text(seed), seed % 10)
        first, second = signature(one), signature(other)
        assert first is not None
        errors.append(float((first == second).mean()) - similarity(one, other))
    assert abs(np.mean(errors)) < 0.03
    assert np.std(errors) < 0.09


def test_near_duplicates_are_found_and_others_are_not() -> None:
    near = [(text(seed), changed(text(seed), 1)) for seed in range(60)]
    far = [(text(seed), changed(text(seed), 20)) for seed in range(100, 160)]
    rows = [(words, f"{i}") for i, words in enumerate(w for pair in near + far for w in pair)]
    found = grouped(rows).groups()
    joined = [one == other for one, other in zip(found[::2], found[1::2], strict=True)]
    assert sum(joined[:60]) >= 58
    assert sum(joined[60:]) == 0


def test_within_and_across_files() -> None:
    one, other = text(1), text(2)
    rows = [(one, "a"), (one, "a"), (other, "b"), (one, "c"), (one, "c"), (changed(other, 1), "d")]
    counts = grouped(rows, [0, 0, 0, 1, 1, 1]).counts()
    assert counts == (2, 1, 0, 1, 0, 2)


def test_opposite_labels_of_one_text_are_counted() -> None:
    found = PromptGroups()
    for harmful in (True, None, True, False, False):
        found.add(prompt("a map", "a", harmful))
    assert found.counts().contradicting == 2


def test_short_and_long_texts() -> None:
    found = grouped([("a", "a"), ("b", "b"), ("\U0001f600", "c"), ("map " * 300_000, "d")])
    assert found.groups() == ["a", "b", "c", "d"]


def test_a_word_makes_short_prompts_different() -> None:
    rows = [(f"Please draw a map of the country number {i}", f"{i}") for i in range(200)]
    assert len(set(grouped(rows).groups())) == 200


def test_scripts_without_spaces() -> None:
    line = "\u5730\u56f3\u3092\u63cf\u304f\u306e\u306f\u697d\u3057\u3044"
    one, other = line * 3 + "\u9ce5" + line[::-1], line * 3 + "\u9b5a" + line[::-1]
    assert grouped([(one, "a"), (other, "b"), (line, "c")]).groups() == ["a", "a", "c"]


texts = st.sampled_from(["map", "MAP", "list", "tree ", " tree", text(1), changed(text(1), 1)])
rows = st.lists(st.tuples(texts, st.sampled_from("abcdef")), min_size=1, max_size=12)


@given(rows)
def test_duplicates_and_groups_never_part(found: list[Row]) -> None:
    names = grouped(found).groups()
    for (one, group), name in zip(found, names, strict=True):
        for (other, its_group), its_name in zip(found, names, strict=True):
            if group == its_group or normalised(one) == normalised(other):
                assert name == its_name


@given(rows, rows)
def test_rows_that_come_later_move_nobody_but_groups_that_they_join(
    before: list[Row], after: list[Row]
) -> None:
    old = grouped(before).groups()
    new = grouped(before + after).groups()[: len(old)]
    moved = {(a, b) for a, b in zip(old, new, strict=True) if a != b}
    assert all(b in old and old.index(b) < old.index(a) for a, b in moved)
