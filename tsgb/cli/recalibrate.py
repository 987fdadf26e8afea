"""`tsgb recalibrate`: an operating point for an exported guard on one's own benign prompts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tsgb.cli.data import MapOption
from tsgb.cli.options import BaseOption, DeviceOption, JsonOption
from tsgb.errors import UsageError
from tsgb.types import Split

if TYPE_CHECKING:
    from tsgb.export.record import GuardFile, OperatingPoint

PROGRESS_SECONDS = 2.0
"""Seconds between two lines of progress."""


def recalibrate(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="What `tsgb export-guard` wrote.")
    ],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files with benign prompts.")
    ],
    name: Annotated[str, typer.Option("--name", help="Name of the new operating point.")] = "own",
    fpr: Annotated[
        float, typer.Option("--fpr", help="False-positive budget, between 0 and 1.")
    ] = 0.01,
    mapping: MapOption = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--all", help="Calibrate on the prompts of all splits: none is left to measure on."
        ),
    ] = False,
    measured: Annotated[
        bool,
        typer.Option(
            "--measure", help="Also print what the old and the new point do on the test split."
        ),
    ] = False,
    default: Annotated[
        bool, typer.Option("--default", help="The guard uses this point from now on.")
    ] = False,
    base: BaseOption = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float32 or bfloat16; the export's own without it."),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Choose a threshold on your own benign prompts, by the rule of the run, and keep the old one.

    The benign prompts of the calibration split of the files are scored; groups of prompts count as
    scenarios. guard.json gets another operating point, with where it is from; README.md lists it.
    """
    from tsgb.data.check import DataScan
    from tsgb.data.mapping import ColumnMap
    from tsgb.data.selection import select
    from tsgb.export.recalibrate import (
        add_point,
        benign_prompts,
        check_apart,
        check_name,
        measure,
        operating_point,
        read_recalibrated,
        score_benign,
        update_card,
    )

    about = read_recalibrated(directory)
    for known in about.dtypes:
        if known == (dtype or about.dtype):
            check_name(about, name, known)
    if not 0 < fpr < 1:
        raise UsageError(f"--fpr {fpr:g} is no budget: name a share between 0 and 1, such as 0.01")
    if measured and everything:
        raise UsageError("--all leaves no prompt to measure on: leave out --all or --measure")
    scan = DataScan(files, columns := ColumnMap.parse(mapping or []))
    chosen = benign_prompts(scan, everything=everything)
    check_apart(about, chosen, columns, everything=everything)
    tested = select(scan, Split.TEST) if measured else []
    from transformers.utils.logging import disable_progress_bar

    from tsgb import load_guard
    from tsgb.eval.wording import in_words

    disable_progress_bar()  # stderr is for ours
    guard = load_guard(directory, base=base, device=device, dtype=dtype)
    found = score_benign(guard, chosen, _progress())
    point = operating_point(found, chosen, fpr, everything=everything)
    about = add_point(directory, name, guard.dtype, point, default=default)
    if not update_card(directory, about):
        typer.echo(
            f"warning: {directory} has no README.md with a section on operating points, so its "
            "card does not list the new one",
            err=True,
        )
    thresholds = {p: x.value for p, x in about.dtypes[guard.dtype].thresholds.items()}
    figures = measure(guard, thresholds, tested, _progress()) if measured else {}
    if as_json:
        from tsgb.cli.output import print_json

        print_json(
            {
                "directory": str(directory),
                "name": name,
                "dtype": guard.dtype,
                "default": about.default,
                "point": point.model_dump(mode="json"),
                "measured": {
                    p: {k: None if r is None else r.model_dump() for k, r in f._asdict().items()}
                    for p, f in figures.items()
                },
            }
        )
        return
    for line in _lines(about, name, guard.dtype, point):
        typer.echo(line)
    for point_name, at_point in figures.items():
        alarms, misses = in_words(at_point.fpr), in_words(at_point.fnr)
        typer.echo(f"test split, {point_name}: false alarms {alarms}; misses {misses}")


def _lines(about: GuardFile, name: str, dtype: str, point: OperatingPoint) -> list[str]:
    own = point.own
    assert own is not None
    points = next(m.thresholds for d, m in about.dtypes.items() if d == dtype)
    kept = ", ".join(f"{n} {p.value:.6g}" for n, p in points.items() if n != name)
    use = "" if about.default == name else f"; --preset {name} uses the new one"
    chosen = f"{own.n} benign prompts of {own.groups} groups (correlation {own.correlation:.2f})"
    bound = f"at most {point.fpr_upper:.2%} with confidence {1 - own.delta:.0%}"
    lines = [
        f"{name}: unsafe above {point.value:.6g} in {dtype}, chosen on {chosen}",
        f"false alarms on such prompts: {bound}, budget {point.alpha:.2%}",
        f"kept: {kept}",
        f"the guard uses {about.default}{use}",
    ]
    if point.fpr_upper > point.alpha:
        lines.append(
            "warning: too few groups speak for this budget, so the threshold is the highest score: "
            "bring more prompts, or take a larger budget"
        )
    if own.too_long:
        lines.append(f"warning: {own.too_long} prompts are too long for the guard and left out")
    if own.all_splits:
        lines.append("warning: no prompt of these files is left to measure this threshold on")
    return lines


def _progress() -> Callable[[int, int], None]:
    said = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said >= PROGRESS_SECONDS:
            said = time.monotonic()
            typer.echo(f"{done} of {total} prompts", err=True)

    return report
