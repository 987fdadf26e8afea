"""Models that were pushed to the exchange, where rented machines read them.

    <exchange>/_models/lists/<pin>.json     names, sizes and hashes of a model's files
    <exchange>/_models/pieces/<sha256>      a piece of a file; each content is there once

A machine cannot read a directory of the laptop, nor a repository that asks for a token, because no
token ever leaves the laptop. `tsgb models push` puts such a model here. Its name,
`pushed:NAME@<pin>`, holds the hash of the list and so of every byte: whoever changes a file here is
found out before anything is loaded. Files travel in pieces, so that no process holds one whole, and
a transfer that was cut off goes on where it was.

    <cache_dir>/pushed/<pin>/               the files on this machine, verified at each use

On the machine that pushed, they are links to where they were pushed from.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tsgb.checkpoint.documents import canonical_json, parse_json_object
from tsgb.checkpoint.filesystem import (
    FileSystem,
    FileTooLargeError,
    open_filesystem,
    write_atomically,
)
from tsgb.checkpoint.urls import is_name
from tsgb.errors import ConfigError
from tsgb.models.file_lock import locked
from tsgb.models.files import DESCRIPTION, weight_files
from tsgb.models.hash_cache import HashCache
from tsgb.setting_groups import HubSettings

PREFIX = "pushed:"
"""Beginning of the names of pushed models."""
PIECE_BYTES = 64 * 2**20
"""Bytes of a piece; servers and proxies often refuse larger requests than some hundred MB."""
_LISTS, _PIECES = "lists", "pieces"
_PIN_DIGITS = 40
_NAME = re.compile(rf"{PREFIX}([A-Za-z0-9][\w.-]{{0,79}})@([0-9a-f]{{{_PIN_DIGITS}}})", re.ASCII)
_SHA256 = r"^[0-9a-f]{64}$"
_MOST_LIST_BYTES = 2**20
"""Size above which a list is none: it has 70 bytes for each 64 MB of a model."""
_LIST = "files.json"
"""File in the local directory with the list."""

OnPiece = Callable[[int, int], None]
"""Called with the bytes that are done and with all, after each piece."""


def _quiet(_done: int, _total: int) -> None:
    """Tell nobody."""


class PushedFile(BaseModel):
    """A file of a pushed model.

    Example: `PushedFile(size=0, sha256="0" * 64, pieces=())`
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    size: Annotated[int, Field(ge=0)]
    """Bytes of the file."""
    sha256: Annotated[str, Field(pattern=_SHA256)]
    """Hash of the whole file."""
    pieces: tuple[Annotated[str, Field(pattern=_SHA256)], ...]
    """Hashes of its pieces, in their order; all but the last have the size that the list names."""


class PushedList(BaseModel):
    """The list of a pushed model's files.

    Example: `PushedList(name="tiny", files={}).pin`
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,79}$")]
    """Short name, for people."""
    piece_bytes: Annotated[int, Field(ge=1, le=PIECE_BYTES)] = PIECE_BYTES
    """Bytes of a whole piece."""
    files: Mapping[str, PushedFile]
    """Its files, by name."""

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        for name, file in self.files.items():
            if not is_name(name) or not (name in DESCRIPTION or name.endswith(".safetensors")):
                raise ValueError(f"{name!r} is no file of a model")
            if len(file.pieces) != -(-file.size // self.piece_bytes):
                raise ValueError(f"{name} has {file.size} bytes and {len(file.pieces)} pieces")
        return self

    @classmethod
    def read(cls, data: bytes, pin: str) -> Self:
        """Read a list, which must be the one that `pin` names.

        Raises:
            ValueError: It is another one.
        """
        if _pin_of(data) != pin:
            raise ValueError("its content has another hash")
        return cls.model_validate(parse_json_object(data))

    @property
    def content(self) -> bytes:
        """The list as it is stored."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def pin(self) -> str:
        """Hash by which the model is named: the first 160 bits of the list's SHA-256, in hex."""
        return _pin_of(self.content)

    @property
    def full_name(self) -> str:
        """The name that `--model` takes."""
        return f"{PREFIX}{self.name}@{self.pin}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, by name."""
        return {name: file.size for name, file in self.files.items()}


