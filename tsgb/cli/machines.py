"""`tsgb machines ...` and `tsgb reap`: list and destroy the instances of the account."""

from __future__ import annotations

from typing import Annotated

import typer

from tsgb.cli.options import JsonOption, takes
from tsgb.errors import TSGBError
from tsgb.run_options import RunOptions

machines_app = typer.Typer(help="List and destroy rented machines.")


@machines_app.command("ls")
@takes("store", "service_url")
def machines_ls(options: RunOptions, as_json: JsonOption = False) -> None:
    """List all instances of the account: what each costs, and which lease covers it."""
    from tsgb.cli import machine_tables as tables
    from tsgb.cli.account import AccountContext

    account = AccountContext.read(options)
    with account.provider() as provider:
        inventory = account.inventory(provider)
    tables.say_list(inventory, as_json=as_json)


@machines_app.command("destroy")
@takes("store", "service_url")
def machines_destroy(
    options: RunOptions,
    ids: Annotated[
        list[int], typer.Argument(metavar="ID...", help="Ids as `tsgb machines ls` shows them.")
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Also destroy one that a lease covers: it saves first.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Destroy machines of this deployment, see that they are gone, and say what they cost."""
    import time
    from datetime import timedelta

    from tsgb.cli import machine_tables as tables
    from tsgb.cli.account import AccountContext, utc
    from tsgb.cloud.policy import MonitorPolicy
    from tsgb.cloud.terminate_by_hand import pick, terminate_by_hand

    account = AccountContext.read(options)
    settings = account.settings
    policy = MonitorPolicy.of(settings, settings)
    grace = policy.grace_seconds + settings.lease_poll_seconds
    with account.provider() as provider:
        picked = pick(
            account.inventory(provider),
            ids,
            force=force,
            deployment=settings.deployment,
            skew=account.skew,
        )
        items = terminate_by_hand(
            provider,
            account.runs,
            picked,
            now=utc,
            sleep=time.sleep,
            grace=timedelta(seconds=grace),
            skew=account.skew,
            note=lambda line: typer.echo(line, err=True),
        )
    tables.say_dismissed(items, utc(), as_json=as_json)
    left = [item for item in items if not item.gone]
    if left:
        raise TSGBError("; ".join(str(item) for item in left))


@takes("store", "service_url")
def reap(
    options: RunOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be destroyed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Destroy the machines of this deployment that no lease covers, as the reaper flow does.

    Exit code 1 if something is left to look after.
    """
    import time

    from tsgb.cli import machine_tables as tables
    from tsgb.cli.account import AccountContext, utc
    from tsgb.cloud import reaper

    account = AccountContext.read(options)
    with account.provider() as provider:
        found = reaper.reap(
            provider,
            account.runs,
            account.settings.deployment,
            now=utc,
            sleep=time.sleep,
            skew=account.skew,
            dry_run=dry_run,
        )
    tables.say_reaped(found, as_json=as_json)
    if found.left:
        first = found.left[0]
        more = f", and {len(found.left) - 1} more" if len(found.left) > 1 else ""
        raise TSGBError(f"something is left to look after: {first}{more}")
