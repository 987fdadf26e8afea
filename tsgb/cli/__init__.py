"""Command line: each command prints one document or a few lines, and an error in one line.

This is the only part of `tsgb` that reads settings or starts flows. A command imports what it needs
when it runs, so that `--help` answers at once: only typer, the errors and the options are imported
here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from tsgb.cli import (
    checkpoint,
    data,
    deploy,
    doctor,
    eval_local,
    experiment,
    export_guard,
    machines,
    manager,
    models,
    plan,
    recalibrate,
    report,
    score,
    serve,
    train_local,
    worker,
)
from tsgb.data.characters import visible
from tsgb.errors import ExitCode, TSGBError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug shows its plain traceback
    help="Train a small guard by self-play; measure how far it protects big black boxes.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong input, 3 too many errors to trust a result, "
    "5 another process took the run over, 6 no space left (what was saved is kept), "
    "7 the store cannot be reached, 8 budget or credit used up, 9 no machine on these terms, "
    "100 a gate failed, 130 interrupted (the same command goes on).",
)
app.command()(experiment.experiment)
app.command()(train_local.train_local)
app.command()(eval_local.eval_local)
app.command()(export_guard.export_guard)
app.command()(score.score)
app.command()(recalibrate.recalibrate)
app.command()(serve.serve)
app.command()(report.report)
app.command()(report.compare)
app.command()(plan.plan)
app.command()(deploy.deploy)
app.command()(machines.reap)
app.command()(doctor.doctor)
app.add_typer(machines.machines_app, name="machines")
app.add_typer(worker.worker_app, name="worker")
app.add_typer(manager.manager_app, name="manager")
app.add_typer(checkpoint.checkpoint_app, name="checkpoint")
app.add_typer(data.data_app, name="data")
app.add_typer(models.models_app, name="models")


def main() -> None:
    """Run the command line: expected errors become one line on stderr and their exit code."""
    try:
        # So that `--env mine:World` works in the console script as it does under `python -m`.
        sys.path.append(os.getcwd())  # noqa: PTH109 - a string is what goes there
    except FileNotFoundError:
        sys.exit(_fail("the working directory was deleted: change to another one", ExitCode.USAGE))
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    sys.exit(_run())


def _run() -> int:
    try:
        code: object = app(prog_name="tsgb", standalone_mode=False)
    except TSGBError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        return _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        code = ExitCode.INTERRUPTED
    except Exception:
        raise  # a bug shows its plain traceback
    except BaseException as error:  # noqa: BLE001 - SystemExit of a user's code is not ours
        if isinstance(error.__context__, BrokenPipeError):
            return ExitCode.FAILURE  # as in `tsgb plan | head -1`
        return _fail(f"code that this command loaded ended it by {type(error).__name__}", 1)
    if code == ExitCode.INTERRUPTED:
        # Ctrl-C before a command took the signal over: nothing was under way.
        return _fail("interrupted; the same command goes on from what is saved", 130)
    return code if isinstance(code, int) else 0


def _usage(error: typer.TyperException) -> int:
    """Print an error of the parser, with the value and the way out."""
    context = getattr(error, "ctx", None)
    command = "tsgb" if context is None else context.command_path
    given = _given(getattr(getattr(error, "param", None), "opts", ()))
    value = "" if given is None else f" (got {given!r})"
    return _fail(
        f"{error.format_message().rstrip('.')}{value}: see `{command} --help`", error.exit_code
    )


def _given(names: Sequence[str]) -> str | None:
    """Return the value of an option on the command line, which the parser's messages lack."""
    for index, word in enumerate(sys.argv):
        name, equals, value = word.partition("=")
        if name in names and name.startswith("-"):  # an argument may be called as its command is
            return value if equals else next(iter(sys.argv[index + 1 : index + 2]), None)
    return None


def _fail(message: str, code: int) -> int:
    """Print one line on stderr, whatever the message holds, and return the exit code."""
    typer.echo(f"tsgb: {visible(' '.join(message.split()))}", err=True)
    return int(code)
