"""The manifest: the last file of a checkpoint, whose presence is the commit.

It knows formats and hashes, no store and no torch. Changing a field is a change of
`schema_version`; a manifest of another version is refused by name, never read by guess.

Schema versions: 1, the first; 2, the same with `hmac_sha256`, written only where a key is set; 3,
with `parts`, written only where a checkpoint has some, and signed where a key is set. So older
versions read all that they can.
"""

from __future__ import annotations

import hashlib
import hmac
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from tsgb.checkpoint.documents import canonical_json, parse_json_object
from tsgb.checkpoint.layout import PARTS
from tsgb.checkpoint.urls import is_name
from tsgb.types import Buffer

MANIFEST = "manifest.json"
_PACKAGES = ("tsgb", "torch", "transformers", "peft", "safetensors", "numpy")


class Untrusted(ValueError):  # noqa: N818 - a finding, and no damage
    """A sound manifest that is not signed with our key."""


def _check_name(name: str) -> str:
    if not is_name(name) or name == MANIFEST:
        raise ValueError(f"{name[:200]!r} is no name of a checkpoint's file")
    return name


class FileRecord(BaseModel):
    """Size and hash of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size: int = Field(ge=0)
    """Size in bytes."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Hash, as 64 hexadecimal digits."""

    @classmethod
    def of(cls, data: Buffer) -> FileRecord:
        """Return the record that matches these bytes."""
        return cls(size=len(data), sha256=sha256_hex(data))

    def mismatch(self, data: Buffer) -> str | None:
        """Return why these bytes are not the recorded ones; None when they are."""
        if len(data) != self.size:
            return f"{len(data)} bytes where {self.size} were written"
        if sha256_hex(data) != self.sha256:
            return "sha256 differs from the one that was written"
        return None


class PartRecord(FileRecord):
    """Size, hash and writer of one part: content that never changes, which checkpoints share."""

    writer: str = Field(pattern=r"^a[0-9]{4,6}-[0-9a-f]{8}$")
    """Fencing token of the process that wrote the file, as `FencingToken.name` spells it."""

    @property
    def path(self) -> str:
        """Path of the file in the run."""
        return f"{PARTS}/{self.sha256}-{self.writer}"


FileName = Annotated[str, AfterValidator(_check_name)]


class Manifest(BaseModel):
    """Contents and origin of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1, 2, 3] = 1
    """Version of this format; 2 where it is signed, 3 where it has parts."""
    run_id: str
    """Id of the run that it belongs to."""
    step: int = Field(ge=0)
    """Optimizer updates done."""
    episode: int = Field(ge=0)
    """Episodes played."""
    attempt: int = Field(ge=0)
    """Number of the attempt that wrote it."""
    writer: str
    """Eight hexadecimal digits, unique to the process that wrote it."""
    parent: str | None
    """Name of the checkpoint that the writing process started from or saved before this one."""
    files: dict[FileName, FileRecord]
    """Size and hash of each file, by name."""
    parts: dict[FileName, dict[FileName, PartRecord]] = {}
    """Parts of each file that has some, by name of the file and of the part."""
    versions: dict[str, str]
    """Versions of Python and of libraries; exact resume is promised on equal ones only."""
    config_sha256: str
    """Hash of the run's configuration."""
    created_at: datetime
    """Time of the save."""

    @property
    def part_records(self) -> dict[str, PartRecord]:
        """All parts, by `FILE/PART`."""
        return {
            f"{file}/{part}": record
            for file, parts in self.parts.items()
            for part, record in parts.items()
        }

    def to_bytes(self, key: SecretStr | None = None) -> bytes:
        """Return canonical JSON with the hash of all else in `self_sha256`.

        Args:
            key: Signs it, and with it every file: their hashes are in it.
        """
        content = self.model_dump(mode="json")
        content["schema_version"] = 3 if self.parts else 1 if key is None else 2
        if not self.parts:
            del content["parts"]
        if key is not None:
            content["hmac_sha256"] = _signature(content, key)
        return canonical_json({**content, "self_sha256": sha256_hex(canonical_json(content))})

    @classmethod
    def from_bytes(cls, data: bytes, key: SecretStr | None = None) -> Manifest:
        """Read and verify.

        Args:
            data: What the store holds.
            key: It must be signed with this one; without a key a signature is not looked at.

        Raises:
            Untrusted: It is not signed with the key.
            ValueError: Not a manifest, of another version, or not the bytes that were written.
        """
        content = parse_json_object(data)
        claimed: object = content.pop("self_sha256", None)
        if canonical_json({**content, "self_sha256": claimed}) != data:
            raise ValueError("it is not canonical JSON")
        if claimed != sha256_hex(canonical_json(content)):
            raise ValueError("its own sha256 differs from the one that was written")
        schema_version: object = content.get("schema_version")
        if schema_version not in (1, 2, 3):
            raise ValueError(
                f"schema_version {schema_version!r} is not 1, 2 or 3: read it with the version of "
                "TSGB that wrote it"
            )
        signature: object = None if schema_version == 1 else content.pop("hmac_sha256", None)
        if key is not None:
            _check_signature(content, signature, key)
        try:
            manifest = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"field {field}: {first['msg']}") from error
        if bool(manifest.parts) != (schema_version == 3) or manifest.parts.keys() - manifest.files:
            raise ValueError("field parts: they belong to no file, or to another schema_version")
        return manifest


def _signature(content: Mapping[str, Any], key: SecretStr) -> str:
    # The secret gets no name: a traceback with locals would show it.
    return hmac.new(
        key.get_secret_value().encode(), canonical_json(content), hashlib.sha256
    ).hexdigest()


def _check_signature(content: Mapping[str, Any], signature: object, key: SecretStr) -> None:
    if not isinstance(signature, str):
        raise Untrusted(
            "it is unsigned while TSGB_MANIFEST_KEY is set: unset the key if you trust this store"
        )
    if not hmac.compare_digest(signature.encode(), _signature(content, key).encode()):
        raise Untrusted(
            "it is signed with another key, or somebody without the key changed it: set "
            "TSGB_MANIFEST_KEY to the key that wrote it"
        )


def sha256_hex(data: Buffer) -> str:
    """Return the sha256 of the bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def utc_now() -> datetime:
    """Return the time in whole seconds, which are enough for people."""
    return datetime.now(UTC).replace(microsecond=0)


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on, by name.

    The libraries are not imported.
    """
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
