"""Declarations of endpoints: black boxes that are asked over HTTP.

    openai:gpt-4.1                              the vendor's address, key from OPENAI_API_KEY
    openai:llama-3@http://127.0.0.1:8000/v1     any server that speaks the same
    anthropic:claude-x    huggingface:org/model@https://host

The command line takes this form; a TOML file with a table `[targets.NAME]` for each endpoint takes
every field of `EndpointSpec`. It knows no key, only the name of the environment variable that holds
one, and opens no connection.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, cast
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tsgb.checkpoint.documents import printable
from tsgb.errors import UsageError
from tsgb.services import address_fault
from tsgb.types import TargetSpec

OPTION = "--target"
FILE_OPTION = "--targets-file"
MOST_FILE_BYTES = 1 << 20
_FORM = re.compile(r"(?P<kind>[a-z]+):(?P<model>.+?)(@(?P<url>[a-z]+://.*))?", re.DOTALL)
_NOT_FOR_ENDPOINTS = {
    *("VAST_API_KEY", "CONTAINER_API_KEY", "RCLONE_WEBDAV_PASS", "TSGB_MANIFEST_KEY"),
}
"""Secrets of this project that no endpoint has a use for."""
_KEYS = {"key", "api_key", "apikey", "token", "secret", "password", "authorization", "headers"}
"""Names under which people write keys into files."""


class EndpointKind(StrEnum):
    """The interface that an endpoint speaks; requests are never streamed."""

    OPENAI = "openai"
    """OpenAI-compatible chat completions."""
    ANTHROPIC = "anthropic"
    """Anthropic's messages."""
    HUGGINGFACE = "huggingface"
    """Text generation: `/generate` of TGI, or a URL with `/models/` as inference APIs have it."""


class _Vendor(NamedTuple):
    """Defaults of a kind."""

    url: str
    """Address of the service."""
    key_variable: str
    """Environment variable that usually holds its key."""


_VENDORS = {
    EndpointKind.OPENAI: _Vendor("https://api.openai.com/v1", "OPENAI_API_KEY"),
    EndpointKind.ANTHROPIC: _Vendor("https://api.anthropic.com", "ANTHROPIC_API_KEY"),
    EndpointKind.HUGGINGFACE: _Vendor(
        "https://router.huggingface.co/hf-inference/models/", "HF_TOKEN"
    ),
}
_HUGGING_FACE = re.compile(r"(^|\.)(huggingface\.co|huggingface\.cloud|hf\.space)$")
"""Hosts that get HF_TOKEN unasked; any other one needs `key_variable`, since that token opens the
user's whole account there."""


