"""`tsgb score`: prompts from a file or stdin as scores, one JSON object a line."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tsgb.cli.options import BaseOption, DeviceOption
from tsgb.errors import ExitCode, UsageError

PROGRESS_SECONDS = 2.0
"""Seconds between two lines of progress."""


def score(
    guard: Annotated[
        Path, typer.Option("--guard", metavar="DIR", help="What `tsgb export-guard` wrote.")
    ],
    source: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Prompts, one a line; stdin without it."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="File for the scores, in place of stdout; the same command goes on with it.",
        ),
    ] = None,
    field: Annotated[
        str | None,
        typer.Option("--field", help="Lines are JSON objects, and the prompt is this field."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="Operating point; the export's own without it.")
    ] = None,
    base: BaseOption = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="float32 or bfloat16, each with thresholds of its own; the export's own without "
            "it.",
        ),
    ] = None,
    device: DeviceOption = "auto",
) -> int:
    """Score prompts with an exported guard: a JSON object a line, an error in place of a score.

    The prompts of its self-test are scored first and compared. Nothing is cut. With --output, an
    interrupted command goes on where it was.
    """
    from tsgb import load_guard
    from tsgb.export.scoring import read_items, score_file, score_stream

    try:
        stream: Any = sys.stdin.buffer if source is None else source.open("rb")
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}: name a file of prompts") from error
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # stderr is for ours
    with stream:
        loaded = load_guard(guard, base=base, preset=preset, device=device, dtype=dtype)
        items = read_items(stream, field)
        if output is None:
            progress = score_stream(loaded, items, _write)
        else:
            progress = score_file(loaded, items, output)
        started = said = time.monotonic()
        first, done = 0, None
        for done in progress:
            now = time.monotonic()
            if now - said >= PROGRESS_SECONDS:
                said = now
                rate = (done.lines - first) / (now - started)
                typer.echo(f"{done.lines} lines, {rate:.1f} a second", err=True)
    lines, errors = (0, 0) if done is None else done
    typer.echo(f"{lines} lines, {errors} without a score", err=True)
    return ExitCode.FAILURE if errors else 0


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
