"""`tsgb doctor`: check whether a run on rented machines would work from here."""

from __future__ import annotations

import typer

from tsgb.cli.options import JsonOption, takes
from tsgb.run_options import RunOptions


@takes("store", "service_url")
def doctor(options: RunOptions, as_json: JsonOption = False) -> None:
    """Check key, credit, store, disk, clock, Prefect and image; exit code 1 if one is not well.

    It reads, and writes and deletes one small file in the store; it costs nothing.
    """
    from tsgb.cli.account import AccountContext
    from tsgb.cli.checks import all_checks
    from tsgb.cli.output import console, print_json
    from tsgb.errors import ExitCode

    checks = all_checks(AccountContext.read(options))
    if as_json:
        print_json(
            {
                "ok": all(check.ok is not False for check in checks),
                "checks": [
                    {
                        "name": check.name,
                        "ok": check.ok,
                        "found": check.found,
                        "way_out": check.way_out,
                    }
                    for check in checks
                ],
            }
        )
    else:
        out = console()
        for check in checks:
            word = {True: "ok", False: "NOT OK", None: "-"}[check.ok]
            way_out = f": {check.way_out}" if check.way_out else ""
            out.print(
                f"{word:>6}  {check.name:<8} {check.found}{way_out}", markup=False, soft_wrap=True
            )
    if any(check.ok is False for check in checks):
        raise typer.Exit(ExitCode.FAILURE)
