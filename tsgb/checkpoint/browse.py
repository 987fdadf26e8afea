"""The checkpoints that a person means by a path or URL: one, those of a run, those of all runs.

It knows what addresses mean; what a checkpoint is worth, inspect.py and verify.py say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pydantic import SecretStr

from tsgb.checkpoint.filesystem import DEADLINE_SECONDS, open_filesystem
from tsgb.checkpoint.inspect import CheckpointInfo, Inspector
from tsgb.checkpoint.resolve import newest_first, no_checkpoint, parse_address, runs_below
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.errors import CheckpointError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLocation:
    """A path or URL and what opens it.

    Example: `StoreLocation(url="https://dav.example.org/tsgb/r1/latest", user="me")`
    """

    url: str
    user: str | None = None
    password: SecretStr | None = None
    manifest_key: SecretStr | None = None
    """Manifests must be signed with it."""
    deadline_seconds: float = DEADLINE_SECONDS

    def open(self, run_url: str) -> Inspector:
        """One run, without a cache: what is told here is told of the store itself."""
        run = open_run(
            run_url,
            self.user,
            self.password,
            manifest_key=self.manifest_key,
            deadline_seconds=self.deadline_seconds,
        )
        return Inspector(run)

    def runs(self) -> Sequence[Inspector]:
        """The runs below; of a checkpoint, its run.

        Raises:
            CheckpointError: There is no such directory.
        """
        address = parse_address(self.url)
        if address.name is not None:
            return [self.open(address.base)]
        files = open_filesystem(
            address.base, self.user, self.password, deadline_seconds=self.deadline_seconds
        )
        return [self.open(run_url) for run_url in runs_below(files)]

    def only_run(self) -> RunStore:
        """The one run that is meant.

        Raises:
            UsageError: There are several or none, or a checkpoint is named.
        """
        address = parse_address(self.url)
        if address.name is not None or address.newest:
            raise UsageError(f"{self.url} is a checkpoint, not a run: give {address.base}")
        runs = [inspector.run for inspector in self.runs()]
        if len(runs) != 1:
            names = ", ".join(run.run_id for run in runs[:6])
            raise UsageError(
                f"{address.base} holds {len(runs)} runs{f' ({names})' if names else ''}: give the "
                "path or URL of one run"
            )
        return runs[0]

    def listed(self) -> Sequence[CheckpointInfo]:
        """All checkpoints that are meant: runs by name, in each the newest first.

        Raises:
            CheckpointError: There is no such place, or not the one checkpoint that is named.
        """
        address = parse_address(self.url)
        if address.name is not None:
            return [self.open(address.base).named(address.name)]
        if address.newest:
            return [next(self.candidates(lambda _line: None))[1]]
        return [listed for inspector in self.runs() for listed in inspector.all()]

    def candidates(
        self, on_skip: Callable[[str], None]
    ) -> Iterator[tuple[Inspector, CheckpointInfo]]:
        """Committed checkpoints that may be meant, best first: one by name, or the newest ones.

        Args:
            on_skip: Gets one line for each checkpoint that does not count.

        Raises:
            CheckpointError: The one that is named does not count, or there is none at all.
        """
        address = parse_address(self.url)
        if address.name is not None:
            inspector = self.open(address.base)
            listed = inspector.named(address.name)
            inspector.ref(address.name)  # raises where it does not count, and says what to do
            yield inspector, listed
            return
        found = False
        bad: list[CheckpointError] = []
        for inspector in newest_first(self.runs(), bad, on_skip):
            for listed in inspector.committed(on_skip):
                found = True
                yield inspector, listed
        if not found:
            raise no_checkpoint(address.base, bad)
