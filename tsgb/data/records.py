"""A prompt of a user's file, and a row that is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPrompt:
    """One row of a file, stored exactly as it was written.

    Example: `DataPrompt(text="How do I end a process?", harmful=False, group="9f2c41d07a5be630",
    slice="homonyms", source="xstest", row=1)`
    """

    text: str
    """The prompt."""
    harmful: bool | None
    """Label of the prompt; None where the file has none, or labels the response only."""
    group: str
    """Name, 16 hexadecimal digits, that the variants of one prompt or behaviour share."""
    slice: str = ""
    """Category, as the file names it."""
    technique: str = ""
    """Technique family, such as `adversarial`; empty if it is plain or unknown."""
    language: str = ""
    """Language, as the file names it; empty if it does not."""
    source: str
    """Name of the format, or `map` for columns that the user named."""
    row: int
    """Number of the row: the record of a table, from 1 and without its header, or the line of JSON
    lines."""
    response: str | None = None
    """Answer of a model that the file holds beside the prompt."""
    response_harmful: bool | None = None
    """Label of that answer; None where there is none."""


class DroppedRow(NamedTuple):
    """A row that gives no prompt."""

    row: int
    """Number of the row, see `DataPrompt`."""
    reason: str
    """Why, without any of its text: equal reasons are counted together."""


class RawRow(NamedTuple):
    """A row before anything is known of its columns."""

    number: int
    """Number of the row, see `DataPrompt`."""
    cells: dict[str, Any]
    """Value by column: text, and what JSON and Parquet know besides."""
    problem: str = ""
    """Reason why it cannot be read; empty if it can."""
