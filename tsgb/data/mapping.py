"""Columns that the user names: `--map prompt=COL label=COL[=VALUES] group=COL slice=COL`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from tsgb.data.cells import (
    NULLS,
    RowDroppedError,
    flag,
    group_of,
    group_of_text,
    number_or_text,
    optional_text,
    text_of,
)
from tsgb.data.characters import visible
from tsgb.data.records import DataPrompt
from tsgb.errors import UsageError

CONSTANTS = {"@harmful": True, "@benign": False}
"""Labels that hold for a whole file, in place of a column."""
EXAMPLE = "--map prompt=COLUMN --map label=COLUMN=unsafe"


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnMap:
    """Columns of a file by their meaning.

    Example: `ColumnMap.parse(["prompt=question", "label=verdict=unsafe,borderline"])`
    """

    prompt: str
    """Column of the prompt."""
    label: str | None = None
    """Column of the label and, after its last `=`, the values that mean harmful, between commas;
    or `@harmful`, `@benign` for all rows. None where there are no labels."""
    group: str | None = None
    """Column that the variants of one prompt share; None: equal texts do."""
    slice: str | None = None
    """Column of the category."""
    technique: str | None = None
    """Column of the technique family."""
    language: str | None = None
    """Column of the language."""

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Self | None:
        """Read the values of `--map`; None without any.

        Args:
            texts: each holds one `KEY=COLUMN`, or several between spaces, quoted as in a shell.

        Raises:
            UsageError: One is no `KEY=COLUMN`, a key is unknown or repeated, or `prompt` is
                missing.
        """
        known = [field.name for field in fields(cls)]
        found: dict[str, str] = {}
        for pair in _pairs(texts):
            key, equals, column = pair.partition("=")
            if not equals or not column or key not in known:
                raise UsageError(
                    f"--map {visible(pair, 80)!r} is not KEY=COLUMN with a key of "
                    f"{', '.join(known)}; a name with spaces takes quotation marks: --map "
                    "\"prompt='my column'\""
                )
            if key in found:
                raise UsageError(f"--map names {key} twice: name one column")
            found[key] = column
        if not found:
            return None
        if "prompt" not in found:
            raise UsageError(f"--map names no prompt: add prompt=COLUMN, as in {EXAMPLE}")
        if found["prompt"] in (found.get("slice"), found.get("technique"), found.get("language")):
            raise UsageError("--map names the prompt as a category too: categories are printed")
        return cls(**found)

    @property
    def text(self) -> str:
        """The form that `parse` reads as this, in one text."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return shlex.join(f"{key}={column}" for key, column in found.items() if column is not None)

    def missing(self, columns: Sequence[str]) -> list[str]:
        """Return the columns that it names and a file does not have."""
        label, _ = self._label(columns)
        named = [self.prompt, label, self.group, self.slice, self.technique, self.language]
        return [name for name in named if name is not None and name not in columns]

    def _label(self, columns: Sequence[str]) -> tuple[str | None, frozenset[str] | None]:
        """Return the column of the label and the values that mean harmful, if any are named."""
        if self.label is None or self.label in CONSTANTS or self.label in columns:
            return (None if self.label in CONSTANTS else self.label), None
        column, equals, values = self.label.rpartition("=")
        if not equals:
            return self.label, None
        return column, frozenset(value.strip() for value in values.split(","))

    def read(self, row: Mapping[str, Any], number: int, columns: Sequence[str]) -> DataPrompt:
        """Return the prompt of a row.

        Raises:
            RowDroppedError: It has none, or its label is empty or means neither.
        """
        text = text_of(row, self.prompt)
        column, values = self._label(columns)
        harmful = CONSTANTS.get(self.label or "")
        if column is not None:
            harmful = _mapped_label(row, column, values)
        if self.group is None:
            group = group_of_text(text)
        else:
            group = group_of("map", number_or_text(row, self.group, "no group"))
        return DataPrompt(
            text=text,
            harmful=harmful,
            group=group,
            slice=optional_text(row, self.slice),
            technique=optional_text(row, self.technique),
            language=optional_text(row, self.language),
            source="map",
            row=number,
        )


def _mapped_label(row: Mapping[str, Any], column: str, values: frozenset[str] | None) -> bool:
    if values is None:
        return flag(row, column)
    word = number_or_text(row, column, "no label (null)").strip()
    if word.lower() in NULLS and word not in values:
        raise RowDroppedError("no label (null)")
    return word in values


def _pairs(texts: Iterable[str]) -> list[str]:
    try:
        return [pair for text in texts for pair in shlex.split(text)]
    except ValueError as error:
        raise UsageError(
            f"--map: {error}: close the quotation mark, as in --map \"prompt='my column'\""
        ) from error
