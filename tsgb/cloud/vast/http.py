"""One call to Vast.ai: wait for its turn, send one request, classify the answer.

The module decides to which address the key may be sent, how long a request may take and how much of
the answer is read. It knows no particular call of the service, and repeats nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, SecretStr, ValidationError

from tsgb.checkpoint.documents import printable
from tsgb.cloud.provider import is_loopback
from tsgb.cloud.vast.answers import Answer, Call, Subject, classify
from tsgb.cloud.vast.throttle import Endpoint, RateLimiter
from tsgb.errors import (
    ProviderAuthError,
    ProviderError,
    ProviderRateLimited,
    ProviderSearchQuota,
    ProviderUnreachable,
    UsageError,
)

_CONNECT_SECONDS = 10.0
_MOST_BYTES = 16 * 1024 * 1024
_MESSAGE_CHARACTERS = 200


class _Bearer(httpx.Auth):
    """Sets the header when a request is sent, so that no other variable holds the key."""

    def __init__(self, key: SecretStr) -> None:
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        yield request


class Wire:
    """Sends requests with the key to one address, and requests without it to any other."""

    def __init__(
        self,
        key: SecretStr,
        url: str,
        *,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the key's form and the address; nothing is sent.

        Raises:
            ProviderAuthError: This cannot be a key.
            UsageError: The key must not go to this address.
        """
        self._key = _checked_key(key)
        self._clock = clock
        self.url = checked_url(url)
        self._http = httpx.Client(
            base_url=self.url,
            transport=transport,
            auth=_Bearer(self._key),
            # The server may close an idle connection just as a request is sent on it, which leaves
            # open whether it was read. Requests are seconds apart, so a new one costs little.
            limits=httpx.Limits(max_keepalive_connections=0),
            follow_redirects=False,
            # A proxy would see requests to a simulator on this machine, with the key in them.
            trust_env=self.url.startswith("https:"),
        )

    def send(
        self,
        method: str,
        path: str,
        *,
        seconds: float,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Send one request, without retries.

        Args:
            method: HTTP method.
            path: Path below the address.
            seconds: Seconds for sending, waiting and reading together.
            params: The query.
            body: An object that is sent as JSON.

        Raises:
            httpx.RequestError: No answer, or not all of it.
        """
        request = self._http.build_request(
            method, path, params=params, json=body, timeout=_timeout(seconds)
        )
        return self._read(request, httpx.USE_CLIENT_DEFAULT, seconds)

    def fetch(self, url: str, *, seconds: float) -> Answer:
        """Read a URL of another server, which must not see the key.

        Raises:
            httpx.RequestError: No answer, or not all of it.
        """
        request = self._http.build_request("GET", url, timeout=_timeout(seconds))
        return self._read(request, None, seconds)

    def close(self) -> None:
        """End all connections."""
        self._http.close()

    def clean(self, text: str, secrets: Iterable[SecretStr] = ()) -> str:
        """Return foreign text as one short line without secrets, for a message."""
        for secret in (self._key, *secrets):
            if value := secret.get_secret_value():
                text = text.replace(value, "***")
        return printable(" ".join(text.split())[:_MESSAGE_CHARACTERS])

    def _read(self, request: httpx.Request, auth: Any, seconds: float) -> Answer:
        ends_at = self._clock() + seconds
        response = self._http.send(request, auth=auth, stream=True)
        try:
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                if self._clock() > ends_at:
                    raise httpx.ReadTimeout(f"not all came in {seconds:g} s", request=request)
                if len(data) > _MOST_BYTES:
                    raise httpx.ReadError(f"more than {_MOST_BYTES} bytes", request=request)
        finally:
            response.close()
        return Answer(response.status_code, response.headers, data.decode(errors="replace"))


def _timeout(seconds: float) -> httpx.Timeout:
    """Return limits on connecting, writing and each read; `Wire` limits their sum."""
    return httpx.Timeout(seconds, connect=min(_CONNECT_SECONDS, seconds))


def _checked_key(key: SecretStr) -> SecretStr:
    value = key.get_secret_value().strip()
    if not value:
        raise ProviderAuthError("no key for Vast.ai: set VAST_API_KEY")
    if not all("!" <= character <= "~" for character in value):
        raise ProviderAuthError("VAST_API_KEY has a character that no key has: copy it again")
    return SecretStr(value)


def checked_url(url: str) -> str:
    """Return the address without a slash at its end.

    Raises:
        UsageError: The key would be sent in plain text, or is part of the address.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise UsageError("TSGB_VAST_URL is no address: write https://host") from None
    if parts.username or parts.password or parts.query or parts.fragment or not host:
        raise UsageError("TSGB_VAST_URL must be https://host and no more: the key is VAST_API_KEY")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(url)):
        raise UsageError(
            f"TSGB_VAST_URL {url} would send the key where others can read it: write https://, or "
            "http:// for a simulator on this machine"
        )
    return url.rstrip("/")


REQUEST_SECONDS = 30.0
_CLOSED_SECONDS = 60.0
_Record = TypeVar("_Record", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Caller:
    """Makes calls: each waits for its turn, sends one request and classifies the answer.

    Example: `Caller(wire, limiter, now).ask(call, "GET", "/api/v0/users/current")`
    """

    wire: Wire
    """Sends requests."""
    limiter: RateLimiter
    """Makes each request wait for its turn."""
    now: Callable[[], datetime]
    """Time of day, for a quota that ends at midnight."""

    def call(
        self, endpoint: Endpoint, where: str, subject: Subject, secrets: Sequence[SecretStr] = ()
    ) -> Call:
        """Describe a call; `secrets` are hidden in its messages, as the key is."""

        def clean(text: str) -> str:
            return self.wire.clean(text, secrets)

        return Call(endpoint, subject, where, clean)

    def ask(
        self,
        call: Call,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Send a request and return the JSON object in the answer.

        Raises:
            ProviderError: The error in the answer; `ProviderUnreachable` if there is no answer.
        """
        with self.limiter.turn(call.endpoint):
            try:
                answer = self.wire.send(
                    method, path, seconds=REQUEST_SECONDS, params=params, body=body
                )
            except httpx.RequestError as error:
                raise ProviderUnreachable(
                    f"Vast.ai, {call.where}: no answer, {reason(error, call)}"
                ) from error
        error = self.error_in(answer, call)
        if error is not None:
            raise error
        return answer.payload()

    def change(self, call: Call, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send a change and return the answer, which must confirm it."""
        payload = self.ask(call, method, path, body=body)
        if payload.get("success") is not True:
            raise malformed(call, "no confirmation")
        return payload

    def error_in(self, answer: Answer, call: Call) -> ProviderError | None:
        """Return the error in an answer, if any; after a rate limit, the next calls wait."""
        error = classify(answer, call, self.now())
        if isinstance(error, ProviderRateLimited) and not isinstance(error, ProviderSearchQuota):
            self.limiter.close(call.endpoint, min(error.wait_seconds, _CLOSED_SECONDS))
        return error


def parsed(record: type[_Record], value: object, call: Call) -> _Record:
    """Return the record of a row.

    Raises:
        ProviderUnreachable: The row does not have the form of the record.
    """
    try:
        return record.model_validate(value)
    except ValidationError:
        raise malformed(call, "a row without a required field") from None


def malformed(call: Call, what: str) -> ProviderUnreachable:
    """Return the error for an answer that does not have the expected form."""
    return ProviderUnreachable(f"Vast.ai, {call.where}: a malformed answer ({what})")


def reason(error: Exception, call: Call) -> str:
    """Return an error of the transport as one line without secrets."""
    return call.clean(f"{type(error).__name__}: {error}")
