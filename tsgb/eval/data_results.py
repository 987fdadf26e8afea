"""Figures of guards on the files that a user brings: false positives, misses and AUROC.

Prompts of a file are no stream of the world: they are in no other figure and in no claim. Their
groups are the clusters of the bootstrap. A group may hold harmful and benign prompts (a prompt and
its contrast); for AUROC the two classes are drawn apart, as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsgb.checkpoint.run import RunStore
from tsgb.errors import UsageError
from tsgb.eval.bootstrap import Resampler
from tsgb.eval.estimators import AurocEstimator, Estimator, Indices, RateEstimator
from tsgb.eval.intervals import MISSING, Outcomes, too_many_errors
from tsgb.eval.metrics import Bools, Floats, negate
from tsgb.eval.records import DataFileRecord, DataResult, FailedClass, Item, Rate, Setup

CELL = "cells/data.json"
"""Place in the directory of an evaluation of what guards said of the user's prompts."""
WITHOUT_VERDICT = frozenset({"none", "oracle"})
"""Guards without a word on such prompts: one blocks nothing, one knows the world's labels only."""


def read_cell(run: RunStore, directory: str) -> Mapping[str, Any]:
    """Return the cell of the user's files.

    Raises:
        UsageError: There is none.
    """
    try:
        return run.read_signed_json(f"{directory}/{CELL}")
    except FileNotFoundError as error:
        raise UsageError(
            f"{run.run_url}/{directory} lacks the cell of the data: evaluate first"
        ) from error


def read_files(request: Mapping[str, Any], cell: Mapping[str, Any]) -> list[DataFileRecord]:
    """Return the files that a request names, with what its cell left out."""
    files = [DataFileRecord.model_validate(file) for file in request["data"]]
    return [
        file.model_copy(update={"too_long": int(cell["too_long"].get(file.name, 0))})
        for file in files
    ]


def failed_data(
    items: Sequence[Item], setup: Setup, max_error_rate: float
) -> Iterator[FailedClass]:
    """Yield the classes of a file's prompts of which a guard left too many without a verdict.

    Args:
        items: the items whose source is `DATA`.
        setup: guards, seeds and files, in table order.
        max_error_rate: share of the prompts of one class of a file that may have no verdict.
    """
    for file in setup.data_files:
        columns = _Columns([item for item in items if item.file == file.name], setup.seeds)
        for guard in setup.guards:
            yield from columns.failed(guard, file.name, max_error_rate)


def data_results(items: Sequence[Item], setup: Setup, resampler: Resampler) -> list[DataResult]:
    """Return the figures of each file and of its categories.

    Args:
        items: the items whose source is `DATA`.
        setup: guards, seeds and files, in table order.
        resampler: draws of the bootstrap.
    """
    out: list[DataResult] = []
    for file in setup.data_files:
        rows = [item for item in items if item.file == file.name]
        if rows:
            columns = _Columns(rows, setup.seeds)
            out += _file_results(columns, file.name, setup.guards, resampler)
    return out


def _file_results(
    columns: _Columns, file: str, guards: Sequence[str], resampler: Resampler
) -> Iterator[DataResult]:
    slices = [str(name) for name in np.unique(columns.slices)]
    groups: list[str | None] = [None, *(slices if len(slices) > 1 else [])]
    for name in groups:
        rows = np.ones_like(columns.harmful) if name is None else columns.slices == name
        for guard in guards:
            if guard in WITHOUT_VERDICT or not columns.known(guard):
                continue

            def figure(estimator: Estimator | None) -> Rate | None:
                return None if estimator is None else resampler.sample(estimator).record()

            yield DataResult(
                guard=guard,
                file=file,
                slice=name,
                fpr=figure(columns.rate(guard, rows & ~columns.harmful, missed=False)),
                fnr=figure(columns.rate(guard, rows & columns.harmful, missed=True)),
                auroc=figure(columns.auroc(guard, rows)),
            )


class _Columns:
    """The items of one file as columns."""

    def __init__(self, items: Sequence[Item], seeds: Sequence[int]) -> None:
        self._items = items
        self._order = tuple(seeds)
        self._seed = np.array([item.seed for item in items], dtype=np.int64)
        self._group: NDArray[np.str_] = np.array([i.scenario_id for i in items], dtype=np.str_)
        self.harmful: Bools = np.array([item.harmful for item in items], dtype=np.bool_)
        self.slices: NDArray[np.str_] = np.array([item.slice for item in items], dtype=np.str_)

    def known(self, guard: str) -> bool:
        """Tell whether a guard gave any verdict."""
        return any(guard in item.blocked for item in self._items)

    def blocked(self, guard: str) -> Outcomes:
        """[N] verdicts, or `MISSING`."""
        return np.array(
            [int(item.blocked.get(guard, MISSING)) for item in self._items], dtype=np.int8
        )

    def scores(self, guard: str) -> Floats:
        """[N] scores; NaN where there is none."""
        return np.array([item.scores.get(guard, np.nan) for item in self._items])

    def failed(self, guard: str, file: str, limit: float) -> Iterator[FailedClass]:
        """Yield the classes of a file on which a guard gave too few verdicts."""
        if guard in WITHOUT_VERDICT:
            return
        missing = self.blocked(guard) == MISSING
        for name, kind in (("harmful", self.harmful), ("benign", ~self.harmful)):
            errors, total = int((missing & kind).sum()), int(kind.sum())
            if too_many_errors(errors, total, limit):
                what = f"verdicts of {guard} on {name} prompts of {file}"
                yield FailedClass(what=what, errors=errors, total=total)

    def _seeds(self, guard: str, rows: Bools) -> tuple[int, ...]:
        """Seeds that have verdicts of a guard on these rows."""
        answered = rows & (self.blocked(guard) != MISSING)
        return tuple(seed for seed in self._order if np.any(self._seed[answered] == seed))

    def rate(self, guard: str, rows: Bools, *, missed: bool) -> RateEstimator | None:
        """The share of rows that a guard blocks, or does not block; None without any."""
        seeds = self._seeds(guard, rows)
        if not seeds:
            return None
        rows = rows & np.isin(self._seed, seeds)
        names, clusters = np.unique(self._group[rows], return_inverse=True)
        outcomes = self.blocked(guard)[rows]
        return RateEstimator.from_outcomes(
            negate(outcomes) if missed else outcomes,
            self._positions(rows, seeds),
            clusters,
            (len(seeds), names.size),
        )

    def auroc(self, guard: str, rows: Bools) -> AurocEstimator | None:
        """Harmful against benign prompts by their scores; None without both of each seed."""
        scores = self.scores(guard)
        known = rows & ~np.isnan(scores)
        seeds = tuple(
            seed
            for seed in self._order
            if len(np.unique(self.harmful[known & (self._seed == seed)])) == 2
        )
        if not seeds:
            return None
        rows = rows & np.isin(self._seed, seeds)
        apart = np.empty(len(rows), dtype=np.intp)
        for kind in (rows & self.harmful, rows & ~self.harmful):
            apart[kind] = np.unique(self._group[kind], return_inverse=True)[1]
        return AurocEstimator.from_scores(
            scores[rows],
            self._positions(rows, seeds),
            apart[rows],
            self.harmful[rows],
            len(seeds),
        )

    def _positions(self, rows: Bools, seeds: tuple[int, ...]) -> Indices:
        return np.array([seeds.index(int(seed)) for seed in self._seed[rows]], dtype=np.intp)
