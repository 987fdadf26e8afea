"""`tsgb models ...`: put pretrained models where rented machines can read them."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from tsgb.cli.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Generator

    from tsgb.models.pushed import OnPiece, PushedModels

models_app = typer.Typer(
    help="Put models where rented machines can read them: your own, and gated ones."
)

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="Store of the runs, where TSGB_EXCHANGE_URL names no exchange; without it TSGB_STORE, "
        "RCLONE_WEBDAV_URL or ./runs.",
    ),
]
PushedArgument = Annotated[
    str, typer.Argument(metavar="pushed:NAME@PIN", help="A model, as `tsgb models list` names it.")
]


@models_app.command("push")
def models_push(
    name: Annotated[
        str,
        typer.Argument(help="A model, named as for --model: a directory, org/name@revision, ..."),
    ],
    store: StoreOption = None,
    again: Annotated[
        bool, typer.Option("--again", help="Send pieces too that are there: they may be damaged.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Send a model to the exchange; what is there already is not sent again.

    Whoever has the exchange's password can read it there, the hosts of rented machines too.
    """
    from rich.filesize import decimal

    from tsgb.cli.output import print_json
    from tsgb.models.fetch import fetch
    from tsgb.models.pushed import short_name
    from tsgb.models.source import ModelSource, inspect
    from tsgb.settings import load_settings

    settings = load_settings()
    cache = settings.cache_dir / "models"
    inspect(name, settings, cache)  # what cannot be trained is refused before it is sent
    opened = _open(store)
    found = fetch(name, settings, cache)
    with _progress("push") as on_piece:
        label = short_name(ModelSource.parse(name).location)
        result = opened.push(found.directory, label, on_piece, again=again)
    pushed = result.pushed
    if as_json:
        print_json(
            {
                "model": pushed.full_name,
                "bytes": pushed.size,
                "sent_bytes": result.sent_bytes,
                "files": pushed.sizes,
            }
        )
        return
    typer.echo(
        f"{pushed.full_name}\n{decimal(pushed.size)} in {len(pushed.files)} files, of which "
        f"{decimal(result.sent_bytes)} were sent now. Train with it on rented machines:\n"
        f"  tsgb manager run --env canary --model {pushed.full_name}"
    )


@models_app.command("list")
def models_list(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the models in the exchange."""
    from rich.filesize import decimal

    from tsgb.cli.output import print_json

    found = _open(store).listed()
    if as_json:
        rows = [{"model": one.full_name, "bytes": one.size, "files": one.sizes} for one in found]
        print_json({"models": rows})
        return
    for one in found:
        typer.echo(f"{one.full_name}  {decimal(one.size)}")
    if not found:
        typer.echo("no model was pushed", err=True)


@models_app.command("pull")
def models_pull(model: PushedArgument, store: StoreOption = None) -> None:
    """Get a model from the exchange into this machine's cache, where every command finds it."""
    with _progress("pull") as on_piece:
        typer.echo(_open(store).fetch(*_parsed(model), on_piece))


@models_app.command("delete")
def models_delete(model: PushedArgument, store: StoreOption = None) -> None:
    """Delete a model from the exchange; copies in caches stay."""
    from rich.filesize import decimal

    freed = _open(store).delete(_parsed(model)[1])
    typer.echo(f"{model} is deleted, {decimal(freed)} are free")


def _parsed(model: str) -> tuple[str, str]:
    from tsgb.models.source import ModelSource, SourceKind

    source = ModelSource.parse(model)
    if source.kind is not SourceKind.PUSHED:
        from tsgb.errors import UsageError

        raise UsageError(f"{model!r} is no pushed model: copy its name from `tsgb models list`")
    return source.location, source.revision


def _open(store: str | None) -> PushedModels:
    from tsgb.cloud.exchange import Exchange
    from tsgb.models.pushed import PushedModels
    from tsgb.settings import load_settings

    settings = load_settings()
    exchange = Exchange.of(settings, store or settings.default_store)
    return PushedModels(settings.cache_dir / "models", exchange.open_models())


@contextmanager
def _progress(stage: str) -> Generator[OnPiece]:
    """Show a bar on a terminal, and a line every few seconds elsewhere, on stderr."""
    from rich.filesize import decimal

    from flows.progress import Bar, watching

    with watching(sys.stderr) as listener:

        def on_piece(done: int, total: int) -> None:
            mega = 10**6
            text = f"{decimal(done)} of {decimal(total)}"
            listener.bars(stage, [Bar("model", done // mega, max(1, total // mega), text)])

        yield on_piece
