"""Thoughts that models write before their answer, which are no part of it."""

from __future__ import annotations

_MARKS = ("<think>", "</think>")
"""Marks around a thought, in the models that think aloud although they are asked not to."""


def without_thought(text: str) -> tuple[str, bool]:
    """Return an answer without the thought before it, and whether there was one.

    An unfinished thought has no answer.

    >>> without_thought("<think>hm</think> yes")
    ('yes', True)
    """
    if not text.lstrip().startswith(_MARKS[0]):
        return text, False
    _, end, answer = text.partition(_MARKS[1])
    return (answer.lstrip() if end else ""), True
