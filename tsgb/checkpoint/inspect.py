"""Checkpoints of a run and the state of each, told from its listing and manifests alone.

It reads no file of a checkpoint: that is verify.py. A run costs one request for its list and one
for each manifest; what is not committed costs one more, to know its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tsgb.checkpoint.layout import CHECKPOINTS, CheckpointName
from tsgb.checkpoint.manifest import FileRecord, Manifest, PartRecord
from tsgb.checkpoint.reader import CheckpointReader, InvalidCheckpoint
from tsgb.checkpoint.run import RunStore
from tsgb.errors import CheckpointError


class CheckpointState(StrEnum):
    """State of a checkpoint, by its manifest."""

    OK = "ok"
    """Committed; its files are yet to be read."""
    UNFINISHED = "unfinished"
    """It has no manifest: it is being written, or its writer died. Nothing was lost."""
    DAMAGED = "damaged"
    """Committed once, and not what was written any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """One checkpoint directory."""

    run: RunStore = field(repr=False)
    """Run that it belongs to."""
    checkpoint: CheckpointName
    """Attempt, step and writer, as its directory's name spells them."""
    state: CheckpointState
    """State by its manifest."""
    reason: str = ""
    """Reason why it is not ok."""
    size: int | None
    """Size of its own files in bytes, by the manifest or else by the listing; None if unknown."""
    manifest: Manifest | None = None
    """Manifest of a checkpoint that is ok; None for others."""
    sha256: str | None = None
    """Hash of the manifest's bytes."""

    @property
    def files(self) -> Mapping[str, FileRecord]:
        """Size and hash of each of its files; empty for a checkpoint that is not ok."""
        return {} if self.manifest is None else self.manifest.files

    @property
    def parts(self) -> Mapping[str, PartRecord]:
        """Parts that it shares with others, by `FILE/PART`; empty for one that is not ok."""
        return {} if self.manifest is None else self.manifest.part_records

    @property
    def contents(self) -> Mapping[str, tuple[str, FileRecord]]:
        """Path in the run and record of each file and part; a part of two names is there once."""
        files = {name: (f"{self.directory}/{name}", r) for name, r in self.files.items()}
        parts = {record.path: (name, record) for name, record in self.parts.items()}
        return files | {name: (path, record) for path, (name, record) in parts.items()}

    @property
    def parts_size(self) -> int:
        """Size in bytes of the parts that it shares with others; one that has two names is once."""
        return sum({record.path: record.size for record in self.parts.values()}.values())

    @property
    def directory(self) -> str:
        """Directory, relative to its run."""
        return f"{CHECKPOINTS}/{self.checkpoint.name}"

    @property
    def url(self) -> str:
        """URL of its directory."""
        return f"{self.run.run_url}/{self.directory}"


class Inspector(CheckpointReader):
    """The checkpoints of one run, good and bad."""

    def all(self) -> Sequence[CheckpointInfo]:
        """Return every checkpoint directory, newest first."""
        return [self.look(checkpoint) for checkpoint in self._checkpoints()]

    def named(self, name: str) -> CheckpointInfo:
        """Return the checkpoint of this name, in whatever state.

        Raises:
            CheckpointError: There is no such directory.
        """
        checkpoint = next(
            (checkpoint for checkpoint in self._checkpoints() if checkpoint.name == name), None
        )
        if checkpoint is None:
            raise CheckpointError(
                f"there is no checkpoint {name} in {self.run.run_url}: see "
                f"`tsgb checkpoint ls {self.run.run_url}`"
            )
        return self.look(checkpoint)

    def committed(self, on_skip: Callable[[str], None]) -> Iterator[CheckpointInfo]:
        """Yield those that are ok, newest first; each manifest is read when it is asked for."""
        for listed in map(self.look, self._checkpoints()):
            if listed.manifest is None:
                on_skip(f"{listed.checkpoint.name}: {listed.reason}")
            else:
                yield listed

    def look(self, checkpoint: CheckpointName) -> CheckpointInfo:
        """Return the state of a checkpoint, by its manifest."""
        try:
            manifest, sha256 = self._manifest(checkpoint)
        except InvalidCheckpoint as error:
            state = CheckpointState.DAMAGED if error.committed else CheckpointState.UNFINISHED
            size = self._size_there(checkpoint)
            return CheckpointInfo(
                run=self.run, checkpoint=checkpoint, state=state, reason=f"{error}", size=size
            )
        return CheckpointInfo(
            run=self.run,
            checkpoint=checkpoint,
            state=CheckpointState.OK,
            size=sum(record.size for record in manifest.files.values()),
            manifest=manifest,
            sha256=sha256,
        )

    def file(self, listed: CheckpointInfo, name: str) -> bytes:
        """Return a file of a checkpoint that is ok, or a part by `FILE/PART`, verified.

        Raises:
            InvalidCheckpoint: It is not what was written.
        """
        if listed.manifest is None:
            raise InvalidCheckpoint(listed.reason, committed=True)
        if name in listed.parts:
            return self._part(name, listed.parts[name])
        return self._file(listed.checkpoint, listed.manifest, name)

    def _size_there(self, checkpoint: CheckpointName) -> int | None:
        try:
            entries = self.run.filesystem.entries(f"{CHECKPOINTS}/{checkpoint.name}")
        except FileNotFoundError:
            return None  # deleted just now
        sizes = [entry.size for entry in entries if not entry.is_dir]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None