def _pin_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_PIN_DIGITS]


def parse_pushed(name: str) -> tuple[str, str] | None:
    """Return the short name and the pin in the name of a pushed model; None for any other name."""
    found = _NAME.fullmatch(name)
    return found and (found[1], found[2])


def short_name(name: str) -> str:
    """Return a name for a model that is pushed from a directory or a repository called `name`."""
    last = re.sub(r"[^\w.-]+", "-", name.rstrip("/").rpartition("/")[2], flags=re.ASCII)
    return last.lstrip("-_.")[:80] or "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """Result of a push."""

    pushed: PushedList
    """The model."""
    sent_bytes: int
    """Bytes that were sent; pieces that were there already are not."""


@dataclass(slots=True)
class PushedModels:
    """Pushed models on this machine and, where it is known, in the exchange.

    Example: `PushedModels(Path("cache/models"), open_filesystem(url)).push(directory, "tiny")`
    """

    cache_dir: Path
    """Directory of converted models; pushed ones get a directory in it."""
    files: FileSystem | None = None
    """The directory of pushed models in the exchange; None where only this machine's are used."""
    piece_bytes: int = PIECE_BYTES
    """Bytes of the pieces in which models are pushed from here."""
    _hashes: HashCache = field(init=False)

    def __post_init__(self) -> None:
        self._hashes = HashCache(self.cache_dir)

    # -- push ------------------------------------------------------------------------------

    def push(
        self,
        directory: Path,
        name: str,
        on_piece: OnPiece = _quiet,
        *,
        again: bool = False,
    ) -> PushResult:
        """Send a model's files to the exchange, and keep links to them here.

        The list comes last: a push that was cut off is no model yet, and the same call goes on.

        Args:
            directory: The model, as `save_pretrained` writes it.
            name: Short name, for people.
            on_piece: Told about the transfer.
            again: Whether pieces are sent that are there already: only their sizes are looked at,
                and somebody may have changed them.

        Raises:
            ConfigError: Weights are missing, or a file changed while it was read.
            StoreError: The exchange cannot be written.
        """
        files = self._exchange()
        names = [*(n for n in DESCRIPTION if (directory / n).is_file()), *weight_files(directory)]
        size = self.piece_bytes
        found = {name: _hashed(directory / name, size) for name in sorted(names)}
        pushed = PushedList(name=name, piece_bytes=size, files=found)
        there, done, sent = self._piece_sizes(), 0, 0
        for file_name, file in found.items():
            for digest, data in zip(
                file.pieces, _pieces(directory / file_name, size), strict=False
            ):
                if hashlib.sha256(data).hexdigest() != digest:
                    raise ConfigError(f"{directory / file_name} changed while it was pushed")
                if again or there.get(digest) != len(data):
                    files.write(f"{_PIECES}/{digest}", data)
                    there[digest] = len(data)
                    sent += len(data)
                done += len(data)
                on_piece(done, pushed.size)
        self._link(pushed, directory)
        files.write(f"{_LISTS}/{pushed.pin}.json", pushed.content)
        return PushResult(pushed=pushed, sent_bytes=sent)

    def listed(self) -> Sequence[PushedList]:
        """Return the models in the exchange, by name; a list that is damaged is left out."""
        files, found = self._exchange(), list[PushedList]()
        try:
            entries = files.entries(_LISTS)
        except FileNotFoundError:
            return []
        for entry in entries:
            pin = entry.name.removesuffix(".json")
            try:
                found.append(self._read_list(files, pin))
            except (ConfigError, FileNotFoundError):
                continue
        return sorted(found, key=lambda one: (one.name, one.pin))

    def delete(self, pin: str) -> int:
        """Delete a model, and the pieces that no other one has; return the bytes that are freed."""
        files = self._exchange()
        files.delete(f"{_LISTS}/{pin}.json")  # first: half a model must not look like one
        used = {piece for one in self.listed() for f in one.files.values() for piece in f.pieces}
        unused = {name: size for name, size in self._piece_sizes().items() if name not in used}
        for piece in unused:
            files.delete(f"{_PIECES}/{piece}")
        return sum(size or 0 for size in unused.values())

    def check_there(self, name: str, pin: str) -> None:
        """Return if the exchange has all of a model, by the sizes of its pieces.

        Raises:
            ConfigError: It has not.
        """
        files, full = self._exchange(), f"{PREFIX}{name}@{pin}"
        try:
            pushed = self._read_list(files, pin)
        except FileNotFoundError:
            raise ConfigError(
                f"model {full} is not in {files.url}: push it with `tsgb models push`"
            ) from None
        there = self._piece_sizes()
        sizes = dict(_piece_sizes_of(pushed))
        lost = [piece for piece, size in sizes.items() if there.get(piece, -1) not in (size, None)]
        if lost:
            raise ConfigError(
                f"model {full}: {len(lost)} of {len(sizes)} pieces are missing or cut short in "
                f"{files.url}: push it again with `tsgb models push`"
            )

    # -- read ------------------------------------------------------------------------------

    def describe(self, name: str, pin: str) -> tuple[Path, Mapping[str, int]]:
        """Return the directory with configuration and tokenizer, and the sizes of all files.

        Raises:
            ConfigError: The model is neither here nor in the exchange, or damaged.
            StoreError: The exchange does not answer.
        """
        return self._have(name, pin, only=frozenset(DESCRIPTION))

    def fetch(self, name: str, pin: str, on_piece: OnPiece = _quiet) -> Path:
        """Return the directory with all files, downloaded now if they are not here.

        Args:
            name: Short name.
            pin: Hash of the list.
            on_piece: Told about the transfer, file by file.

        Raises:
            ConfigError: See `describe`.
            StoreError: See `describe`.
        """
        return self._have(name, pin, on_piece=on_piece)[0]

    def _have(
        self,
        name: str,
        pin: str,
        *,
        only: frozenset[str] | None = None,
        on_piece: OnPiece = _quiet,
    ) -> tuple[Path, Mapping[str, int]]:
        directory = self.cache_dir / "pushed" / pin
        try:
            pushed = self._list_here(directory, name, pin)
            wanted = {n: f for n, f in pushed.files.items() if only is None or n in only}
            if not all(self._is_here(directory / n, file) for n, file in wanted.items()):
                with locked(directory.with_name(f"{pin}.lock")):  # several workers may want it
                    for file_name, file in wanted.items():
                        if not self._is_here(directory / file_name, file):
                            self._download(directory / file_name, file, pushed, on_piece)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}:
                raise
            raise ConfigError(
                f"model {PREFIX}{name}@{pin} cannot be kept in {directory}: {error.strerror}; make "
                "space, or set TSGB_CACHE_DIR to a directory on a larger disk"
            ) from None
        return directory, pushed.sizes

    def _list_here(self, directory: Path, name: str, pin: str) -> PushedList:
        try:
            return PushedList.read((directory / _LIST).read_bytes(), pin)
        except (FileNotFoundError, ValueError):
            pass
        if self.files is None:
            raise ConfigError(
                f"model {PREFIX}{name}@{pin} is not on this machine: get it with `tsgb models pull "
                f"{PREFIX}{name}@{pin}`"
            )
        try:
            pushed = self._read_list(self.files, pin)
        except FileNotFoundError:
            raise ConfigError(
                f"model {PREFIX}{name}@{pin} is not in {self.files.url}: push it with `tsgb models "
                "push`"
            ) from None
        write_atomically(directory / _LIST, pushed.content)
        return pushed

    def _read_list(self, files: FileSystem, pin: str) -> PushedList:
        try:
            return PushedList.read(files.read(f"{_LISTS}/{pin}.json", _MOST_LIST_BYTES), pin)
        except FileTooLargeError:
            reason = "it is too large"
        except ValidationError as error:
            reason = str(error.errors()[0]["msg"])
        except ValueError as error:
            reason = str(error)
        raise ConfigError(
            f"{files.url}/{_LISTS}/{pin}.json is no list of a pushed model ({reason}): "
            "send the model again with `tsgb models push --again`"
        )

    def _is_here(self, path: Path, file: PushedFile) -> bool:
        """Return whether a file is as it was pushed; large ones are hashed once."""
        try:
            return path.stat().st_size == file.size and self._hashes.sha256_of(path) == file.sha256
        except FileNotFoundError:
            return False

    def _download(
        self, target: Path, file: PushedFile, pushed: PushedList, on_piece: OnPiece
    ) -> None:
        model, size = pushed.full_name, pushed.piece_bytes
        if self.files is None:
            raise ConfigError(
                f"model {model}: {target} has changed or is gone since it was pushed: push it "
                f"again, or get this one back with `tsgb models pull {model}`"
            )
        partial = target.with_name(f".{target.name}.part")
        whole = hashlib.sha256()
        with partial.open("a+b") as out:
            out.seek(0)
            kept = 0
            for digest in file.pieces:  # what an earlier process brought
                data = out.read(size)
                if hashlib.sha256(data).hexdigest() != digest:
                    break
                whole.update(data)
                kept += len(data)
            out.truncate(kept)
            for digest in file.pieces[-(-kept // size) :]:
                data = self._piece(digest, model)
                whole.update(data)
                out.write(data)
                kept += len(data)
                on_piece(kept, file.size)
            out.flush()
            os.fsync(out.fileno())
        if whole.hexdigest() != file.sha256 or partial.stat().st_size != file.size:
            partial.unlink()
            raise ConfigError(f"model {model}: {target.name} is not what was pushed: push it again")
        partial.replace(target)

    def _piece(self, digest: str, model: str) -> bytes:
        assert self.files is not None
        path = f"{_PIECES}/{digest}"
        try:
            data = self.files.read(path, PIECE_BYTES)
        except FileNotFoundError:
            reason = "is missing"
        except FileTooLargeError:
            reason = "is too large"
        else:
            if hashlib.sha256(data).hexdigest() == digest:
                return data
            reason = "has another content than its name says"
        raise ConfigError(
            f"model {model}: {self.files.url}/{path} {reason}: send it again with "
            "`tsgb models push --again`"
        )

    def _link(self, pushed: PushedList, directory: Path) -> None:
        """Keep the model here as links to where it is, so that it takes no space twice."""
        target = self.cache_dir / "pushed" / pushed.pin
        target.mkdir(parents=True, exist_ok=True)
        for name, file in pushed.files.items():
            if not self._is_here(target / name, file):
                fresh = target / f".{name}.link"
                fresh.unlink(missing_ok=True)
                fresh.symlink_to((directory / name).resolve())
                fresh.replace(target / name)
        write_atomically(target / _LIST, pushed.content)

    def _piece_sizes(self) -> dict[str, int | None]:
        try:
            entries = self._exchange().entries(_PIECES)
        except FileNotFoundError:
            return {}
        return {entry.name: entry.size for entry in entries}

    def _exchange(self) -> FileSystem:
        if self.files is None:
            raise ConfigError("no exchange is known, in which models could be")
        return self.files


def pushed_models(settings: HubSettings, cache_dir: Path) -> PushedModels:
    """Return the pushed models of this machine, and of the exchange if the settings name it.

    Args:
        settings: Address of the pushed models, and credentials for it.
        cache_dir: Directory of converted models.
    """
    url = settings.models_url
    files = url and open_filesystem(url, settings.webdav_user, settings.webdav_pass)
    return PushedModels(cache_dir, files or None)


def _piece_sizes_of(pushed: PushedList) -> Iterator[tuple[str, int]]:
    for file in pushed.files.values():
        for index, piece in enumerate(file.pieces):
            yield piece, min(pushed.piece_bytes, file.size - index * pushed.piece_bytes)


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(size):
            yield data


def _hashed(path: Path, piece_bytes: int) -> PushedFile:
    whole, pieces, size = hashlib.sha256(), list[str](), 0
    for data in _pieces(path, piece_bytes):
        whole.update(data)
        pieces.append(hashlib.sha256(data).hexdigest())
        size += len(data)
    return PushedFile(size=size, sha256=whole.hexdigest(), pieces=tuple(pieces))
