"""Characters that a terminal or a page would obey, hide or reorder, and how they are shown."""

from __future__ import annotations

import re
import unicodedata

_KINDS = {
    "control": re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
    "bidi": re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"),
    "invisible": re.compile(
        "[\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200d\u2028\u2029\u2060-\u2065"
        "\u206a-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff]"
    ),
}
"""Kinds of suspicious characters; tabs and ends of lines are none."""
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters, marks and symbols that draw nothing."""
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Beginnings that a spreadsheet takes for a formula, and their wide forms."""


def suspicious(text: str) -> list[str]:
    """Return the kinds of characters in a text that a reader would not see as they are.

    Returns:
        Some of `control` (C0 and C1, NUL included), `bidi` (marks and overrides of direction) and
        `invisible` (zero width, fillers, variation selectors, tags).
    """
    if text.isascii() and text.isprintable():
        return []
    return [kind for kind, found in _KINDS.items() if found.search(text)]


def visible(text: str, limit: int | None = None, *, keep: str = "") -> str:
    r"""Return a text for a terminal or a page: one line, each hidden character by its number.

    Control and format characters, ends of lines, halves of surrogate pairs, spaces other than the
    usual one, variation selectors and blank letters become `<U+202E>`.

    Args:
        text: anything.
        limit: characters of `text` that are kept; what is left out is counted.
        keep: characters that stay as they are, such as the ends of lines for a page that has lines.

    >>> visible("a\u202eb\n")
    'a<U+202E>b<U+000A>'
    """
    kept = text if limit is None else text[:limit]
    shown = "".join(c if c in keep or not _is_hidden(c) else f"<U+{ord(c):04X}>" for c in kept)
    return shown if len(kept) == len(text) else f"{shown}… ({len(text) - len(kept)} more)"


def visible_in_cell(text: str, limit: int | None = None, *, keep: str = "") -> str:
    """Return a text for a cell of a spreadsheet: as `visible` does, and none is a formula.

    What begins like a formula, after spaces too, gets an apostrophe in front.

    >>> visible_in_cell("=1+1")
    "'=1+1"
    """
    shown = visible(text, limit, keep=keep)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


def _is_hidden(character: str) -> bool:
    if " " <= character <= "~":
        return False
    return (
        unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
        or character in _BLANK
        or unicodedata.name(character, "").startswith(("VARIATION SELECTOR", "MONGOLIAN FREE"))
    )