class EndpointSpec(BaseModel):
    """One endpoint, with how and how fast it is asked.

    Example: `EndpointSpec(name="gpt", kind="openai", model="gpt-4.1", dollars_in=2, dollars_out=8)`
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # it may be a key at the wrong place
    )

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    """Name in tables and options."""
    kind: Annotated[EndpointKind, Field(strict=False)]
    """Interface: openai, anthropic or huggingface."""
    model: Annotated[str, Field(pattern=r"^[!-~]{1,200}$")]
    """Name of the model, as the endpoint knows it."""
    url: str = ""
    """Address up to and without the interface's own path, such as https://host/v1; without it that
    of the vendor. Plain http only on this machine."""
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = 0.0
    """Temperature of the sampling; `"default"` leaves it to the endpoint, as some models want."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the probability that is sampled from; without it the endpoint's default."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """Most tokens of an answer; one that is cut there counts as truncated."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed of the sampling, where the endpoint takes one; anthropic does not."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 32
    """Most requests on their way at a time; fewer after HTTP 429."""
    requests_per_minute: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Most requests in any minute; without it no limit."""
    tokens_per_minute: Annotated[float, Field(gt=0, le=1e12)] | None = None
    """Tokens in a minute, of prompts (estimated) and of answers at their longest; without it no
    limit."""
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """Seconds for one request, from the connection to the last byte of the answer."""
    most_attempts: Annotated[int, Field(ge=1, le=20)] = 4
    """Most requests for one question, the first one included."""
    dollars_in: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """Price of a million tokens of prompts, in dollars; `--max-cost` needs it."""
    dollars_out: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """Price of a million tokens of answers, in dollars; `--max-cost` needs it."""
    key_variable: Annotated[str, Field(pattern=r"^([A-Z][A-Z0-9_]*(KEY|TOKEN))?$")] | None = None
    """Environment variable that holds the key, its name ending in KEY or TOKEN; empty for none.
    Without it OPENAI_API_KEY, ANTHROPIC_API_KEY, or HF_TOKEN on hosts of Hugging Face."""

    @field_validator("temperature", mode="before")
    @classmethod
    def _left_to_the_endpoint(cls, value: Any) -> Any:
        return None if value == "default" else value

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        """Refuse what is no address, and what would show a key; its text is never repeated."""
        if not value:
            return value
        fault = address_fault(value)
        if fault:
            raise ValueError(fault)
        return value.rstrip("/")

    @field_validator("key_variable")
    @classmethod
    def _check_variable(cls, value: str | None) -> str | None:
        if value in _NOT_FOR_ENDPOINTS:
            raise ValueError(f"is {value}, which no endpoint may see: name another variable")
        return value

    @model_validator(mode="after")
    def _seed_is_taken(self) -> Self:
        if self.seed is not None and self.kind is EndpointKind.ANTHROPIC:
            raise ValueError("seed is not taken by anthropic: leave it away")
        return self

    @property
    def address(self) -> str:
        """The URL, or that of the vendor."""
        if self.url:
            return self.url
        vendor = _VENDORS[self.kind].url
        return vendor if self.kind is not EndpointKind.HUGGINGFACE else vendor + quote(self.model)

    @property
    def host(self) -> str:
        """The host that is asked, with its port if that is given."""
        return urlsplit(self.address).netloc

    @property
    def key_name(self) -> str | None:
        """Name of the environment variable with the key; None if no key is sent."""
        if self.key_variable is not None:
            return self.key_variable or None
        host = urlsplit(self.address).hostname or ""
        if self.kind is EndpointKind.HUGGINGFACE and not _HUGGING_FACE.search(host):
            return None
        return _VENDORS[self.kind].key_variable

    @property
    def needs_key(self) -> bool:
        """Whether it cannot work without a key: the user named one, or it is the vendor itself."""
        return bool(self.key_variable) or (not self.url and self.key_name is not None)

    @property
    def identity(self) -> dict[str, Any]:
        """All that determines the answers, and no more: answers are kept under it."""
        return {
            "kind": self.kind.value,
            "url": self.address,
            "model": self.model,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
        }

    @property
    def form(self) -> str:
        """The endpoint as the command line names it, without what only a file can say."""
        return f"{self.kind.value}:{self.model}" + (f"@{self.url}" if self.url else "")

    @property
    def target(self) -> TargetSpec:
        """The endpoint as tables show it."""
        return TargetSpec(
            name=self.name, role="black_box", arch=f"{self.kind.value} {self.model} at {self.host}"
        )


def is_endpoint(text: str) -> bool:
    """Return whether a value of `--target` names an endpoint and no target of a world."""
    return ":" in text


def parse_endpoint(text: str, option: str = OPTION) -> EndpointSpec:
    """Return the endpoint that `kind:model` or `kind:model@URL` names.

    Raises:
        UsageError: It is not of this form, or a part of it breaks its rule.
    """
    kinds = ", ".join(EndpointKind)
    kind, _, rest = text.partition(":")
    known = kind in {kind.value for kind in EndpointKind}
    found = _FORM.fullmatch(text)
    if not known or found is None:
        # Only the kind is repeated: an address may hold a password.
        shown = repr(kind[:40]) if rest and not known else repr(f"{kind[:40]}:")
        raise UsageError(
            f"{option} {shown} is no endpoint: write KIND:MODEL or KIND:MODEL@https://host/v1, "
            f"with KIND one of {kinds}"
        )
    model, url = found["model"], found["url"] or ""
    if "://" in model:
        raise UsageError(
            f"{option} {kind}: write the model before the address, as in {kind}:MODEL@https://host"
        )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.rpartition("/")[2]).lstrip("._-")[:100]
    values = {"name": name or "model", "kind": kind, "model": model, "url": url}
    return make_endpoint(values, f"{option} {kind}:{printable(model[:100])}")


