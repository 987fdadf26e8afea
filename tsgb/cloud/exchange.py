"""The exchange: the only place in which a rented machine reads and writes.

    <exchange>/<run>/<folder>/<run>/         what an attempt's machine takes for its run
    <exchange>/<run>/<folder>/<run>.<arm>/   likewise for another arm
    <exchange>/_models/                      models that were pushed, see `tsgb/models/pushed.py`

A host is a stranger's computer, so it gets no more than this. The flow writes the code archive, the
configuration, a copy of the lease and the checkpoint to go on from; the machine writes heartbeats,
exit records and checkpoints. Nothing of it is believed before the flow has looked at it: see
`tsgb/checkpoint/promote.py` and `tsgb/cloud/documents.py`. The name of a folder is random, so that
where the server does not list the folders above it, only the machine that got the name can find it.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self
from urllib.parse import urlsplit

from pydantic import SecretStr

from tsgb.checkpoint.filesystem import DEADLINE_SECONDS, FileSystem, open_filesystem
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.checkpoint.urls import canonical_url, join_run, local_path
from tsgb.cloud.provider import is_loopback
from tsgb.errors import UsageError
from tsgb.setting_groups import ExchangeSettings

IN_STORE = "_exchange"
"""Directory of the exchange where the settings name none: a part of the store of runs."""
_MODELS = "_models"
"""Directory of pushed models; a run called so would only share it."""


def new_folder(attempt: int) -> str:
    """Return the name of an attempt's folder, which nobody can guess."""
    return f"{attempt:04d}-{secrets.token_hex(8)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """The folders of all attempts of all runs.

    Example: `Exchange(url="https://dav.example.org/machines", user="machines", password=secret)`
    """

    url: str
    """Address of the directory that holds them."""
    user: str | None = None
    """User name that machines get."""
    password: SecretStr | None = None
    """Password that machines get."""
    is_own: bool = True
    """Whether it has credentials of its own; else machines get those of the whole store."""

    @classmethod
    def of(cls, settings: ExchangeSettings, store: str) -> Self:
        """Return the exchange that the settings name, or a directory of the store.

        Args:
            settings: Address and credentials.
            store: URL of the store of runs.
        """
        if settings.exchange_url is not None:
            return cls(
                url=canonical_url(settings.exchange_url),
                user=settings.exchange_user,
                password=settings.exchange_pass,
            )
        return cls(
            url=f"{canonical_url(store)}/{IN_STORE}",
            user=settings.webdav_user,
            password=settings.webdav_pass,
            is_own=False,
        )

    @property
    def what_machines_can_do(self) -> str:
        """Say in one line what a host can do with the credentials that it gets."""
        if self.is_own:
            return f"machines see {self.url}, those of other runs too if the server lists it"
        if self.password is None:
            return f"machines see {self.url}"
        return "machines get the whole store's password"

    @property
    def models_url(self) -> str:
        """Address of the pushed models."""
        return f"{self.url}/{_MODELS}"

    def open_models(self) -> FileSystem:
        """Return the directory of the pushed models."""
        return open_filesystem(self.models_url, self.user, self.password)

    def folder_url(self, run_id: str, folder: str) -> str:
        """Return the address that a machine takes for a store of runs."""
        return join_run(join_run(self.url, run_id), folder)

    def open(
        self,
        run_id: str,
        folder: str,
        arm_run_id: str | None = None,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> RunStore:
        """Return the run of an attempt's machine; nothing in it is signed.

        Args:
            run_id: Id of the main run.
            folder: The attempt's folder.
            arm_run_id: Id of an arm's run; None for the main run.
            deadline_seconds: Seconds for which one call retries.
        """
        url = join_run(self.folder_url(run_id, folder), arm_run_id or run_id)
        return open_run(url, self.user, self.password, deadline_seconds=deadline_seconds)

    def opener(self, run_id: str, deadline_seconds: float) -> Callable[[str], RunStore]:
        """Return what opens the main run in a folder, as `RunDocuments` takes it."""
        return lambda folder: self.open(run_id, folder, deadline_seconds=deadline_seconds)

    def folders(self, run_id: str, deadline_seconds: float = DEADLINE_SECONDS) -> frozenset[str]:
        """Return the names of the folders of a run's attempts, and of whatever else is there."""
        files = open_filesystem(
            join_run(self.url, run_id),
            self.user,
            self.password,
            deadline_seconds=deadline_seconds,
        )
        try:
            return frozenset(entry.name for entry in files.entries("") if entry.is_dir)
        except FileNotFoundError:
            return frozenset()

    def delete(self, run_id: str, folder: str, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        """Delete an attempt's folder, once nothing in it is needed any more."""
        files = open_filesystem(
            join_run(self.url, run_id),
            self.user,
            self.password,
            deadline_seconds=deadline_seconds,
        )
        files.delete_dir(folder)


def addresses_of(host: str) -> Sequence[str]:
    """Return the IP addresses of a host; none if its name does not resolve now."""
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(host, None)})
    except OSError:
        return []


def check_reach(
    exchange: Exchange,
    vast_url: str,
    resolve: Callable[[str], Sequence[str]] = addresses_of,
) -> None:
    """Return if a rented machine could reach the exchange, and nobody between could read it.

    A simulated service rents processes of this machine, which reach whatever it does.

    Args:
        exchange: The exchange.
        vast_url: URL of the service.
        resolve: Returns the IP addresses of a host; none if they cannot be known.

    Raises:
        UsageError: It is on this machine or in a private network, or not encrypted.
    """
    if is_loopback(vast_url):
        return
    what = "the exchange" if exchange.is_own else "the store, which rented machines use"
    way = (
        "give a WebDAV directory with TSGB_EXCHANGE_URL, "
        "or a store that is one with --store or RCLONE_WEBDAV_URL"
    )
    if local_path(exchange.url) is not None:
        raise UsageError(
            f"{what}, {exchange.url}, is on this machine, where a rented one cannot reach it: {way}"
        )
    parts = urlsplit(exchange.url.removeprefix("webdav+"))
    host = parts.hostname or ""
    if any(map(_is_private, [host, *resolve(host)])):
        raise UsageError(
            f"{what}, {exchange.url}, is in a private network, where a rented machine cannot "
            f"reach it: {way}"
        )
    if parts.scheme != "https":
        raise UsageError(
            f"{what}, {exchange.url}, is not encrypted: passwords and weights could be read on the "
            f"way; write https://, or {way}"
        )


def _is_private(host: str) -> bool:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host == "localhost" or "." not in host or host.endswith((".local", ".localhost"))
    return not address.is_global
