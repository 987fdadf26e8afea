"""Reads every byte of checkpoints and says what is damaged, where, and how that is known.

A damaged file is compared with another copy of what was written, where a checkpoint still has one:
the bytes that differ are then known exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tsgb.checkpoint.documents import MAX_JSON_BYTES
from tsgb.checkpoint.filesystem import FileTooLargeError
from tsgb.checkpoint.inspect import CheckpointInfo, CheckpointState
from tsgb.checkpoint.manifest import MANIFEST, FileRecord, sha256_hex
from tsgb.checkpoint.reader import READS

_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FileProblem:
    """One damaged file.

    Example: `FileProblem(file="guard.safetensors", reason="sha256 differs from the one that was
    written", begin=17, end=18, expected_sha256="ab12...", found_sha256="34cd...", ...)`
    """

    file: str
    """File name; of a part, its path in the run."""
    reason: str
    """Reason why it counts as damaged."""
    expected_size: int | None = None
    """Size in bytes that was written; None where it is unknown."""
    found_size: int | None = None
    """Size in bytes that was found; None where the file is missing."""
    expected_sha256: str | None = None
    """Hash of the bytes that were written."""
    found_sha256: str | None = None
    """Hash of the bytes that were found."""
    begin: int | None = None
    """Offset of the first byte that is wrong; None where nothing tells."""
    end: int | None = None
    """Offset after the last byte that is wrong."""

    def __str__(self) -> str:
        where = "" if self.begin is None else f", bytes {self.begin} to {self.end}"
        hashes = [
            f"{kind} sha256 {value}"
            for kind, value in (("expected", self.expected_sha256), ("found", self.found_sha256))
            if value is not None
        ]
        return "; ".join([f"{self.file}: {self.reason}{where}", *hashes])


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """One checkpoint after all of it was read."""

    listed: CheckpointInfo
    """Checkpoint that was read."""
    state: CheckpointState
    """State, now that its files were read."""
    reason: str = ""
    """Reason why it is unfinished."""
    problems: Sequence[FileProblem] = ()
    """Damaged files."""
    num_files: int = 0
    """Number of files and parts that it has, without the manifest."""


def verify(
    listed: Sequence[CheckpointInfo], on_file: Callable[[CheckpointInfo, str, int], None]
) -> Iterator[VerifyResult]:
    """Read all files of checkpoints, and once each part that they share.

    Args:
        listed: Checkpoints to read; damage to one is located with the help of the others.
        on_file: Called after each file with the checkpoint, the name and the bytes.
    """
    found: dict[str, FileProblem | None] = {}
    for item in listed:
        if item.state is CheckpointState.UNFINISHED:
            yield VerifyResult(listed=item, state=item.state, reason=item.reason)
            continue
        problems = [] if item.manifest is not None else [_manifest_problem(item)]
        for name, (path, record) in item.contents.items():
            url = f"{item.run.run_url}/{path}"
            if url not in found:
                found[url] = _file_problem(item, path, record, listed)
            problem = found[url]
            problems += [] if problem is None else [problem]
            on_file(item, name, record.size)
        if problems and _read(item, f"{item.directory}/{MANIFEST}") is None:
            # A worker that is alive prunes, and deletes the manifest first.
            yield VerifyResult(
                listed=item, state=CheckpointState.UNFINISHED, reason="it was deleted meanwhile"
            )
            continue
        state = CheckpointState.DAMAGED if problems else CheckpointState.OK
        num_files = len(item.contents)
        yield VerifyResult(listed=item, state=state, problems=problems, num_files=num_files)


def _manifest_problem(item: CheckpointInfo) -> FileProblem:
    try:
        data = _read(item, f"{item.directory}/{MANIFEST}")
    except FileTooLargeError:
        data = None
    return FileProblem(
        file=MANIFEST,
        reason=item.reason.removeprefix(f"{MANIFEST} is damaged: ").removeprefix(f"{MANIFEST}: "),
        found_size=None if data is None else len(data),
        found_sha256=None if data is None else sha256_hex(data),
    )


def _file_problem(
    item: CheckpointInfo, path: str, record: FileRecord, others: Sequence[CheckpointInfo]
) -> FileProblem | None:
    name = path.removeprefix(f"{item.directory}/")
    data, reason = b"", ""
    for _ in range(READS):
        try:
            read = _read(item, path, 2 * record.size + MAX_JSON_BYTES)
        except FileTooLargeError:
            return FileProblem(
                file=name,
                reason=f"it is far larger than the {record.size} bytes that were written",
                expected_size=record.size,
                expected_sha256=record.sha256,
            )
        if read is None:
            return FileProblem(
                file=name,
                reason="it is missing",
                expected_size=record.size,
                expected_sha256=record.sha256,
            )
        mismatch = record.mismatch(read)
        if mismatch is None:
            return None
        data, reason = read, mismatch
    begin, end = _wrong_bytes(data, record, _copy(item, path, record, others))
    return FileProblem(
        file=name,
        reason=reason,
        expected_size=record.size,
        found_size=len(data),
        expected_sha256=record.sha256,
        found_sha256=sha256_hex(data),
        begin=begin,
        end=end,
    )


def _read(item: CheckpointInfo, path: str, max_bytes: int = MAX_JSON_BYTES) -> bytes | None:
    # From the store itself: a cache of verified files would answer for one that has rotted since.
    try:
        return item.run.read_bytes(path, max_bytes)
    except FileNotFoundError:
        return None


def _copy(
    item: CheckpointInfo, path: str, record: FileRecord, others: Sequence[CheckpointInfo]
) -> bytes | None:
    """Return the same content from elsewhere; it is read only when something is damaged."""
    for other in others:
        for other_path, other_record in other.contents.values():
            same_run = other.run.run_url == item.run.run_url
            if other_record.sha256 != record.sha256 or (same_run and other_path == path):
                continue
            with suppress(FileTooLargeError):
                data = _read(other, other_path, record.size)
                if data is not None and record.mismatch(data) is None:
                    return data
    return None


def _wrong_bytes(
    data: bytes, record: FileRecord, copy: bytes | None
) -> tuple[int, int] | tuple[None, None]:
    lengths = sorted((len(data), record.size))
    if copy is None:
        # Equal lengths: any byte may be it. Else it is at least what one has and the other lacks.
        return (None, None) if lengths[0] == lengths[1] else (lengths[0], lengths[1])
    begin = _first_difference(data, copy)
    if lengths[0] != lengths[1]:
        return begin, lengths[1]
    return begin, lengths[1] - _first_difference(data[::-1], copy[::-1])


def _first_difference(one: bytes, other: bytes) -> int:
    """Return the first offset at which two differ; the length of the shorter where none does."""
    length = min(len(one), len(other))
    for start in range(0, length, _BLOCK):
        stop = min(start + _BLOCK, length)
        if one[start:stop] != other[start:stop]:
            return next(i for i in range(start, stop) if one[i] != other[i])
    return length
