"""`tsgb checkpoint ...`: list, show, verify, copy, delete and reject checkpoints of a store."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from tsgb.cli.options import JsonOption
from tsgb.errors import TSGBError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from tsgb.checkpoint.inspect import CheckpointInfo
    from tsgb.checkpoint.resolve import StoreLocation

checkpoint_app = typer.Typer(
    help="List, show, verify, copy, delete and reject the checkpoints of a store."
)

StoreArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="STORE",
        help="A checkpoint, a run or a store, as a path or URL; without it, where runs go.",
    ),
]


@checkpoint_app.command("ls")
def checkpoint_ls(store: StoreArgument = None, as_json: JsonOption = False) -> None:
    """List all checkpoints below a path or URL, from their manifests alone."""
    from tsgb.cli import checkpoint_tables as tables

    opened = _open(store)
    tables.say_list(opened.url, opened.listed(), as_json=as_json)


@checkpoint_app.command("show")
def checkpoint_show(store: StoreArgument = None, as_json: JsonOption = False) -> None:
    """Show the manifest of one checkpoint: the named one, or the newest one below."""
    from tsgb.cli import checkpoint_tables as tables

    _, listed = next(_open(store).candidates(_note))
    tables.say_one(listed, as_json=as_json)


@checkpoint_app.command("verify")
def checkpoint_verify(store: StoreArgument = None, as_json: JsonOption = False) -> None:
    """Read every file of all checkpoints below; exit code 1 if one is damaged."""
    from tsgb.checkpoint.inspect import CheckpointState
    from tsgb.checkpoint.resolve import no_checkpoint
    from tsgb.checkpoint.verify import verify
    from tsgb.cli import checkpoint_tables as tables

    opened = _open(store)
    listed = opened.listed()
    if not listed:
        raise no_checkpoint(opened.url)
    with _progress("verify", listed) as on_file:
        found = list(verify(listed, on_file))
    tables.say_verified(opened.url, found, as_json=as_json)
    damaged = [item for item in found if item.state is CheckpointState.DAMAGED]
    if damaged:
        raise TSGBError(
            f"{len(damaged)} of {len(found)} checkpoints are damaged, first {damaged[0].listed.url}"
            f" ({damaged[0].problems[0].file}): resuming passes over it to an older one; fetch a "
            "copy from elsewhere, or delete it"
        )


@checkpoint_app.command("pull")
def checkpoint_pull(
    checkpoint: Annotated[
        str,
        typer.Argument(help="A checkpoint; of a run or a store the newest one that verifies."),
    ],
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="A local directory: empty, or that copy begun.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Copy a checkpoint and its run's configuration to a local directory, which is then a store.

    The same command goes on with a copy that was cut off.
    """
    from tsgb.checkpoint.pull import pull
    from tsgb.cli import checkpoint_tables as tables

    opened = _open(checkpoint)
    with _progress("pull", []) as on_file:
        pulled = pull(opened, directory, on_skip=_note, on_file=on_file)
    if not pulled.has_config:
        _note(f"{pulled.source.run.run_url} has no config.json: the copy can be kept, not used")
    tables.say_pulled(pulled, as_json=as_json)


@checkpoint_app.command("prune")
def checkpoint_prune(
    store: StoreArgument = None,
    keep: Annotated[int, typer.Option(min=1, help="Number of the newest that stay.")] = 3,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be deleted.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Delete even if a worker is alive: it stops with exit code 5."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete all but the newest checkpoints of one run, and what dead workers left unfinished.

    The newest one is read in full first: one that verifies is kept, whatever --keep says.
    """
    from tsgb.checkpoint.prune import prune
    from tsgb.cli import checkpoint_tables as tables

    run = _open(store).only_run()
    pruned = prune(run, keep, dry_run=dry_run, force=force, on_skip=_note)
    tables.say_pruned(pruned, dry_run=dry_run, as_json=as_json)


@checkpoint_app.command("reject")
def checkpoint_reject(
    checkpoint: Annotated[str, typer.Argument(help="The checkpoint, by its own path or URL.")],
    reason: Annotated[str, typer.Option(help="Reason, kept in the store for people.")] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Do it even if a worker seems to be alive.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Take a checkpoint that loads nowhere out of its run, which goes on from the one before.

    Nothing is trained by this command: start the run again with the same --run-id.
    """
    from tsgb.checkpoint.reject import reject
    from tsgb.checkpoint.resolve import parse_address
    from tsgb.cli import checkpoint_tables as tables

    opened, address = _open(checkpoint), parse_address(checkpoint)
    if address.name is None:
        raise UsageError(f"{checkpoint} is not one checkpoint: give the path or URL of its own")
    run = opened.open(address.base).run
    found = reject(run, address.name, reason=reason, force=force, on_skip=_note)
    tables.say_rejected(found, as_json=as_json)


def _open(url: str | None) -> StoreLocation:
    from tsgb.checkpoint.resolve import StoreLocation
    from tsgb.settings import load_settings

    settings = load_settings()
    return StoreLocation(
        url=settings.default_store if url is None else url,
        user=settings.webdav_user,
        password=settings.webdav_pass,
        manifest_key=settings.manifest_key,
    )


def _note(line: str) -> None:
    typer.echo(line, err=True)


@contextmanager
def _progress(
    stage: str, listed: Sequence[CheckpointInfo]
) -> Generator[Callable[[CheckpointInfo, str, int], None]]:
    """Show bars on a terminal, and a line every few seconds elsewhere, on stderr."""
    from rich.filesize import decimal

    from flows.progress import Bar, watching

    done: dict[str, tuple[int, int]] = {}
    totals: dict[str, int] = {}
    for item in listed:
        totals[item.run.run_url] = totals.get(item.run.run_url, 0) + len(item.contents)

    with watching(sys.stderr) as listener:

        def on_file(item: CheckpointInfo, name: str, num_bytes: int) -> None:
            url = item.run.run_url
            files, size = done.get(url, (0, 0))
            done[url] = files + 1, size + num_bytes
            total = totals.get(url, len(item.contents))
            text = f"{decimal(size + num_bytes)}, {item.checkpoint.name}/{name}"
            listener.bars(stage, [Bar(item.run.run_id, files + 1, total, text)])

        yield on_file
