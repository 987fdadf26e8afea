"""Reading of single cells: texts, labels and the names of groups.

A cell that does not hold what its column promises drops its row, with a reason that quotes none of
the cell: reasons are printed, cells are not.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from typing import Any

NULLS = frozenset({"", "null", "none", "nan", "na", "n/a", "<na>"})
"""Labels that mean none, in lower case. A prompt may be any of these words."""
_HARMFUL = frozenset({"1", "true", "yes", "harmful", "unsafe", "toxic", "malicious"})
_BENIGN = frozenset({"0", "false", "no", "unharmful", "safe", "benign", "harmless"})
MAX_NAME = 80
"""Characters of the longest category, technique or language that is kept."""


class RowDroppedError(Exception):
    """The row gives no prompt; the message is the reason, without any of its text."""


def text_of(row: Mapping[str, Any], column: str) -> str:
    """Return the text of a column, exactly as it is.

    Raises:
        RowDroppedError: The cell is empty, no text, or holds half of a surrogate pair.
    """
    value = row.get(column)
    if value is None:
        raise RowDroppedError("no prompt (null)")
    if not isinstance(value, str):
        raise RowDroppedError("the prompt is no text")
    if not value.strip():
        raise RowDroppedError("the prompt is empty")
    return _encodable(value)


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowDroppedError("half of a surrogate pair, which no file of text can hold") from None
    return text


def response_of(row: Mapping[str, Any], column: str = "response") -> str | None:
    """Return the answer of a model; None where there is none."""
    value = row.get(column)
    return _encodable(value) if isinstance(value, str) and value else None


def optional_text(row: Mapping[str, Any], column: str | None) -> str:
    """Return a category or another name, cut to `MAX_NAME` characters; empty without one."""
    if column is None or row.get(column) is None:
        return ""
    return _encodable(number_or_text(row, column, "").strip()[:MAX_NAME])


def number_or_text(
    row: Mapping[str, Any], column: str, missing: str = "no value in a column that is needed"
) -> str:
    """Return a cell as text: `true`, `1` (also for 1.0), or the text itself.

    Raises:
        RowDroppedError: The cell is null or a list or an object; `missing` is the reason. If it is
            empty, such a cell is the empty text instead.
    """
    value = row.get(column)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | float | str):
        return str(value)
    if missing:
        raise RowDroppedError(missing)
    return ""


def flag(row: Mapping[str, Any], column: str) -> bool:
    """Return a label: whether it is harmful.

    Raises:
        RowDroppedError: There is none, or it is neither one of the usual words nor 0 or 1.
    """
    value = optional_flag(row, column)
    if value is None:
        raise RowDroppedError("no label (null)")
    return value


def optional_flag(row: Mapping[str, Any], column: str) -> bool | None:
    """Return a label, see `flag`; None where there is none."""
    word = optional_text(row, column).lower()
    if word in NULLS:
        return None
    if word in _HARMFUL:
        return True
    if word in _BENIGN:
        return False
    raise RowDroppedError("the label is neither harmful nor benign")


def json_of(row: Mapping[str, Any], column: str) -> object:
    """Return the value of a cell that is JSON, or a text that holds JSON as tables do."""
    value = row.get(column)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def normalised(text: str) -> str:
    r"""Return the form in which two texts count as the same.

    Unicode NFKC, lower case (case folding) and single spaces.

    >>> normalised(" \uff26ull\twidth ")
    'full width'
    """
    if text.isascii():
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def group_of(kind: str, value: str) -> str:
    """Return the name of a group, 16 hexadecimal digits.

    Args:
        kind: what the value is, so that equal values of two kinds do not meet.
        value: an id, or a text that variants share.
    """
    return hashlib.sha256(f"{kind}\0{value}".encode()).hexdigest()[:16]


def group_of_text(text: str) -> str:
    """Return the group of all texts that are equal once they are normalised."""
    return group_of("text", normalised(text))
