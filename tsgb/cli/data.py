"""`tsgb data ...`: looks at files of prompts before anything is measured on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsgb.cli.options import JsonOption

if TYPE_CHECKING:
    from tsgb.data.check import DataCheck, FileCheck, LabelCounts

data_app = typer.Typer(help="Look at files of prompts before anything is measured on them.")

MapOption = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="KEY=COLUMN",
        help="A column: prompt=COL, label=COL or label=COL=VALUE,VALUE (these mean harmful), "
        "label=@harmful, label=@benign, group=COL, slice=COL, technique=COL, language=COL; may be "
        "repeated.",
    ),
]
BUDGET = 0.01
"""False-positive budget whose calibration is reckoned."""
CORRELATION = 0.5
"""Correlation within a group that a trained guard had: the cautious reading."""
_MOST_SLICES = 12


@data_app.command("check")
def data_check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of prompts.")],
    mapping: MapOption = None,
    show: Annotated[
        int,
        typer.Option(
            "--show", min=0, help="Print this many prompts of each file, cut and escaped."
        ),
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Say what files of prompts hold, what would be left out and why, and how they are split.

    No text of a prompt is printed without --show.
    """
    from tsgb.cli.output import print_json
    from tsgb.data.check import DataScan, check
    from tsgb.data.mapping import ColumnMap

    found = check(DataScan(files, ColumnMap.parse(mapping or []), show=show))
    calibration = _calibration(found)
    if as_json:
        print_json(found.document() | {"calibration": calibration})
        return
    for line in _lines(found, calibration):
        typer.echo(line)


def _calibration(found: DataCheck) -> dict[str, Any]:
    """Return whether the calibration split can hold the budget."""
    from tsgb.trainer.threshold import certifies, min_calibration_size

    sizes = found.calibration_sizes
    return {
        "budget": BUDGET,
        "benign": sum(sizes),
        "benign_groups": len(sizes),
        "needed": min_calibration_size(BUDGET),
        "enough": certifies(sizes, BUDGET),
        "correlation": CORRELATION,
        "enough_if_correlated": certifies(sizes, BUDGET, correlation=CORRELATION),
    }


def _lines(found: DataCheck, calibration: Mapping[str, Any]) -> Iterator[str]:
    for file in found.files:
        yield from _file(file)
    repeated = found.duplicates
    yield f"{found.groups} groups, the largest with {found.largest_group} prompts"
    yield (
        f"  repeated   {repeated.exact_within} equal within a file, {repeated.exact_across} across "
        f"files; nearly equal {repeated.near_within} and {repeated.near_across}; they joined "
        f"{repeated.shared_groups} groups with others"
    )
    for split, content in found.splits.items():
        yield (
            f"  {split:<12}{_counts(content.prompts)}, {content.groups} groups, sha256 "
            f"{content.sha256[:12]}"
        )
    yield (
        f"a budget of {calibration['budget']:.0%} takes {calibration['needed']} benign prompts of "
        f"the calibration split, if they are independent: it has {calibration['benign']} in "
        f"{calibration['benign_groups']} groups, "
        + _enough(calibration["enough"], calibration["enough_if_correlated"])
    )
    for warning in found.warnings:
        yield f"warning: {warning}"


def _enough(plain: bool, correlated: bool) -> str:
    if correlated:
        return "enough"
    if not plain:
        return "too few"
    return f"too few where a guard's scores agree within a group (correlation {CORRELATION:g})"


def _file(file: FileCheck) -> Iterator[str]:
    from tsgb.data.characters import visible

    yield f"{file.path}: {file.format} ({file.kind}), {file.rows} rows: {_counts(file.prompts)}"
    yield f"  labels     {visible(file.labels_by)}"
    if file.labelled_responses:
        yield f"  responses  {file.labelled_responses} with a label of their own"
    for reason, times in file.dropped.items():
        yield f"  dropped    {times.num}: {reason} (first in row {times.first_row})"
    for kind, times in file.characters.items():
        yield f"  characters {times.num} with {kind} ones (first in row {times.first_row})"
    yield "  lengths    " + ", ".join(f"{name} {value}" for name, value in file.lengths.items())
    for name, counted in (
        ("slices", {name: _total(counts) for name, counts in file.slices.items()}),
        ("techniques", file.techniques),
        ("languages", file.languages),
    ):
        if set(counted) - {""}:
            yield f"  {name:<10} {_largest(counted)}"
    for number, text in enumerate(file.shown, 1):
        yield f"  prompt {number:<3} {text}"


def _largest(counted: Mapping[str, int]) -> str:
    from tsgb.data.characters import visible

    order = sorted(counted, key=lambda name: (-counted[name], name))
    shown = [f"{visible(name) or '(none)'} {counted[name]}" for name in order[:_MOST_SLICES]]
    more = len(order) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _total(counts: LabelCounts) -> int:
    return counts.harmful + counts.benign + counts.unlabelled


def _counts(counts: LabelCounts) -> str:
    parts = [f"{counts.harmful} harmful", f"{counts.benign} benign"]
    return ", ".join(parts + [f"{counts.unlabelled} without a label"] * bool(counts.unlabelled))
