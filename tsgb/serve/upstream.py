"""The one model service behind the proxy: asked as configured at the start, and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast

import httpx
from pydantic import SecretStr

from tsgb.checkpoint.documents import parse_json
from tsgb.errors import UsageError
from tsgb.serve.faults import RequestFault
from tsgb.services import address_fault

_OK = 200
MAX_ANSWER_BYTES = 16 << 20
"""Bytes of the longest answer that is not streamed."""
CONNECT_SECONDS = 10.0
"""Seconds in which a connection to the service has to stand."""
_PASSED_HEADERS = ("retry-after", "retry-after-ms", "x-should-retry")
"""Headers of an error that clients go by."""
_OUR_FAULT = frozenset({401, 402, 403, 407})
"""Statuses that concern the key of this proxy, and no client."""


class UpstreamAnswer(NamedTuple):
    """Answer of the service, before its body is read."""

    response: httpx.Response
    """The answer; its body is a stream."""

    @property
    def is_stream(self) -> bool:
        """Whether it comes in events."""
        kind = self.response.headers.get("content-type", "")
        return kind.partition(";")[0].strip().lower() == "text/event-stream"

    async def document(self) -> dict[str, Any]:
        """Return the JSON object of an answer that is not streamed.

        Raises:
            RequestFault: It is too long, or none.
        """
        body = await read_body(self.response)
        try:
            found: Any = parse_json(body.decode("utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise upstream_failed("the model service answered with something else than JSON")
        return cast("dict[str, Any]", found)


async def read_body(response: httpx.Response) -> bytes:
    """Return a bounded body.

    Raises:
        RequestFault: It is too long, or was cut off.
    """
    body = bytearray()
    try:
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > MAX_ANSWER_BYTES:
                raise upstream_failed("the answer of the model service is too long")
    except httpx.HTTPError as error:
        raise upstream_failed(f"the model service failed: {type(error).__name__}") from None
    return bytes(body)


def upstream_failed(message: str, code: str = "upstream_request_failed") -> RequestFault:
    """Return the fault of a model service that gave no usable answer."""
    return RequestFault(502, code, message, kind="proxy_error")


class Upstream:
    """A service with OpenAI's interface for chats.

    Example: `Upstream("https://api.example.org/v1", key=SecretStr("..."))`
    """

    def __init__(
        self,
        url: str,
        *,
        key: SecretStr | None = None,
        timeout_seconds: float = 120.0,
        most_connections: int = 256,
    ) -> None:
        """Ask nothing yet.

        Args:
            url: Its address, `/v1` included.
            key: Its key, which no client of the proxy sees.
            timeout_seconds: Longest time between two pieces of an answer.
            most_connections: Connections to it at once.

        Raises:
            UsageError: Prompts may not be sent to this address.
        """
        fault = address_fault(url)
        if fault:
            raise UsageError(f"--upstream: the address {fault}")
        self._url = f"{url.rstrip('/')}/chat/completions"
        own = {} if key is None else {"authorization": f"Bearer {key.get_secret_value()}"}
        self._client = httpx.AsyncClient(
            headers={**own, "accept-encoding": "identity"},
            timeout=httpx.Timeout(timeout_seconds, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=most_connections),
            follow_redirects=False,
            trust_env=False,
        )

    @asynccontextmanager
    async def asked(self, document: Mapping[str, Any]) -> AsyncGenerator[UpstreamAnswer]:
        """Send a chat; the connection is given back at the end, whether the answer was read or not.

        Raises:
            RequestFault: No answer, or an error, in the form in which the client gets it.
        """
        request = self._client.build_request("POST", self._url, json=document)
        try:
            response = await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise upstream_failed(f"the model service failed: {type(error).__name__}") from None
        try:
            if response.status_code != _OK:
                raise await _error_of(response)
            yield UpstreamAnswer(response)
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()


async def _error_of(response: httpx.Response) -> RequestFault:
    """Return an error of the service: its own words for the client, unless they concern our key."""
    status = response.status_code
    if status in _OUR_FAULT or not 400 <= status <= 599:
        return upstream_failed(f"the model service refused this proxy with HTTP {status}")
    try:
        document: Any = parse_json((await read_body(response)).decode("utf-8"))
        found: Any = document["error"]
        message, code = str(found["message"]), found.get("code")
        kind, param = str(found.get("type") or "upstream_error"), found.get("param")
    except (ValueError, KeyError, TypeError, AttributeError, RequestFault):
        message, code = f"the model service failed with HTTP {status}", None
        kind, param = "proxy_error", None
    headers = {name: response.headers[name] for name in _PASSED_HEADERS if name in response.headers}
    return RequestFault(
        status,
        code if isinstance(code, str) else "upstream_error",
        message,
        kind=kind,
        param=param if isinstance(param, str) else None,
        headers=headers,
    )
