"""Remaining work of a run, and the history of a deployment's machines, read from the store.

An update of a kind that was not measured is assumed to take the mean of the other kinds.

The arms of a run train at the same time (`tsgb/worker/machine.py`, as long as the host has as many
cores as there are arms), so the longest arm decides. Their updates were measured while they trained
at the same time, so the measured times are used unchanged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from tsgb.checkpoint.documents import MAX_JSON_BYTES, count_in, parse_json_lines, seconds_in
from tsgb.checkpoint.manifest import Manifest
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import RunStore
from tsgb.cloud.documents import RunDocuments, hold_of
from tsgb.cloud.inventory import DeploymentRuns
from tsgb.cloud.preemption import Hold
from tsgb.cloud.retry_policy import Ending
from tsgb.cloud.speed import MeasuredUpdates, summarise
from tsgb.config import Arm, arm_run_id, parse_config
from tsgb.errors import CheckpointError, StoreError, UsageError

_MOST_UPDATES = 1_000_000
"""Updates of one attempt that are counted at most, since its machine told the number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemainingWork:
    """Work that a run has left.

    Example: `RemainingWork(hours=8.0, source="as given")`
    """

    hours: float
    """Useful hours of the longest arm, on a machine as fast as the measured one."""
    source: str
    """Origin of these hours, for people."""
    arms: tuple[float, ...] = (1.0,)
    """Hours that each arm has left, as shares of these; arms that are done are not among them."""
    step_seconds: float = 1.0
    """Mean seconds of the updates that the longest arm has left."""
    save_updates: int | None = None
    """Updates between two saves if the configuration fixes them; None for Young's rule."""
    restore_gb: float = 0.0
    """Size of the checkpoints that a machine loads at its start, GB: those of all its arms."""
    save_gb: float = 0.0
    """Mean size of what a save of its arms sends, GB; an arm that is done saves nothing."""
    traffic_source: str = ""
    """Origin of these sizes, for people; empty if they are unknown."""
    measured_on: tuple[MeasuredUpdates, ...] = ()
    """Updates by the GPU that made them, of which the hours are an estimate; empty if unknown."""
    spent: int = 0
    """Micro-dollars that the run has cost or set aside already."""
    endings: tuple[Ending, ...] = ()
    """Endings of its attempts, oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineHistory:
    """Machines that this deployment has rented.

    Example: `MachineHistory(holds=(Hold("RTX 4090 x1 bid", 1.6),), runs=1)`
    """

    holds: tuple[Hold, ...] = ()
    """Rentals, and whether they were preempted."""
    boot_seconds: tuple[float, ...] = ()
    """Seconds from each rental to the first heartbeat."""
    runs: int = 0
    """Number of runs that rented machines."""
    updates: tuple[MeasuredUpdates, ...] = ()
    """Updates that they made, by run, kind and GPU."""


def read_history(runs: DeploymentRuns) -> MachineHistory:
    """Return the machines of all runs of the deployment."""
    holds: list[Hold] = []
    boots: list[float] = []
    updates: list[MeasuredUpdates] = []
    num_runs = 0
    for documents in runs.rented():
        num_runs += 1
        updates += measured_updates(documents)
        for document in documents.attempts():
            hold = hold_of(document)
            holds += [] if hold is None else [hold]
            boot = None if document.result is None else document.result.boot_seconds
            boots += [] if boot is None else [boot]
    return MachineHistory(
        holds=tuple(holds), boot_seconds=tuple(boots), runs=num_runs, updates=tuple(updates)
    )


def measured_updates(documents: RunDocuments) -> tuple[MeasuredUpdates, ...]:
    """Return the updates of a run's main arm by kind and by the GPU that made them.

    Which attempt made an update is told by the ends of the attempts, and its seconds by the
    metrics; none, where a document cannot be read.
    """
    name, made_by = Arm.SELFPLAY.value, dict[int, str]()
    for document in documents.attempts():
        if document.intent is None or document.result is None:
            continue
        first, last = document.result.updates.get(name, (0, 0))
        steps = range(first + 1, min(last, first + _MOST_UPDATES) + 1)
        made_by |= dict.fromkeys(steps, document.intent.gpu_name)
    if not made_by:
        return ()
    try:
        text = documents.run.read_text("metrics.jsonl")
    except (FileNotFoundError, StoreError):
        return ()
    run = documents.run.run_id
    return summarise(
        ((run, str(line.get("phase"))), made_by[step], seconds)
        for line in parse_json_lines(text)
        if (step := count_in(line, "step")) in made_by and (seconds := _seconds(line)) > 0
    )


def measure(runs: DeploymentRuns, run: str) -> RemainingWork:
    """Return the work that a run has left, from its configuration and the time of its updates.

    Raises:
        UsageError: There is no such run, nothing was measured yet, or nothing is left.
    """
    arms = [found for arm in Arm if (found := _arm(runs, run, arm)) is not None]
    if not arms:
        raise UsageError(f"run {run!r} is not in {runs.url}: give --hours for a run to come")
    num_left, done = sum(arm.num_left for arm in arms), sum(arm.step for arm in arms)
    if not num_left:
        raise UsageError(f"run {run!r} is trained: all of its {done} updates are saved")
    pooled = _means(pair for arm in arms for pair in arm.timed)
    if not pooled:
        raise UsageError(f"run {run!r} has no update that was measured yet: give --hours instead")
    longest = max(arms, key=lambda arm: arm.seconds_left(pooled))
    seconds = longest.seconds_left(pooled)
    together = ""
    if len(arms) > 1:
        together = f"; its {len(arms)} arms train at once, and {longest.arm} has the most left"
    homes = [runs.documents(arm_run_id(run, arm.arm)) for arm in arms]
    sizes = _filled([arm.size for arm in arms])
    shares = [arm.seconds_left(pooled) / seconds for arm in arms]
    return RemainingWork(
        hours=seconds / 3600,
        source=f"{num_left} of {num_left + done} updates of run {run}, as fast as those before"
        f"{together}",
        arms=tuple(share for share in shares if share > 0),
        step_seconds=seconds / longest.num_left,
        save_updates=longest.save_updates,
        restore_gb=sum(size.restore_gb for size in sizes),
        save_gb=sum(size.save_gb * share for size, share in zip(sizes, shares, strict=True)),
        traffic_source=f"by the newest checkpoints of run {run}"
        if any(size.restore_gb for size in sizes)
        else "",
        spent=sum(runs.ledger(home).held for home in homes),
        measured_on=measured_updates(runs.documents(run)),
        endings=tuple(
            sorted((end for home in homes for end in home.endings()), key=lambda end: end.at)
        ),
    )


@dataclass(frozen=True, slots=True)
class StateSize:
    """Traffic that checkpoints cause.

    Example: `StateSize(save_gb=0.72, restore_gb=1.44)`
    """

    save_gb: float = 0.0
    """Size of what each save sends, GB: the parts that it shares with earlier ones are there."""
    restore_gb: float = 0.0
    """Size of what a start on another machine fetches, GB."""

    @classmethod
    def of(cls, manifest: Manifest) -> StateSize:
        """Return the sizes of one checkpoint."""
        parts = {record.path: record.size for record in manifest.part_records.values()}
        files = sum(record.size for record in manifest.files.values())
        return cls(files / 1e9, (files + sum(parts.values())) / 1e9)


def state_size(runs: Iterable[RunStore]) -> StateSize:
    """Return the size of the newest checkpoints of these arms, from their manifests.

    It is 0 if there is no checkpoint, or if one cannot be read: the size is for an estimate only,
    and other steps report a faulty store.
    """
    try:
        newest = [CheckpointReader(run).newest_manifest() for run in runs]
    except (StoreError, CheckpointError):
        return StateSize()
    sizes = _filled([None if found is None else StateSize.of(found[1]) for found in newest])
    return StateSize(sum(s.save_gb for s in sizes), sum(s.restore_gb for s in sizes))


def _filled(sizes: Sequence[StateSize | None]) -> list[StateSize]:
    """Return the sizes, with the mean of the known ones instead of None."""
    known = [size for size in sizes if size is not None] or [StateSize()]
    usual = StateSize(mean(s.save_gb for s in known), mean(s.restore_gb for s in known))
    return [usual if size is None else size for size in sizes]


@dataclass(frozen=True, slots=True)
class _ArmLeft:
    """Work that one arm has left to do."""

    arm: Arm
    """The arm."""
    step: int
    """Updates in its newest checkpoint."""
    left: dict[str, int]
    """Updates left of each kind."""
    timed: list[tuple[str, float]]
    """Kind and seconds of updates that were measured."""
    size: StateSize | None
    """Size of its newest checkpoint; None without one."""
    save_updates: int | None
    """Updates between two saves if they are fixed."""

    @property
    def num_left(self) -> int:
        return sum(self.left.values())

    def seconds_left(self, pooled: dict[str, float]) -> float:
        means = {**pooled, **_means(self.timed)}
        usual = mean(means.values())
        return sum(num * means.get(kind, usual) for kind, num in self.left.items())


def _arm(runs: DeploymentRuns, run_id: str, arm: Arm) -> _ArmLeft | None:
    run = runs.documents(arm_run_id(run_id, arm)).run
    try:
        text = run.read_text("config.json", MAX_JSON_BYTES)
    except FileNotFoundError:
        return None
    config = parse_config(text, f"{run.run_url}/config.json")
    newest = CheckpointReader(run).newest_manifest()
    step = 0 if newest is None else newest[0].step
    left: dict[str, int] = defaultdict(int)
    for phase in config.phases():
        left[phase.kind] += max(0, phase.stop - max(phase.start, step))
    size = None if newest is None else StateSize.of(newest[1])
    return _ArmLeft(arm, step, left, _timed(run), size, config.checkpoint_interval)


def _timed(run: RunStore) -> list[tuple[str, float]]:
    """Return kind and seconds of the updates whose line in the metrics has them."""
    try:
        text = run.read_text("metrics.jsonl")
    except FileNotFoundError:
        return []
    found = [(str(line.get("phase")), _seconds(line)) for line in parse_json_lines(text)]
    return [(phase, seconds) for phase, seconds in found if seconds]


def _seconds(line: Mapping[str, Any]) -> float:
    """Return the seconds of an update, 0 if unknown; earlier versions wrote only its speed."""
    speed = seconds_in(line, "tokens_per_second")
    by_speed = count_in(line, "tokens") / speed if speed else 0.0
    return seconds_in(line, "seconds") or by_speed


def _means(timed: Iterable[tuple[str, float]]) -> dict[str, float]:
    known: dict[str, list[float]] = defaultdict(list)
    for kind, seconds in timed:
        known[kind].append(seconds)
    return {kind: mean(found) for kind, found in known.items()}
