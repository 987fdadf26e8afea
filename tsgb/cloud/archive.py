"""All runs of a store, as far as renting is concerned: their leases, and how machines were held.

It decides nothing. What could not be read is told apart from what is not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pydantic import SecretStr

from tsgb.checkpoint.filesystem import open_filesystem
from tsgb.checkpoint.run import open_run
from tsgb.checkpoint.urls import is_run_id, join_run
from tsgb.cloud.budget import NAME as LEDGER
from tsgb.cloud.documents import Papers
from tsgb.cloud.lease import Lease
from tsgb.errors import StoreError, StoreUnreachable, UsageError

DEADLINE_SECONDS = 60.0
"""For one read; the next look comes soon, and a machine without a lease ends itself."""


@dataclass(frozen=True, slots=True)
class Leases:
    """Of some runs.

    Example: `Leases(known={"r1": lease, "r2": None}, unreadable={"r3": "no answer for 60 s"})`
    """

    known: Mapping[str, Lease | None]
    """None where there is surely none."""
    unreadable: Mapping[str, str]
    """Why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """The store of a deployment's runs.

    Example: `Archive(url="https://dav.example.org/tsgb", user="me", password=secret)`
    """

    url: str
    user: str | None = None
    password: SecretStr | None = None
    deadline_seconds: float = DEADLINE_SECONDS

    def papers(self, run: str) -> Papers:
        """The documents of one run, which need not be there.

        Raises:
            UsageError: No run can have this name.
        """
        url = join_run(self.url, run)
        return Papers(
            open_run(url, self.user, self.password, deadline_seconds=self.deadline_seconds)
        )

    def runs(self) -> list[str]:
        """The ids of all runs, sorted.

        Raises:
            FileNotFoundError: There is no such store.
        """
        files = open_filesystem(
            self.url, self.user, self.password, deadline_seconds=self.deadline_seconds
        )
        return [item.name for item in files.entries("") if item.is_dir and is_run_id(item.name)]

    def rented(self) -> Iterator[Papers]:
        """The runs for which machines were rented; none where there is no store yet."""
        try:
            runs = self.runs()
        except FileNotFoundError:
            return
        for run in runs:
            papers = self.papers(run)
            try:
                papers.run.read_bytes(LEDGER)
            except FileNotFoundError:
                continue
            yield papers

    def leases(self, runs: Iterable[str]) -> Leases:
        """Read the leases of these runs.

        A store that does not answer is not asked again for the next one. And a store that is not
        there at all says nothing about leases: as a rule it is not the one that flows write to.
        """
        known: dict[str, Lease | None] = {}
        unreadable: dict[str, str] = {}
        away = ""
        for run in sorted(set(runs)):
            if away:
                unreadable[run] = away
                continue
            try:
                lease = self.papers(run).lease()
                if lease is None:
                    self.runs()
            except StoreUnreachable as error:
                away = unreadable[run] = str(error)
            except FileNotFoundError:
                unreadable[run] = f"there is no store at {self.url}: is it the one that flows use?"
            except (StoreError, UsageError) as error:
                unreadable[run] = str(error)
            else:
                known[run] = lease
        return Leases(known, unreadable)
