"""The log of a container, which the service uploads to another server on request.

That server must not see the key, and the address is a secret of its own: it opens the log.
"""

from __future__ import annotations

from dataclasses import replace

import httpx

from tsgb.cloud.vast.answers import Call
from tsgb.cloud.vast.caller import REQUEST_SECONDS, odd
from tsgb.cloud.vast.http import Wire
from tsgb.cloud.vast.retries import Retries
from tsgb.errors import ProviderUnreachable

_LEAST_SECONDS = 30.0
"""An upload takes seconds: one try is none."""


def fetch_log(wire: Wire, call: Call, url: object, retries: Retries) -> str:
    """Read the log as soon as it is there; until then its server says 403 or 404.

    Raises:
        ProviderUnreachable: There is no address, or no log in time.
    """
    if not isinstance(url, str) or not url.startswith(("https://", "http://")):
        raise odd(call, "no address of the log")

    def once() -> str:
        try:
            page = wire.fetch(url, seconds=REQUEST_SECONDS)
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise ProviderUnreachable(
                f"Vast.ai, {call.where}: no log, {type(error).__name__}"
            ) from None
        if page.status != 200:
            raise ProviderUnreachable(f"Vast.ai, {call.where}: no log yet, HTTP {page.status}")
        return page.text

    return replace(retries, deadline_seconds=max(_LEAST_SECONDS, retries.deadline_seconds))(once)
