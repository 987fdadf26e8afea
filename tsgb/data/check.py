"""What files of prompts hold, what would be left out and why; without any of their text.

Files are read row after row: what is kept of a prompt is a digest, 256 bytes for near duplicates,
and counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tsgb.data.characters import suspicious, visible
from tsgb.data.duplicates import DuplicateCounts, PromptGroups
from tsgb.data.mapping import ColumnMap
from tsgb.data.reader import open_data
from tsgb.data.records import DataPrompt, DroppedRow
from tsgb.data.splits import DEFAULT_FRACTIONS, SplitFractions, hash_of_split
from tsgb.errors import UsageError
from tsgb.types import Split

MAX_PROMPTS = 2_000_000
"""Prompts of all files that are read at once."""
MAX_SLICES = 200
"""Categories of a file: a column with more of them holds something else."""
MAX_SHOWN = 200
"""Characters of a prompt that is shown on request."""
LARGE_GROUP = 0.2
"""Share of all prompts in one group from which a warning is given."""


@dataclass(slots=True)
class Occurrences:
    """How often something was found, and where first."""

    num: int = 0
    """Times."""
    first_row: int = 0
    """Number of the first row, see `DataPrompt.row`."""

    def add(self, row: int) -> None:
        """Count a row."""
        self.first_row = self.first_row or row
        self.num += 1


@dataclass(slots=True)
class LabelCounts:
    """Prompts by label."""

    harmful: int = 0
    """Harmful ones."""
    benign: int = 0
    """Benign ones."""
    unlabelled: int = 0
    """Prompts without a label."""

    def add(self, harmful: bool | None) -> None:
        """Count a prompt."""
        if harmful is None:
            self.unlabelled += 1
        elif harmful:
            self.harmful += 1
        else:
            self.benign += 1


@dataclass(slots=True, kw_only=True)
class FileCheck:
    """What one file holds."""

    path: str
    """The file, as the user named it."""
    kind: str
    """Form of the file, see `DataTable`."""
    format: str
    """Name of the recognised format, or `map`."""
    labels_by: str
    """How labels are told, in a few words."""
    rows: int = 0
    """Rows that were read."""
    prompts: LabelCounts = field(default_factory=LabelCounts)
    """Prompts by label."""
    labelled_responses: int = 0
    """Rows with a label of a model's answer."""
    dropped: dict[str, Occurrences] = field(default_factory=dict[str, Occurrences])
    """Rows that give no prompt, by reason."""
    characters: dict[str, Occurrences] = field(default_factory=dict[str, Occurrences])
    """Prompts with suspicious characters, by kind; they are kept as they are."""
    slices: dict[str, LabelCounts] = field(default_factory=dict[str, LabelCounts])
    """Prompts by category."""
    techniques: dict[str, int] = field(default_factory=dict[str, int])
    """Prompts by technique; plain ones are left out."""
    languages: dict[str, int] = field(default_factory=dict[str, int])
    """Prompts by language, where the file names it."""
    lengths: dict[str, int] = field(default_factory=dict[str, int])
    """Characters of prompts: `min`, `median`, `p95`, `max`."""
    shown: list[str] = field(default_factory=list[str])
    """First prompts, escaped; empty unless they were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitCheck:
    """One split of all files together."""

    prompts: LabelCounts
    """Prompts by label, repeats included."""
    groups: int
    """Groups."""
    benign_groups: int
    """Groups with a benign prompt."""
    sha256: str
    """Hash of its prompts, labels and groups; see `hash_of_split`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataCheck:
    """What files hold together."""

    files: list[FileCheck]
    """Each file, in order."""
    groups: int
    """Groups, once those with duplicates of each other are joined."""
    largest_group: int
    """Prompts of the largest group."""
    duplicates: DuplicateCounts
    """Prompts that repeat others."""
    splits: dict[Split, SplitCheck]
    """Every split."""
    calibration_sizes: list[int]
    """Benign prompts of each group of the calibration split, each text once."""
    warnings: list[str]
    """What a user should know before relying on these files."""

    def document(self) -> dict[str, Any]:
        """Return it for JSON; names of columns and categories have hidden characters escaped."""
        found = asdict(self)
        found["duplicates"] = self.duplicates._asdict()
        found["splits"] = {split.value: content for split, content in found["splits"].items()}
        for file in found["files"]:
            for name in ("slices", "techniques", "languages"):
                file[name] = {visible(key): value for key, value in file[name].items()}
        return found


