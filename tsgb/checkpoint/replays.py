"""Replays of a run: stretches of its training that were done again elsewhere, and compared.

`tsgb checkpoint replay` writes a document for each, which no reader of checkpoints looks at. The
module chooses the stretch and adds up what was replayed; `tsgb.worker.replay` trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from tsgb.checkpoint.layout import CheckpointName
from tsgb.checkpoint.run import RunStore
from tsgb.errors import StoreError, StoreUnreachable, UsageError

REPLAYS = "replays"
"""Directory of a run with a document for each checkpoint that a replay was compared with."""
_MAX_DOCUMENTS = 1000


class ReplayRecord(BaseModel):
    """A stretch of a run's training that was done again.

    Example: `ReplayRecord(start="step-00000004-a0001-0001b2c4", first_step=4, last_step=8, ...)`
    """

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    start: str
    """Name of the checkpoint that the replay began at."""
    stop: str
    """Name of the checkpoint that its end was compared with."""
    start_sha256: str
    """Hash of the manifest of the first."""
    stop_sha256: str
    """Hash of the manifest of the second."""
    first_step: int = Field(ge=0)
    """Updates in the first."""
    last_step: int = Field(ge=1)
    """Updates in the second."""
    total_steps: int = Field(ge=1)
    """Updates of the whole training."""
    deviation: float | None = Field(ge=0, allow_inf_nan=False)
    """Greatest difference of any number in the two states; None where they differ in more than
    numbers."""
    where: str = Field(max_length=300)
    """The number with it, by file and name; empty without any difference."""
    moved: float = Field(ge=0, allow_inf_nan=False)
    """Greatest change of any weight over the stretch, by the run's own checkpoints: the scale of
    the deviation."""
    tolerance: float = Field(ge=0, allow_inf_nan=False)
    """Deviation up to which the two count as equal."""
    at: AwareDatetime
    """Time of the replay."""

    @property
    def agrees(self) -> bool:
        """Whether the replay came to what the run has."""
        return self.deviation is not None and self.deviation <= self.tolerance

    @property
    def num_updates(self) -> int:
        """Updates that were done again."""
        return self.last_step - self.first_step


def choose_stretch(
    checkpoints: Iterable[CheckpointName], updates: int, start: str | None = None
) -> tuple[CheckpointName, CheckpointName]:
    """Return the checkpoints between which to train again.

    A run keeps only some. The second is the first one that is so many updates after the first, or
    else the last one there is. Where no start is named, it is the newest that has one so many
    updates later, or else the oldest.

    Args:
        checkpoints: Committed checkpoints of the run; of several of one step the highest attempt
            counts.
        updates: Updates to do again, 1 or more.
        start: Name of the first.

    Raises:
        UsageError: There are no two such checkpoints.
    """
    by_step = {one.step: one for one in sorted(checkpoints)}
    kept = sorted(by_step.values(), key=lambda one: one.step)
    if start is not None:
        first = CheckpointName.parse(start)
        if first is None or first.step not in by_step:
            raise UsageError(f"{start} is no checkpoint that counts: see `tsgb checkpoint ls`")
        later = [one for one in kept if one.step > first.step]
        if not later:
            raise UsageError(
                f"{start} is the last checkpoint of its run: give an earlier one, or the run itself"
            )
        return first, _end_of(later, first.step + updates)
    if len(kept) < 2:
        raise UsageError(
            f"the run has {len(kept)} checkpoints, and a replay leads from one to another: wait "
            "until it has saved again"
        )
    ends = (one for one in reversed(kept) if one.step + updates <= kept[-1].step)
    first = next(ends, kept[0])
    later = [one for one in kept if one.step > first.step]
    return first, _end_of(later, first.step + updates)


def _end_of(later: Sequence[CheckpointName], step: int) -> CheckpointName:
    return next((one for one in later if one.step >= step), later[-1])


def write_replay(run: RunStore, record: ReplayRecord) -> None:
    """Keep the record of a replay, in place of an earlier one that ended at the same checkpoint."""
    data = record.model_dump_json(indent=1).encode()
    run.write_signed(f"{REPLAYS}/{record.stop}.json", data)


def read_replays(run: RunStore) -> Sequence[ReplayRecord]:
    """Return the replays of a run by their first update; what cannot be read is none.

    Raises:
        StoreUnreachable: The store does not answer.
    """
    found: list[ReplayRecord] = []
    names = [name.removesuffix(".json") for name in run.list_if_present(REPLAYS)]
    for name in sorted(name for name in names if CheckpointName.parse(name))[:_MAX_DOCUMENTS]:
        try:
            content = run.read_signed_json(f"{REPLAYS}/{name}.json")
            record = ReplayRecord.model_validate(content)
        except StoreUnreachable:
            raise
        except (FileNotFoundError, StoreError, ValidationError):
            continue
        if record.stop == name:
            found.append(record)
    return sorted(found, key=lambda one: (one.first_step, one.last_step))


def share_replayed(records: Iterable[ReplayRecord], total_steps: int) -> float:
    """Return the share of a run's updates that replays agree with, each update counted once.

    Args:
        records: Replays of the run.
        total_steps: Updates of the whole training.
    """
    stretches = sorted((one.first_step, one.last_step) for one in records if one.agrees)
    done = reached = 0
    for first, last in stretches:
        done += max(0, min(last, total_steps) - max(first, reached))
        reached = max(reached, last)
    return done / total_steps
