"""Output of `tsgb checkpoint`: a table for people, or the same as one JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from tsgb.checkpoint.inspect import CheckpointInfo, CheckpointState
from tsgb.checkpoint.prune import PruneResult
from tsgb.checkpoint.pull import PullResult
from tsgb.checkpoint.reject import RejectedCheckpoint
from tsgb.checkpoint.replays import ReplayRecord
from tsgb.checkpoint.urls import place
from tsgb.checkpoint.verify import VerifyResult
from tsgb.cli.output import console, print_json


def _row(listed: CheckpointInfo) -> dict[str, Any]:
    """Return the row of one checkpoint."""
    manifest = listed.manifest
    return {
        "run_id": listed.run.run_id,
        "run": place(listed.run.run_url),
        "name": listed.checkpoint.name,
        "checkpoint": place(listed.url),
        "step": listed.checkpoint.step,
        "episode": None if manifest is None else manifest.episode,
        "attempt": listed.checkpoint.attempt,
        "writer": listed.checkpoint.writer,
        "created_at": None if manifest is None else manifest.created_at.isoformat(),
        "size": listed.size,
        "parts_size": listed.parts_size,
        "state": listed.state.value,
        "reason": listed.reason or None,
    }


def _line(out: Console, text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)


def _size(num_bytes: int | None) -> str:
    return "?" if num_bytes is None else decimal(num_bytes)


# -- ls ------------------------------------------------------------------------------------


def say_list(store: str, listed: Sequence[CheckpointInfo], *, as_json: bool) -> None:
    """Print a table for each run, newest checkpoint first."""
    if as_json:
        print_json({"store": place(store), "checkpoints": [_row(item) for item in listed]})
        return
    out = console()
    for url, group in groupby(listed, key=lambda item: item.run.run_url):
        items = list(group)
        out.print(_list_table(place(url), items))
        parts = {record.path: record.size for item in items for record in item.parts.values()}
        if parts:
            size = decimal(sum(parts.values()))
            _line(out, f"and {len(parts)} parts, {size}, which were written once and are shared")
        for item in items:
            if item.reason:
                _line(out, f"{item.checkpoint.name}: {item.reason}")
    if not listed:
        _line(out, f"no checkpoints below {place(store)}")


def _list_table(title: str, items: Sequence[CheckpointInfo]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("Checkpoint", no_wrap=True)
    for head in ("Step", "Episode", "Attempt"):
        table.add_column(head, justify="right")
    table.add_column("Created (UTC)", no_wrap=True)
    table.add_column("Size", justify="right", no_wrap=True)
    table.add_column("State")
    for item in items:
        manifest = item.manifest
        table.add_row(
            item.checkpoint.name,
            f"{item.checkpoint.step}",
            "" if manifest is None else f"{manifest.episode}",
            f"{item.checkpoint.attempt}",
            "" if manifest is None else f"{manifest.created_at:%Y-%m-%d %H:%M:%S}",
            _size(item.size),
            item.state.value,
        )
    return table


# -- show ----------------------------------------------------------------------------------


def say_one(listed: CheckpointInfo, *, as_json: bool) -> None:
    """Print the content of a manifest."""
    manifest = listed.manifest
    if manifest is None:
        raise RuntimeError("only a committed checkpoint is shown")
    more = manifest.model_dump(mode="json", include={"parent", "config_sha256", "versions"})
    files = [
        {"name": name, "size": record.size, "sha256": record.sha256}
        for name, record in listed.files.items()
    ]
    parts = [
        {"name": name, "size": record.size, "sha256": record.sha256, "path": record.path}
        for name, record in listed.parts.items()
    ]
    document = {**_row(listed), "manifest_sha256": listed.sha256, **more, "files": files}
    document |= {"parts": parts} if parts else {}
    if as_json:
        print_json(document)
        return
    out = console()
    versions = ", ".join(f"{name} {number}" for name, number in manifest.versions.items())
    shown = {
        "checkpoint": document["checkpoint"],
        "step, episode": f"{listed.checkpoint.step}, {manifest.episode}",
        "attempt, writer": f"{listed.checkpoint.attempt}, {listed.checkpoint.writer}",
        "created": f"{manifest.created_at:%Y-%m-%d %H:%M:%S} UTC",
        "parent": manifest.parent or "none",
        "config sha256": manifest.config_sha256,
        "manifest sha256": listed.sha256,
        "versions": versions,
    }
    for name, value in shown.items():
        _line(out, f"{name:>16}  {value}")
    table = Table()
    table.add_column("File", no_wrap=True)
    table.add_column("Size", justify="right", no_wrap=True)
    table.add_column("sha256", no_wrap=True)
    for name, record in (*listed.files.items(), *listed.parts.items()):
        table.add_row(name, _size(record.size), record.sha256)
    out.print(table)


# -- verify --------------------------------------------------------------------------------


def say_verified(store: str, found: Sequence[VerifyResult], *, as_json: bool) -> None:
    """Print a line for each checkpoint and each problem, then the totals."""
    counts = {state.value: sum(item.state is state for item in found) for state in CheckpointState}
    if as_json:
        rows = [
            {
                **_row(item.listed),
                "state": item.state.value,
                "reason": item.reason or None,
                "num_files": item.num_files,
                "problems": [asdict(problem) for problem in item.problems],
            }
            for item in found
        ]
        print_json({"store": place(store), **counts, "checkpoints": rows})
        return
    out = console()
    for item in found:
        size = _size(item.listed.size and item.listed.size + item.listed.parts_size)
        _line(
            out,
            f"{item.state.value:>10}  {place(item.listed.url)}  {item.num_files} files, {size}",
        )
        for problem in item.problems:
            _line(out, f"{'':>10}  {problem}")
        if item.reason:
            _line(out, f"{'':>10}  {item.reason}")
    _line(out, ", ".join(f"{number} {state}" for state, number in counts.items()))


# -- pull ----------------------------------------------------------------------------------


def say_pulled(pulled: PullResult, *, as_json: bool) -> None:
    """Print the directory of the copy, and the next command."""
    if as_json:
        print_json(
            {
                "source": place(pulled.source.url),
                "checkpoint": str(pulled.directory),
                "copied": dict(pulled.copied),
                "present": dict(pulled.present),
                "has_config": pulled.has_config,
            }
        )
        return
    out = console()
    _line(out, f"copied {len(pulled.copied)} files, {decimal(sum(pulled.copied.values()))}")
    if pulled.present:
        size = decimal(sum(pulled.present.values()))
        _line(out, f"{len(pulled.present)} files, {size}, were there already and are verified")
    _line(out, f"checkpoint: {pulled.directory}")
    if pulled.has_config:
        _line(out, f"next: tsgb eval-local --checkpoint-path {pulled.directory}")


# -- prune ---------------------------------------------------------------------------------


def say_pruned(pruned: PruneResult, *, dry_run: bool, as_json: bool) -> None:
    """Print which checkpoints were deleted, and the space that this freed."""
    if as_json:
        print_json(
            {
                "run": place(pruned.run.run_url),
                "dry_run": dry_run,
                "deleted": [_row(item) for item in pruned.deleted],
                "kept": [_row(item) for item in pruned.kept],
                "freed_bytes": pruned.num_bytes,
            }
        )
        return
    out = console()
    verb, effect = ("would delete", "to free") if dry_run else ("deleted", "freed")
    for item in pruned.deleted:
        _line(out, f"{verb} {item.checkpoint.name}  {_size(item.size)}  {item.state.value}")
    total = len(pruned.deleted) + len(pruned.kept)
    _line(
        out,
        f"{verb} {len(pruned.deleted)} of {total} checkpoints of {place(pruned.run.run_url)}, "
        f"{decimal(pruned.num_bytes)} {effect}",
    )


# -- reject --------------------------------------------------------------------------------


def say_rejected(found: RejectedCheckpoint, *, as_json: bool) -> None:
    """Print the checkpoint that counts no more, and the one from which its run goes on."""
    rejected, before = found.rejected, found.before
    if as_json:
        print_json({"rejected": place(rejected.url), "before": place(before.url)})
        return
    _line(
        console(),
        f"{place(rejected.url)} counts no more: run {before.run_url.rpartition('/')[2]} goes on "
        f"from {before.name}, after update {before.step}, when it is started again",
    )


# -- replay --------------------------------------------------------------------------------


def say_replayed(run_url: str, found: ReplayRecord, share: float, *, as_json: bool) -> None:
    """Print what was trained again, how far it deviates, and the share of the run in all."""
    if as_json:
        print_json(
            {
                "run": place(run_url),
                **found.model_dump(mode="json"),
                "agrees": found.agrees,
                "updates": found.num_updates,
                "share_replayed": share,
            }
        )
        return
    out = console()
    _line(
        out,
        f"trained updates {found.first_step + 1} to {found.last_step} again, {found.num_updates} "
        f"of {found.total_steps}: from {found.start} to {found.stop}",
    )
    if found.deviation is None:
        _line(out, f"more than numbers differ, first in {found.where}")
    else:
        _line(
            out,
            f"greatest deviation {found.deviation:.3g} (tolerance {found.tolerance:g}; the weights "
            f"moved by up to {found.moved:.3g})" + (f", in {found.where}" if found.where else ""),
        )
    _line(out, f"replays agree with {share:.1%} of the run's updates")
