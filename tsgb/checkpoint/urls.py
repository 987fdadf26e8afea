"""Addresses of stores and runs: which are allowed, and the one form in which they are kept."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tsgb.errors import StoreError, UsageError

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_RUN_ID = re.compile(r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$")
_RESERVED = frozenset({"latest", "checkpoints"})


def canonical_url(url: str) -> str:
    """The form of a store URL that is kept in records: no slash at the end, paths absolute.

    Raises:
        StoreError: It cannot be a store's address, or holds a secret that would end up in logs.
    """
    if not url.strip():
        raise StoreError("the store URL is empty: give a path or a URL")
    if not _has_scheme(url):
        return str(Path(url).expanduser().absolute())
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise StoreError(f"store URL {url!r} cannot be read: {error}") from error
    try:
        parts.port  # noqa: B018 - read to be judged
    except ValueError:
        # As where a password has a slash, after which a URL's path begins: nothing is repeated.
        raise StoreError(
            f"store URL {parts.scheme}://... has no number as its port: if it holds a password, "
            "take it out and set RCLONE_WEBDAV_USER and RCLONE_WEBDAV_PASS"
        ) from None
    # Neither the password nor the query is repeated below: either may be secret.
    safe = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
    if parts.password is not None:
        raise StoreError(
            f"store URL {safe} holds a password, which would end up in logs: take it out and set "
            "RCLONE_WEBDAV_USER and RCLONE_WEBDAV_PASS"
        )
    if parts.scheme.endswith(("http", "https")):
        if not parts.hostname:
            raise StoreError(f"store URL {safe} names no host: write https://host/path")
        if parts.query or parts.fragment:
            raise StoreError(
                f"store URL {safe} goes on with a query or a fragment, so that no path can be "
                "appended: take it out"
            )
    stripped = url.rstrip("/")
    return f"{stripped}//" if stripped.endswith(":") else stripped


def _has_scheme(url: str) -> bool:
    return "::" in url or _SCHEME.match(url) is not None


def local_path(url: str) -> Path | None:
    """The directory that a plain path or a `file://` URL names; None for any other URL."""
    url = canonical_url(url)
    if url.startswith("file:"):
        parts = urlsplit(url)
        if parts.netloc not in {"", "localhost"}:
            raise StoreError(f"store URL {url} names a host: write file:///absolute/path")
        return Path(unquote(parts.path) or "/")
    return None if _has_scheme(url) else Path(url)


def server_of(url: str) -> str:
    """Who answers for a URL that is no local path.

    >>> server_of("webdav+https://dav.example.org:8443/tsgb/run-1")
    'https://dav.example.org:8443'
    """
    parts = urlsplit(url)
    return f"{parts.scheme.removeprefix('webdav+')}://{parts.netloc}"


def is_run_id(name: str) -> bool:
    """Whether a run could have this name."""
    return _RUN_ID.match(name) is not None and name not in _RESERVED


def check_run_id(run_id: str) -> str:
    """Return the run id, or say what is wrong with it.

    Raises:
        UsageError: It could not be a directory everywhere, or has a meaning of its own in URLs.
    """
    if not is_run_id(run_id):
        raise UsageError(
            f"run id {run_id!r} is not 1 to 128 of A-Z a-z 0-9 . _ - without a dot in front, or is "
            "'latest' or 'checkpoints': choose another"
        )
    return run_id


def join_run(store_url: str, run_id: str) -> str:
    """The URL of a run in a store."""
    return f"{canonical_url(store_url)}/{check_run_id(run_id)}"
