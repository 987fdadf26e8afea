"""`tsgb deploy`: both stages and the reaper on a Prefect server. Thin: `flows.deploy` does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tsgb.cli.options import JsonOption
from tsgb.errors import UsageError

if TYPE_CHECKING:
    from flows.deploy import ServerObject


def deploy(
    pool: Annotated[
        str | None,
        typer.Option(
            "--pool",
            metavar="NAME",
            help="Work pool of all deployments in place of the declared one; made if missing.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be changed on the server.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the work pool, both stages, the reaper and the automation on a Prefect server.

    What is there is updated, what an earlier version left is deleted, and a second call changes
    nothing. The server is that of PREFECT_API_URL or of your Prefect profile.
    """
    from pathlib import Path

    from tsgb.settings import is_home_known

    if not is_home_known():
        raise UsageError("Prefect needs a home directory: set HOME to one that you can write")
    from flows.server import connected_server, server_url

    url = server_url()
    from flows.deploy import deploy as deploy_all
    from flows.deploy import read_declaration
    from tsgb.cli import output

    declaration = read_declaration(Path.cwd(), pool)
    objects: list[ServerObject] = []
    with connected_server() as client:
        for one in deploy_all(client, declaration, dry_run=dry_run):
            objects.append(one)
            if not as_json:
                typer.echo(_line(one, dry_run=dry_run))
    if as_json:
        rows = [
            {"kind": one.kind, "name": one.name, "action": one.action, "id": one.object_id}
            | {"changed": list(one.changed)}
            for one in objects
        ]
        output.print_json({"server": url, "dry_run": dry_run, "objects": rows})


def _line(one: ServerObject, *, dry_run: bool) -> str:
    """Return an object and what became of it, as in `updated    deployment tsgb/stage1 (tags)`."""
    parts = f" ({', '.join(one.changed)})" if one.changed else ""
    would = "would be " if dry_run and one.action != "unchanged" else ""
    return f"{would + one.action:{19 if dry_run else 9}} {one.kind} {one.name}{parts}"
