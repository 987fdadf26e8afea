"""The one place that picks the provider; everything else knows `tsgb.cloud.provider` alone.

A further service is a package beside `vast` that implements `Provider`, and a line here.
"""

from __future__ import annotations

from functools import lru_cache

from pydantic import SecretStr

from tsgb.cloud.provider import Provider
from tsgb.cloud.vast.client import VastClient
from tsgb.cloud.vast.convert import VastProvider
from tsgb.cloud.vast.http import checked_url
from tsgb.cloud.vast.throttle import RateLimiter
from tsgb.errors import ProviderAuthError

RETRY_SECONDS = 60.0
"""Seconds for which a call that can be repeated is repeated."""


def connect(key: SecretStr | None, url: str, *, retry_seconds: float = RETRY_SECONDS) -> Provider:
    """Return the provider of an account; nothing is sent yet.

    Args:
        key: VAST_API_KEY, or on a rented machine the key of that machine alone.
        url: Address of the service, or of a simulator of it.
        retry_seconds: Seconds for which a call that can be repeated is repeated; 0 is one try.

    Raises:
        ProviderAuthError: There is no key, or this cannot be one.
        UsageError: The key must not go to this address.
    """
    if key is None:
        raise ProviderAuthError(
            "VAST_API_KEY is not set: create a key with misc, user_read, instance_read and "
            "instance_write on the service's page for keys, then put it into .env"
        )
    limiter = _limiter(url, key)
    return VastProvider(VastClient(key, url=url, retry_seconds=retry_seconds, limiter=limiter))


@lru_cache(maxsize=16)
def _limiter(_url: str, _key: SecretStr) -> RateLimiter:
    """Return the limiter of an account, which all clients of this process share."""
    return RateLimiter()


def check_url(url: str) -> str:
    """Return the address of a service without a slash at its end.

    Raises:
        UsageError: The key would be readable on the way, or is in the address.
    """
    return checked_url(url)
