"""Another operating point for an exported guard, chosen on benign prompts that a user brings.

The threshold of a run holds its budget for traffic like its world's. On one's own benign prompts it
is chosen anew by the same rule, with groups of prompts as scenarios. The export gains a point under
a name of its own; no point that was there is changed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsgb.checkpoint.documents import parse_json_object
from tsgb.checkpoint.filesystem import write_atomically
from tsgb.data.characters import visible
from tsgb.data.check import DataScan
from tsgb.data.mapping import ColumnMap
from tsgb.data.selection import FileSelection, SelectedPrompt, select
from tsgb.data.splits import SplitFractions
from tsgb.errors import StoreFull, UsageError
from tsgb.eval.bootstrap import Resampler
from tsgb.eval.estimators import RateEstimator
from tsgb.eval.records import Rate
from tsgb.export.card import CARD, with_operating_points
from tsgb.export.directory import json_bytes
from tsgb.export.loading import BATCH_SIZE, LoadedGuard, read_guard_file
from tsgb.export.record import (
    SCHEMA_VERSION,
    CalibrationFile,
    Dtype,
    GuardFile,
    OperatingPoint,
    OwnCalibration,
)
from tsgb.trainer.threshold import np_threshold
from tsgb.types import Split

DELTA = 0.05
"""Probability that the budget may be exceeded, over draws of the prompts."""
MAX_CARD_BYTES = 1 << 20
"""Longest card that is read; ours have some kilobytes."""
ALL = SplitFractions(test=0.0, calibration=1.0, train=0.0)
"""Every prompt calibrates; none is left to measure on."""


class BenignScores(NamedTuple):
    """Scores of a user's benign prompts."""

    scores: list[float]
    """One score a prompt."""
    groups: list[str]
    """Group of each prompt."""
    too_long: int
    """Prompts that the guard does not read as a whole; they have no score."""


class MeasuredPoint(NamedTuple):
    """What an operating point does on labelled prompts, with intervals over their groups."""

    fpr: Rate | None
    """Benign prompts that are unsafe to it; None without any."""
    fnr: Rate | None
    """Harmful prompts that are safe to it; None without any."""


def benign_prompts(scan: DataScan, *, everything: bool, limit: int = 0) -> list[FileSelection]:
    """Return the benign prompts of the calibration split, each text once a file.

    Args:
        scan: what the files hold.
        everything: whether all benign prompts calibrate, those of the other splits too.
        limit: prompts of each file at most; 0: all.

    Raises:
        UsageError: A file has none.
    """
    shares = {"fractions": ALL} if everything else {}
    return select(
        scan, Split.CALIBRATION, limit=limit, wanted=lambda harmful: not harmful, **shares
    )


def read_recalibrated(directory: Path) -> GuardFile:
    """Read the `guard.json` of an export that can get another operating point.

    Raises:
        UsageError: There is none; it is of version 1, whose script would not read the new one; or
            the guard's tokenizer is a closed list of words.
    """
    about = read_guard_file(directory)
    content = parse_json_object((directory / "guard.json").read_bytes())
    if content.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(
            f"{directory} was exported by an earlier version, whose score.py would not read the "
            "new guard.json: export the guard again"
        )
    if about.template.words is not None:
        raise UsageError(
            f"this guard of the world {about.env!r} knows a closed list of words and cannot read "
            "prompts of a file: recalibrate a guard on a chat model"
        )
    return about


def check_apart(
    about: GuardFile,
    files: Sequence[FileSelection],
    mapping: ColumnMap | None,
    *,
    everything: bool,
) -> None:
    """Refuse to calibrate on prompts that the guard was trained on, as far as its files tell.

    Args:
        about: the guard.
        files: what `benign_prompts` chose.
        mapping: columns that the user named.
        everything: whether the prompts of all splits calibrate.

    Raises:
        UsageError: A file whose train split it learned from is read whole, or by other columns.
    """
    if about.train_data is None:
        return
    theirs = {file.sha256 for file in about.train_data.files}
    same = [visible(file.name) for file in files if file.sha256 in theirs]
    if same and everything:
        raise UsageError(
            f"--all: the guard was trained on the train split of {same[0]}, so a threshold that is "
            "chosen on it holds for nothing else: leave --all away"
        )
    columns = "" if mapping is None else mapping.text
    if same and columns != about.train_data.mapping:
        way = f"--map {about.train_data.mapping!r}" if about.train_data.mapping else "no --map"
        raise UsageError(
            f"the guard was trained on the train split of {same[0]}, which was read with {way}: "
            "read it in the same way, or a threshold would be chosen on what it was trained on"
        )


def check_name(about: GuardFile, name: str, dtype: Dtype) -> None:
    """Refuse the name of a point that is there.

    Raises:
        UsageError: It is, or it is no name.
    """
    if not name or not name.isprintable() or " " in name or len(name) > 64:
        raise UsageError(f"--name {visible(name, 70)!r} is not 1 to 64 printable characters")
    if name in about.dtypes[dtype].thresholds:
        raise UsageError(
            f"the guard has an operating point {name!r} in {dtype}, which is kept: choose another "
            "--name"
        )