class DataScan:
    """A first reading of files: groups and counts, without texts."""

    def __init__(
        self,
        paths: Sequence[Path],
        mapping: ColumnMap | None = None,
        *,
        show: int = 0,
    ) -> None:
        """Read all files.

        Args:
            paths: files, each once.
            mapping: columns that the user names; see `open_data`.
            show: prompts of each file whose text is kept, escaped.

        Raises:
            UsageError: A file cannot be read, is named twice, gives no prompt, or all hold more
                than `MAX_PROMPTS`; or no file has the columns of the mapping.
        """
        if not paths:
            raise UsageError("no file: name files of prompts")
        places = [path.resolve() for path in paths]
        for path, place in zip(paths, places, strict=True):
            if places.count(place) > 1:
                raise UsageError(f"{path} is named twice: name each file once")
        self.paths = tuple(paths)
        self.mapping = mapping
        self.groups = PromptGroups()
        self.labels: list[bool | None] = []
        """Label of each prompt, by its place in `groups`."""
        self.files = [self._read(number, path, show) for number, path in enumerate(paths)]
        if mapping is not None and all(file.format != "map" for file in self.files):
            named = ", ".join(visible(name, 40) for name in mapping.missing(()))
            raise UsageError(
                f"no file has the columns of --map ({named}), though their formats are known: "
                "leave --map out, or name other columns"
            )

    def _read(self, number: int, path: Path, show: int) -> FileCheck:
        with open_data(path, self.mapping) as data:
            file = FileCheck(
                path=str(path), kind=data.kind, format=data.format, labels_by=data.labels
            )
            lengths: list[int] = []
            for row in data.rows:
                file.rows += 1
                if isinstance(row, DroppedRow):
                    file.dropped.setdefault(row.reason, Occurrences()).add(row.row)
                    continue
                self._add(number, file, row)
                lengths.append(len(row.text))
                if len(file.shown) < show:
                    file.shown.append(visible(row.text, MAX_SHOWN))
        if not lengths:
            reasons = ", ".join(f"{reason} ({n.num})" for reason, n in file.dropped.items())
            raise UsageError(
                f"{path} gives no prompt ({reasons or 'it has no rows'}): name another file"
            )
        low, middle, high, top = np.percentile(lengths, [0, 50, 95, 100]).round().astype(int)
        file.lengths = {
            "min": int(low),
            "median": int(middle),
            "p95": int(high),
            "max": int(top),
        }
        return file

    def _add(self, number: int, file: FileCheck, prompt: DataPrompt) -> None:
        if len(self.groups) >= MAX_PROMPTS:
            raise UsageError(
                f"{file.path}, row {prompt.row}: more than {MAX_PROMPTS} prompts in all: leave "
                "files out"
            )
        self.groups.add(prompt, number)
        self.labels.append(prompt.harmful)
        file.prompts.add(prompt.harmful)
        file.labelled_responses += prompt.response_harmful is not None
        if prompt.slice not in file.slices and len(file.slices) >= MAX_SLICES:
            raise UsageError(
                f"{file.path}, row {prompt.row}: the category has more than {MAX_SLICES} values, "
                "so it is none: name another column by slice="
            )
        file.slices.setdefault(prompt.slice, LabelCounts()).add(prompt.harmful)
        for counts, name in (
            (file.techniques, prompt.technique),
            (file.languages, prompt.language),
        ):
            if name:
                key = name if name in counts or len(counts) < MAX_SLICES else "others"
                counts[key] = counts.get(key, 0) + 1
        for kind in suspicious(prompt.text):
            file.characters.setdefault(kind, Occurrences()).add(prompt.row)


def check(scan: DataScan, fractions: SplitFractions = DEFAULT_FRACTIONS) -> DataCheck:
    """Return what the files hold, and how their groups are split."""
    groups = scan.groups.groups()
    sizes = Counter(groups)
    splits = {group: fractions.split_of(group) for group in sizes}
    members: dict[Split, list[int]] = {split: [] for split in Split}
    for place, group in enumerate(groups):
        members[splits[group]].append(place)
    calibration = Counter(
        groups[place]
        for place in members[Split.CALIBRATION]
        if scan.labels[place] is False and not scan.groups.is_repeat(place)
    )
    duplicates = scan.groups.counts()
    largest = max(sizes.values())
    return DataCheck(
        files=scan.files,
        groups=len(sizes),
        largest_group=largest,
        duplicates=duplicates,
        splits={split: _split(scan, groups, places) for split, places in members.items()},
        calibration_sizes=list(calibration.values()),
        warnings=_warnings(scan, duplicates, largest),
    )


def _split(scan: DataScan, groups: Sequence[str], places: Sequence[int]) -> SplitCheck:
    counts = LabelCounts()
    for place in places:
        counts.add(scan.labels[place])
    return SplitCheck(
        prompts=counts,
        groups=len({groups[place] for place in places}),
        benign_groups=len({groups[p] for p in places if scan.labels[p] is False}),
        sha256=hash_of_split((groups[p], scan.groups.digest(p), scan.labels[p]) for p in places),
    )


def _warnings(scan: DataScan, duplicates: DuplicateCounts, largest: int) -> list[str]:
    found: list[str] = []
    for file in scan.files:
        labelled = file.prompts.harmful + file.prompts.benign
        if not labelled and file.labelled_responses:
            found.append(f"{file.path}: the labels are of responses, no prompt has one")
        elif not labelled:
            found.append(f"{file.path}: no prompt has a label")
        elif file.format == "map" and not (file.prompts.harmful and file.prompts.benign):
            one = "harmful" if file.prompts.harmful else "benign"
            found.append(f"{file.path}: every label is {one}: check the values in label=")
        if file.characters:
            found.append(
                f"{file.path}: prompts with {', '.join(sorted(file.characters))} characters; they "
                "are kept as they are"
            )
    if duplicates.contradicting:
        found.append(f"{duplicates.contradicting} prompts have another label where they repeat")
    if largest > max(1, LARGE_GROUP * len(scan.groups)):
        share = largest / len(scan.groups)
        found.append(f"one group holds {share:.0%} of all prompts: splits are uneven")
    return found
