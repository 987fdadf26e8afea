"""Addresses of stores and runs, and the names that files may have below them.

It knows which addresses and names are allowed, and the one form in which they are kept.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tsgb.errors import StoreError, UsageError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HOST = re.compile(r"localhost|(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}|\d{1,3}(?:\.\d{1,3}){3}")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_FOREIGN = re.compile(r"thumbs\.db|desktop\.ini|.*\.sync-conflict-.*", re.IGNORECASE)
_RESERVED = frozenset({"latest", "checkpoints"})


def absolute_path(path: Path) -> Path:
    """Return a path from the root, with the user's home directory in place of `~`.

    Raises:
        StoreError: No home directory is known.
    """
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise StoreError(
            f"{path}: no home directory is known, since HOME is not set and this user has no "
            "passwd entry: write the whole path instead of ~"
        ) from None


def canonical_url(url: str) -> str:
    """Return the form of a store URL that is kept in records: no slash at the end, paths absolute.

    A plain path is taken literally, whatever characters it has, if it begins with `/`, `.` or `~`
    or if its first part exists. Any other is refused if that part has a colon or could be the name
    of a host. A URL is kept as it is written: `%23` and `%3F` stand for `#` and `?` in a name,
    which themselves are refused.

    Raises:
        StoreError: It cannot be a store's address, could mean two places, or holds a secret that
            would end up in logs.
    """
    if not url.strip():
        raise StoreError("the store URL is empty: give a path or a URL")
    if _CONTROL.search(url):
        raise StoreError(f"store URL {url!r} holds a control character: take it out")
    if not _has_scheme(url):
        _check_plain_path(url)
        return str(absolute_path(Path(url)))
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
    if "?" in url or "#" in url:
        raise StoreError(
            f"store URL {safe} goes on with a query or a fragment, so that no path can be "
            "appended: take it out; write %3F and %23 where ? and # are part of a name"
        )
    is_http = parts.scheme.removeprefix("webdav+") in {"http", "https"}
    if is_http and not parts.hostname:
        raise StoreError(f"store URL {safe} names no host: write https://host/path")
    if not is_http and parts.scheme != "file" and "::" in url:
        raise StoreError(
            f"store URL {safe} is a chain of URLs, to which no path can be appended: give one URL"
        )
    stripped = url.rstrip("/")
    return f"{stripped}//" if stripped.endswith(":") else stripped


def _has_scheme(url: str) -> bool:
    return _SCHEME.match(url) is not None


def _check_plain_path(path: str) -> None:
    """Refuse what looks like the address of a remote store rather than a directory.

    Raises:
        StoreError: The first part of the path has a colon or is a host's name, and no such file
            or directory exists.
    """
    first = path.split("/", maxsplit=1)[0]
    if first.startswith("~") or Path(first).exists():
        return
    if ":" in first:
        raise StoreError(
            f"store {path!r} is neither a path nor a URL, because of its colon: write ./{path} for "
            "a local directory, or webdav+https://host/path for a WebDAV server"
        )
    if _HOST.fullmatch(first):
        raise StoreError(
            f"store {path!r} begins with the name of a host, but has no scheme: write "
            f"https://{path} for a WebDAV server, or ./{path} for a local directory"
        )


def local_path(url: str) -> Path | None:
    """Return the directory that a plain path or a `file://` URL names; None for any other URL."""
    url = canonical_url(url)
    if url.startswith("file:"):
        parts = urlsplit(url)
        if parts.netloc not in {"", "localhost"}:
            raise StoreError(f"store URL {url} names a host: write file:///absolute/path")
        return Path(unquote(parts.path) or "/")
    return None if _has_scheme(url) else Path(url)


def place(url: str) -> str:
    """Return what people are told: a path where the store is local, else the URL."""
    path = local_path(url)
    return url if path is None else str(path)


def server_of(url: str) -> str:
    """Return the scheme, host and port of a URL that is no local path.

    >>> server_of("webdav+https://dav.example.org:8443/tsgb/run-1")
    'https://dav.example.org:8443'
    """
    parts = urlsplit(url)
    return f"{parts.scheme.removeprefix('webdav+')}://{parts.netloc}"


def is_name(name: str) -> bool:
    """Return whether TSGB could have given this name to a file or directory in a store.

    Other names are ignored wherever a directory is listed: those of synchronisation clients,
    editors, network file systems and desktops (`.DS_Store`, `a (conflicted copy).json`, `.#a`,
    `a~`, `.nfs0001`), and names that would lead out of the directory.
    """
    return _NAME.fullmatch(name) is not None and _FOREIGN.fullmatch(name) is None


def check_path(path: str) -> str:
    """Return a path below the root of a store, or refuse it; `""` is the root.

    Raises:
        StoreError: A part of it is no name of a file or directory, such as `..`; the path may come
            from a document that somebody else wrote.
    """
    if path and not all(map(is_name, path.split("/"))):
        raise StoreError(
            f"path {path[:200]!r} is refused: each part must be 1 to 128 of A-Z a-z 0-9 . _ - "
            "without a dot in front; whoever wrote it into the store may want to do harm"
        )
    return path


def is_run_id(name: str) -> bool:
    """Return whether a run could have this name."""
    return is_name(name) and name not in _RESERVED


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
    """Return the URL of a run in a store."""
    return f"{canonical_url(store_url)}/{check_run_id(run_id)}"
