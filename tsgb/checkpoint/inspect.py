"""Which checkpoints a run has and in what state, told from its listing and manifests alone.

It reads no file of a checkpoint: that is verify.py. A run costs one request for its list and one
for each manifest; what is not committed costs one more, to know its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tsgb.checkpoint.layout import CHECKPOINTS, CheckpointName
from tsgb.checkpoint.manifest import FileRecord, Manifest
from tsgb.checkpoint.reader import CheckpointReader, InvalidCheckpoint
from tsgb.checkpoint.run import RunStore
from tsgb.errors import CheckpointError


class CheckpointState(StrEnum):
    """What a checkpoint's manifest says of it."""

    OK = "ok"
    """Committed; its files are yet to be read."""
    UNFINISHED = "unfinished"
    """Without a manifest: being written, or left by a process that died. Nothing was lost."""
    DAMAGED = "damaged"
    """Committed once, and not what was written any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """One checkpoint directory."""

    run: RunStore = field(repr=False)
    place: CheckpointName
    state: CheckpointState
    reason: str = ""
    """Why it is not ok."""
    size: int | None
    """Bytes of its files: by the manifest, else those that lie there; None where nobody says."""
    manifest: Manifest | None = None
    """Only of one that is ok."""
    sha256: str | None = None
    """Of the manifest's bytes."""

    @property
    def files(self) -> Mapping[str, FileRecord]:
        """What it must hold; nothing is known of one that is not ok."""
        return {} if self.manifest is None else self.manifest.files

    @property
    def directory(self) -> str:
        """Where it is in its run."""
        return f"{CHECKPOINTS}/{self.place.name}"

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{self.run.run_url}/{self.directory}"


class Inspector(CheckpointReader):
    """The checkpoints of one run, good and bad."""

    def all(self) -> Sequence[CheckpointInfo]:
        """Every checkpoint directory, newest first."""
        return [self.look(place) for place in self._places()]

    def named(self, name: str) -> CheckpointInfo:
        """The checkpoint of this name, in whatever state.

        Raises:
            CheckpointError: There is no such directory.
        """
        place = next((place for place in self._places() if place.name == name), None)
        if place is None:
            raise CheckpointError(
                f"there is no checkpoint {name} in {self.run.run_url}: see "
                f"`tsgb checkpoint ls {self.run.run_url}`"
            )
        return self.look(place)

    def committed(self, on_skip: Callable[[str], None]) -> Iterator[CheckpointInfo]:
        """Those that are ok, newest first, each looked at when it is asked for."""
        for listed in map(self.look, self._places()):
            if listed.manifest is None:
                on_skip(f"{listed.place.name}: {listed.reason}")
            else:
                yield listed

    def look(self, place: CheckpointName) -> CheckpointInfo:
        """Read a checkpoint's manifest."""
        try:
            manifest, sha256 = self._manifest(place)
        except InvalidCheckpoint as error:
            state = CheckpointState.DAMAGED if error.committed else CheckpointState.UNFINISHED
            size = self._size_there(place)
            return CheckpointInfo(
                run=self.run, place=place, state=state, reason=f"{error}", size=size
            )
        return CheckpointInfo(
            run=self.run,
            place=place,
            state=CheckpointState.OK,
            size=sum(record.size for record in manifest.files.values()),
            manifest=manifest,
            sha256=sha256,
        )

    def file(self, listed: CheckpointInfo, name: str) -> bytes:
        """A file of a checkpoint that is ok, verified.

        Raises:
            InvalidCheckpoint: It is not what was written.
        """
        if listed.manifest is None:
            raise InvalidCheckpoint(listed.reason, committed=True)
        return self._file(listed.place, listed.manifest, name)

    def _size_there(self, place: CheckpointName) -> int | None:
        try:
            entries = self.run.filesystem.entries(f"{CHECKPOINTS}/{place.name}")
        except FileNotFoundError:
            return None  # deleted just now
        sizes = [entry.size for entry in entries if not entry.is_dir]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None
