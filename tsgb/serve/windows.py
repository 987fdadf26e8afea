"""Long texts in overlapping windows, each of which a guard reads as a whole. Nothing is cut off."""

from __future__ import annotations

from collections.abc import Callable

from tsgb.errors import UsageError

OVERLAP = 4
"""Each window begins a quarter of the one before it ahead of that one's end."""
_SMALLER = 0.75
"""Share of a window that is tried next where the whole takes too many tokens."""


def windows(text: str, count: Callable[[str], int], limit: int | None) -> list[str]:
    """Return the windows of a text: itself where it fits.

    A passage of at most a quarter of the shortest window lies whole in one of them.

    Args:
        text: Any text.
        count: Gives the tokens of a text, the guard's template included.
        limit: Tokens that a window may take; None for any number.

    Raises:
        UsageError: The template alone takes more tokens than a window.
    """
    whole = 0 if limit is None else count(text)
    if limit is None or whole <= limit:
        return [text]
    usual = max(1, len(text) * limit // whole)
    found: list[str] = []
    start = 0
    while True:
        size = min(usual, len(text) - start)
        while count(text[start : start + size]) > limit:
            if size <= 1:
                raise UsageError(
                    f"the guard reads {limit} tokens, which its template alone exceeds"
                )
            size = max(1, int(size * _SMALLER))
        found.append(text[start : start + size])
        if start + size >= len(text):
            return found
        start += max(1, size - size // OVERLAP)
