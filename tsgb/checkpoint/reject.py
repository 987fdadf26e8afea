"""Takes a checkpoint out of a run that loads nowhere, so that the run goes on from the one before.

Its bytes verify, so no reader passes over it by itself. A person decides: what could not be loaded
here may load elsewhere, and what was trained is trained again. Its manifest moves to a document,
`rejected/<checkpoint>.json`, and no reader counts a checkpoint without one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from tsgb.checkpoint.documents import MAX_JSON_BYTES
from tsgb.checkpoint.layout import CHECKPOINTS, CheckpointName
from tsgb.checkpoint.manifest import MANIFEST, utc_now
from tsgb.checkpoint.prune import check_nobody_works
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import RunLock, RunStore
from tsgb.errors import CheckpointError, UsageError
from tsgb.types import CheckpointRef

REJECTED = "rejected"
"""Directory of a run with a document for each checkpoint that was taken out."""


class ReaderWithout(CheckpointReader):
    """The checkpoints of a run without some of them."""

    def __init__(self, run: RunStore, names: Collection[str]) -> None:
        """Wrap a run; nothing is read yet.

        Args:
            run: The run.
            names: Names of checkpoints that do not count.
        """
        super().__init__(run)
        self._names = frozenset(names)

    def _checkpoints(self) -> Sequence[CheckpointName]:
        return [one for one in super()._checkpoints() if one.name not in self._names]


@dataclass(frozen=True, slots=True)
class RejectedCheckpoint:
    """A checkpoint that was taken out of its run.

    Example: `reject(run, "step-00001200-a0003-0001b2c4").before.step`
    """

    rejected: CheckpointRef
    """The checkpoint."""
    before: CheckpointRef
    """The one from which the run goes on now."""


def way_back(url: str) -> str:
    """Return what to do if a checkpoint loads nowhere, for the end of a message.

    Args:
        url: Address of the checkpoint.
    """
    return (
        f"if it loads nowhere, `tsgb checkpoint reject {url}` takes it out of the run, and the "
        "same command as before trains again from the checkpoint before it"
    )


def names_of_rejected(run: RunStore) -> Sequence[str]:
    """Return the names of the checkpoints that were taken out of a run."""
    names = [name.removesuffix(".json") for name in run.list_if_present(REJECTED)]
    return sorted(name for name in names if CheckpointName.parse(name))


def reject(
    run: RunStore,
    name: str,
    *,
    reason: str = "",
    force: bool = False,
    on_skip: Callable[[str], None] = lambda _line: None,
    clock: Callable[[], datetime] = utc_now,
) -> RejectedCheckpoint:
    """Take a checkpoint out of a run, once the one before it is read in full.

    Args:
        run: The run.
        name: Name of the checkpoint.
        reason: Reason for people, kept in the document.
        force: Whether to do it even if a worker seems to be alive.
        on_skip: Called with one line for each checkpoint that does not verify.
        clock: Returns the time, which a heartbeat's age is measured by.

    Raises:
        CheckpointError: There is none of that name.
        UsageError: A worker is alive, or no other checkpoint verifies.
    """
    ref = CheckpointReader(run).ref(name)
    if not force:
        check_nobody_works(run, clock())
    with RunLock(run.run_url):
        try:
            found = ReaderWithout(run, {name}).newest_valid(on_skip)
        except CheckpointError as error:
            raise UsageError(f"{name} is the only one left: {error}") from error
        if found is None:
            raise UsageError(
                f"{name} is the only checkpoint of {run.run_url}, so there is none to go on from: "
                f"to start over, delete {run.run_url}, or choose another run id"
            )
        path = f"{CHECKPOINTS}/{name}/{MANIFEST}"
        document = {
            "manifest": run.read_bytes(path, MAX_JSON_BYTES).decode(),
            "sha256": ref.sha256,
            "reason": reason,
            "at": clock().isoformat(),
        }
        run.write_json(f"{REJECTED}/{name}.json", document)
        run.delete(path)
    return RejectedCheckpoint(ref, found[0])
