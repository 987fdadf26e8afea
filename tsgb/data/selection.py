"""Prompts of one split, with their texts: the second reading of files that were scanned."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tsgb.data.check import DataScan
from tsgb.data.duplicates import digest_of
from tsgb.data.reader import open_data
from tsgb.data.records import DataPrompt
from tsgb.data.splits import DEFAULT_FRACTIONS, SplitFractions, hash_of_split
from tsgb.errors import UsageError
from tsgb.types import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedPrompt:
    """A prompt of the chosen split."""

    prompt: DataPrompt
    """The prompt, whose `harmful` is known."""
    group: str
    """Name of its group, joined with those of its duplicates."""
    digest: str
    """Name of its text, 32 hexadecimal digits: equal for texts that are equal once normalised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSelection:
    """The chosen prompts of one file."""

    name: str
    """Name of the file without its folder."""
    format: str
    """Name of its format, or `map`."""
    sha256: str
    """Hash (hex) of the file."""
    available: int
    """Labelled prompts of the split, each text once, of which these were drawn."""
    prompts: list[SelectedPrompt]
    """The drawn ones, in the order of the file."""

    @property
    def split_sha256(self) -> str:
        """Hash (hex) of what was drawn; see `hash_of_split`."""
        return hash_of_split(
            (chosen.group, bytes.fromhex(chosen.digest), chosen.prompt.harmful)
            for chosen in self.prompts
        )


def select(
    scan: DataScan,
    split: Split,
    *,
    limit: int = 0,
    wanted: Callable[[bool], bool] = lambda _harmful: True,
    fractions: SplitFractions = DEFAULT_FRACTIONS,
) -> list[FileSelection]:
    """Read the labelled prompts of a split again, each text once a file.

    Args:
        scan: what the files hold.
        split: the split of groups.
        limit: prompts of each file at most, drawn by the hash of their texts; 0: all.
        wanted: tells by a label whether its prompts are chosen.
        fractions: shares of the splits.

    Raises:
        UsageError: A file has no such prompt, two files have one name, or one has changed since it
            was scanned.
    """
    names = [path.name for path in scan.paths]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"two files are called {twice[0]}, as tables name them: rename one")
    groups = scan.groups.groups()
    chosen: list[FileSelection] = []
    start = 0
    for file, path in zip(scan.files, scan.paths, strict=True):
        counts = file.prompts
        end = start + counts.harmful + counts.benign + counts.unlabelled
        labelled = [p for p in range(start, end) if scan.labels[p] is not None]
        first = {scan.groups.digest(place): place for place in reversed(labelled)}
        places = [
            place
            for place in first.values()
            if wanted(bool(scan.labels[place])) and fractions.split_of(groups[place]) is split
        ]
        if not places:
            raise UsageError(
                f"{path} has no labelled prompt in the {split} split that is needed here: see "
                "`tsgb data check`"
            )
        places.sort(key=lambda place: hashlib.sha256(scan.groups.digest(place)).digest())
        drawn = set(places[:limit] if limit else places)
        prompts = _read(scan, path, start, end, drawn, groups)
        chosen.append(
            FileSelection(
                name=path.name,
                format=file.format,
                sha256=_sha256(path),
                available=len(places),
                prompts=prompts,
            )
        )
        start = end
    return chosen


def _read(
    scan: DataScan,
    path: Path,
    start: int,
    end: int,
    drawn: set[int],
    groups: Sequence[str],
) -> list[SelectedPrompt]:
    place, found = start, list[SelectedPrompt]()
    with open_data(path, scan.mapping) as data:
        for row in data.rows:
            if not isinstance(row, DataPrompt):
                continue
            digest = digest_of(row.text)
            if place >= end or digest != scan.groups.digest(place):
                raise _changed(path)
            if place in drawn:
                found.append(SelectedPrompt(prompt=row, group=groups[place], digest=digest.hex()))
            place += 1
    if place != end:
        raise _changed(path)
    return found


def _changed(path: Path) -> UsageError:
    return UsageError(f"{path} changed while it was read: start again once it is whole")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
