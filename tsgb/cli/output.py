"""Printing of commands: a console for people, one JSON document for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import typer
from rich.console import Console

MIN_WIDTH = 110
"""Columns of a table where the terminal does not say how wide it is."""


def print_json(document: Mapping[str, Any]) -> None:
    """Print the document on stdout, on lines of its own."""
    typer.echo(json.dumps(document, indent=1, ensure_ascii=False))


def console() -> Console:
    """Return a console on stdout, wide enough for a table also where it is no terminal."""
    out = Console(highlight=False, emoji=False)
    return out if out.is_terminal else Console(highlight=False, emoji=False, width=MIN_WIDTH)