def score_benign(
    guard: LoadedGuard,
    files: Sequence[FileSelection],
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> BenignScores:
    """Score prompts; those that are too long for the guard are counted.

    A text that several files hold is scored once.
    """
    found = _scored(guard, files, report)
    return BenignScores(
        scores=[score for _, score in found],
        groups=[chosen.group for chosen, _ in found],
        too_long=len({p.digest for file in files for p in file.prompts}) - len(found),
    )


def _scored(
    guard: LoadedGuard, files: Sequence[FileSelection], report: Callable[[int, int], None]
) -> list[tuple[SelectedPrompt, float]]:
    """Return each text once with its score, those that are too long left out."""
    texts = {p.digest: p for file in files for p in reversed(file.prompts)}
    prompts = sorted(texts.values(), key=lambda p: len(p.prompt.text))  # batches of one length
    found: list[tuple[SelectedPrompt, float]] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        piece = prompts[start : start + BATCH_SIZE]
        scores = _assess(guard, [p.prompt.text for p in piece])
        found += [(p, score) for p, score in zip(piece, scores, strict=True) if score is not None]
        report(start + len(piece), len(prompts))
    return found


def _assess(guard: LoadedGuard, texts: list[str]) -> list[float | None]:
    """Return scores; a prompt that is too long has none and does not stop the others."""
    try:
        return [found.score for found in guard.assess(texts)]
    except UsageError:
        if len(texts) == 1:
            return [None]
    return [score for text in texts for score in _assess(guard, [text])]


def operating_point(
    found: BenignScores, files: Sequence[FileSelection], alpha: float, *, everything: bool
) -> OperatingPoint:
    """Choose the threshold of a budget.

    Args:
        found: scores of the prompts of `files`.
        files: what was scored.
        alpha: false-positive budget, in (0, 1).
        everything: whether the prompts of all splits calibrate.

    Raises:
        UsageError: Too few scores for this budget.
    """
    rule = np_threshold(found.scores, alpha, DELTA, found.groups)
    return OperatingPoint(
        value=rule.value,
        alpha=alpha,
        order=rule.order,
        fpr_upper=rule.fpr_upper,
        own=OwnCalibration(
            delta=DELTA,
            n=rule.num,
            groups=rule.num_scenarios or rule.num,
            correlation=rule.correlation,
            too_long=found.too_long,
            all_splits=everything,
            files=[
                CalibrationFile(
                    name=visible(file.name)[:255],
                    format=file.format,
                    sha256=file.sha256,
                    drawn=len(file.prompts),
                    split_sha256=file.split_sha256,
                )
                for file in files
            ],
        ),
    )


def measure(
    guard: LoadedGuard,
    thresholds: Mapping[str, float],
    files: Sequence[FileSelection],
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, MeasuredPoint]:
    """Return what operating points do on labelled prompts that none was chosen on.

    Args:
        guard: gives the scores.
        thresholds: operating points by name.
        files: the prompts, such as those of the test split.
        report: called with the numbers of prompts scored and in all.
    """
    found = _scored(guard, files, report)
    scores = np.array([score for _, score in found])
    harmful = np.array([bool(chosen.prompt.harmful) for chosen, _ in found], dtype=np.bool_)
    groups = np.array([chosen.group for chosen, _ in found], dtype=np.str_)
    resampler = Resampler()

    def rate(events: NDArray[np.bool_], rows: NDArray[np.bool_]) -> Rate | None:
        if not rows.any():
            return None
        names, clusters = np.unique(groups[rows], return_inverse=True)
        outcomes = events[rows].astype(np.int8)
        estimator = RateEstimator.from_outcomes(
            outcomes, np.zeros(len(outcomes), dtype=np.intp), clusters, (1, names.size)
        )
        return resampler.sample(estimator).record()

    return {
        name: MeasuredPoint(rate(scores > value, ~harmful), rate(scores <= value, harmful))
        for name, value in thresholds.items()
    }


def add_point(
    directory: Path, name: str, dtype: Dtype, point: OperatingPoint, *, default: bool
) -> GuardFile:
    """Write an operating point into `guard.json`, beside those that are there.

    The file is replaced as a whole, so it is the old or the new one at any moment.

    Args:
        directory: the export.
        name: name of the point.
        dtype: dtype of its scores.
        point: what is added.
        default: whether the guard uses it unless another one is wanted.

    Raises:
        UsageError: The name is taken; the point shall be the default and another dtype lacks one
            of its name; or the file cannot be written.
        StoreFull: No space.
    """
    about = read_recalibrated(directory)
    check_name(about, name, dtype)
    measured = about.dtypes[dtype]
    changed = measured.model_copy(update={"thresholds": {**measured.thresholds, name: point}})
    dtypes = {**about.dtypes, dtype: changed}
    lacking = [other for other, found in dtypes.items() if name not in found.thresholds]
    if default and lacking:
        raise UsageError(
            f"{name!r} cannot be the default: the guard has no such point in {lacking[0]} yet; "
            f"calibrate with --dtype {lacking[0]} and this name first, without --default"
        )
    update = {"dtypes": dtypes, **({"default": name} if default else {})}
    about = GuardFile.model_validate(about.model_copy(update=update).model_dump())
    _replace(directory / "guard.json", json_bytes(about.model_dump(mode="json")))
    return about


def update_card(directory: Path, about: GuardFile) -> bool:
    """Write the operating points of `guard.json` into the card of the export.

    Only their section is written anew. `guard.json` alone decides how the guard is used.

    Returns:
        Whether the card lists them; False if there is no card with that section, as where a user
        wrote another one.

    Raises:
        UsageError: It cannot be written.
        StoreFull: No space.
    """
    path = directory / CARD
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CARD_BYTES + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError):
        return False
    changed = None if len(data) > MAX_CARD_BYTES else with_operating_points(text, about)
    if changed is None:
        return False
    _replace(path, changed.encode())
    return True


def _replace(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StoreFull(f"{path}: no space left: the file is as it was") from error
        raise UsageError(f"{path}: {error.strerror}: make its directory writable") from error