def endpoint_from_json(text: str, where: str = "--endpoint") -> EndpointSpec:
    """Return the endpoint that a JSON document declares, as `model_dump_json` writes it.

    Raises:
        UsageError: It is no such document.
    """
    try:
        return EndpointSpec.model_validate_json(text)
    except ValidationError as error:
        raise UsageError(f"{where}: {_complaint(error)}") from None


def make_endpoint(values: Mapping[str, Any], where: str) -> EndpointSpec:
    """Return the endpoint with these fields.

    Raises:
        UsageError: A field breaks its rule; the message begins with `where` and repeats no value.
    """
    keys = sorted(name for name in values if name.lower().replace("-", "_") in _KEYS)
    if keys:
        raise UsageError(
            f"{where}: {keys[0]} is not taken, because keys come only from the environment: put it "
            "in a variable, and name that in key_variable"
        )
    try:
        return EndpointSpec.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{where}: {_complaint(error)}") from None


def _complaint(error: ValidationError) -> str:
    first = error.errors(include_input=False)[0]
    name = ".".join(str(part) for part in first["loc"][:1])
    if first["type"] == "extra_forbidden":
        known = ", ".join(field for field in EndpointSpec.model_fields if field != "name")
        return f"there is no {name!r}: choose of {known}"
    if first["type"] == "string_pattern_mismatch":
        return f"{name} has characters that it must not have, or is too short or long"
    message = first["msg"].removeprefix("Value error, ")
    return f"{name} {message[0].lower()}{message[1:]}".strip()


def read_targets_file(path: Path) -> list[EndpointSpec]:
    """Read a TOML file with a table `[targets.NAME]` for each endpoint.

    Raises:
        UsageError: The file cannot be read, or one of its values breaks its rule.
    """
    where = f"{FILE_OPTION} {path}"
    try:
        with path.open("rb") as file:
            data = file.read(MOST_FILE_BYTES + 1)
        if len(data) > MOST_FILE_BYTES:
            raise UsageError(f"{where} has more than {MOST_FILE_BYTES} bytes: name another file")
        document = tomllib.loads(data.decode())
    except OSError as error:
        raise UsageError(f"{where} cannot be read ({error.strerror}): name a file") from None
    except UnicodeDecodeError:
        raise UsageError(f"{where} is not UTF-8: save it as UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        # The message names a line and no content, which may be a key at the wrong place.
        place = re.search(r"line \d+", str(error))
        raise UsageError(f"{where} is not TOML ({place[0] if place else 'nested'})") from None
    tables: object = document.pop("targets", {})
    if document or not isinstance(tables, dict) or not tables:
        raise UsageError(f"{where} must have tables [targets.NAME] and nothing beside them")
    found: list[EndpointSpec] = []
    for name, table in cast("dict[str, object]", tables).items():
        if not isinstance(table, dict):
            raise UsageError(f"{where}: targets.{name} is no table: write [targets.{name}]")
        values = cast("dict[str, object]", table)
        if "name" in values:
            raise UsageError(f"{where}: targets.{name} has a name already: leave `name` away")
        found.append(make_endpoint({**values, "name": name}, f"{where}: targets.{name}"))
    return found


def by_name(endpoints: Sequence[EndpointSpec]) -> dict[str, EndpointSpec]:
    """Return endpoints by their names in tables.

    Raises:
        UsageError: Two have one name.
    """
    found: dict[str, EndpointSpec] = {}
    for endpoint in endpoints:
        if endpoint.name in found:
            raise UsageError(
                f"two endpoints are called {endpoint.name!r} in tables: declare one of them in a "
                f"file for {FILE_OPTION} as [targets.ANOTHER_NAME]"
            )
        found[endpoint.name] = endpoint
    return found
