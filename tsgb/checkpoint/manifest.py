"""The manifest: the last file of a checkpoint, whose presence is the commit.

It knows formats and hashes, no store and no torch. Changing a field is a change of
`schema_version`; a manifest of another version is refused by name, never read by guess.

Schema versions: 1, the first.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tsgb.types import Buffer

MANIFEST = "manifest.json"
_PACKAGES = ("tsgb", "torch", "transformers", "peft", "safetensors", "numpy")


class FileRecord(BaseModel):
    """Size and hash of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size: int = Field(ge=0)
    """Bytes."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @classmethod
    def of(cls, data: Buffer) -> FileRecord:
        """The record that matches these bytes."""
        return cls(size=len(data), sha256=sha256_hex(data))

    def mismatch(self, data: Buffer) -> str | None:
        """Why these bytes are not the recorded ones; None when they are."""
        if len(data) != self.size:
            return f"{len(data)} bytes where {self.size} were written"
        if sha256_hex(data) != self.sha256:
            return "sha256 differs from the one that was written"
        return None


class Manifest(BaseModel):
    """What a checkpoint holds, and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    run_id: str
    step: int = Field(ge=0)
    episode: int = Field(ge=0)
    attempt: int = Field(ge=0)
    writer: str
    parent: str | None
    """Name of the checkpoint that the writing process started from or saved before this one."""
    files: dict[str, FileRecord]
    versions: dict[str, str]
    """Exact resume is promised on equal versions only."""
    config_sha256: str
    created_at: datetime

    def to_bytes(self) -> bytes:
        """Canonical JSON with the hash of all else in `self_sha256`."""
        content = self.model_dump(mode="json")
        return canonical_json({**content, "self_sha256": sha256_hex(canonical_json(content))})

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read and verify.

        Raises:
            ValueError: Not a manifest, of another version, or not the bytes that were written.
        """
        try:
            loaded: object = json.loads(data)
        except ValueError as error:
            raise ValueError("it is not JSON") from error
        if not isinstance(loaded, dict):
            raise ValueError("it is not a JSON object")  # noqa: TRY004 - a wrong file, not a bug
        content = cast("dict[str, Any]", loaded)
        claimed: object = content.pop("self_sha256", None)
        if canonical_json({**content, "self_sha256": claimed}) != data:
            raise ValueError("it is not canonical JSON")
        if claimed != sha256_hex(canonical_json(content)):
            raise ValueError("its own sha256 differs from the one that was written")
        if content.get("schema_version") != 1:
            raise ValueError(
                f"schema_version {content.get('schema_version')!r} is not 1: read it with the "
                "version of TSGB that wrote it"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"field {field}: {first['msg']}") from error


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """One form for one value: sorted keys, no spaces, UTF-8, a newline at the end."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return f"{text}\n".encode()


def sha256_hex(data: Buffer) -> str:
    """The sha256 of the bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def utc_now() -> datetime:
    """The default clock; whole seconds are enough for people."""
    return datetime.now(UTC).replace(microsecond=0)


def installed_versions() -> dict[str, str]:
    """Of Python and of the libraries that the numbers depend on, without importing them."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
