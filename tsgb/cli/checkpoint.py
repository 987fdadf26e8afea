"""`tsgb checkpoint ...`: list, show, verify, copy, delete, reject and replay checkpoints."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsgb.cli.options import JsonOption, OwnEnvOption, TrustOption, read_context
from tsgb.errors import TSGBError, UsageError
from tsgb.plugins import Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from tsgb.checkpoint.inspect import CheckpointInfo
    from tsgb.checkpoint.resolve import StoreLocation

checkpoint_app = typer.Typer(
    help="List, show, verify, copy, delete, reject and replay the checkpoints of a store."
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


@checkpoint_app.command("replay")
def checkpoint_replay(
    run: Annotated[
        str, typer.Argument(help="A run, or the checkpoint of one to begin at, as a path or URL.")
    ],
    updates: Annotated[
        int,
        typer.Option(
            min=1, help="Updates to train again; to the next checkpoint that is kept after them."
        ),
    ],
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="Greatest difference that counts as rounding; 0.0001 without it."),
    ] = None,
    env: OwnEnvOption = None,
    trust_config: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a stretch of a run again, here, and compare; exit code 1 if it comes to something else.

    The run's checkpoints stay as they are. What was found is kept in the run, and reports that are
    made afterwards say which share was replayed.
    """
    from flows.progress import Bar, watching
    from tsgb.checkpoint.replays import read_replays, share_replayed, write_replay
    from tsgb.checkpoint.resolve import parse_address
    from tsgb.cli import checkpoint_tables as tables
    from tsgb.errors import StoreError
    from tsgb.worker.replay import TOLERANCE, replay

    opened, address = _open(run), parse_address(run)
    context = read_context(Trust.of(env, trust_config=trust_config))
    url = address.base if address.name is not None else opened.only_run().run_url
    store = context.open(url)
    with watching(sys.stderr) as listener:

        def show(metrics: Mapping[str, Any]) -> None:
            bar = Bar(store.run_id, metrics["step"], metrics["step"], metrics["phase"])
            listener.bars("replay", [bar])

        def build(model: str, done: int, total: int) -> None:
            listener.bars("replay", [Bar(store.run_id, done, total, f"build {model}")])

        found = replay(
            context,
            store,
            updates,
            start=address.name,
            tolerance=TOLERANCE if tolerance is None else tolerance,
            note=listener.note,
            on_update=show,
            on_build=build,
        )
    record, kept = found.record, [found.record]
    try:
        write_replay(store, record)
        kept = [*read_replays(store)]
    except StoreError as error:
        _note(f"reports will not say that this was replayed: {error}")
    for line in found.caveats:
        _note(line)
    share = share_replayed(kept, record.total_steps)
    tables.say_replayed(store.run_url, record, share, as_json=as_json)
    if not record.agrees:
        raise TSGBError(
            f"what {record.stop} holds is not what training from {record.start} gives here: see "
            f"{record.where}; replay it on another machine, and take it out with `tsgb checkpoint "
            "reject` if that deviates too"
        )


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
