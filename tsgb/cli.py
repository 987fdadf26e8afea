"""The command line: arguments in, one document or a few lines out, errors as one line.

It knows settings and flows. Heavy modules are imported by the command that needs them, so that
`--help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tsgb.errors import ExitCode, TSGBError, UsageError

app = typer.Typer(
    name="tsgb",
    no_args_is_help=True,
    add_completion=False,
    help="Train a small guard by self-play; measure how far it protects big black boxes.",
)
worker_app = typer.Typer(
    no_args_is_help=True, help="One attempt: the process that trains or evaluates."
)
app.add_typer(worker_app, name="worker")

ResumePath = Annotated[
    list[str], typer.Option("--resume-path", help="URL or path of a run (or a store with one run).")
]
EvalId = Annotated[str, typer.Option("--eval-id", help="Names the evaluation.")]
PartOption = Annotated[str, typer.Option("--part", help="K/N: which share of the work, from 0.")]


def _places() -> object:
    from tsgb.settings import load_settings
    from tsgb.worker import Places

    settings = load_settings()
    return Places(
        cache_dir=settings.cache_dir, user=settings.webdav_user, password=settings.webdav_pass
    )


def _part(text: str) -> tuple[int, int]:
    index, _, total = text.partition("/")
    if not (index.isdigit() and total.isdigit() and int(index) < int(total)):
        raise UsageError(f"--part {text!r} is not K/N with 0 <= K < N, as in 0/2")
    return int(index), int(total)


@worker_app.command("run")
def worker_run(
    resume_path: ResumePath,
    attempt: Annotated[int | None, typer.Option(min=1, help="Fencing token; next free one.")] = None,
    until_step: Annotated[int | None, typer.Option(min=0, help="Stop there; default: all.")] = None,
) -> None:
    """Resume a run from its newest checkpoint and train it."""
    from tsgb import worker

    ref = worker.train(_places(), resume_path[0], attempt=attempt, until_step=until_step)  # type: ignore[arg-type]
    typer.echo(ref.url)


@worker_app.command("build")
def worker_build(resume_path: ResumePath, part: PartOption = "0/1") -> None:
    """Build the models that a run needs and that are not cached."""
    from tsgb import worker

    worker.build(_places(), resume_path[0], *_part(part))  # type: ignore[arg-type]


@worker_app.command("evaluate")
def worker_evaluate(resume_path: ResumePath, eval_id: EvalId, part: PartOption = "0/1") -> None:
    """Fill a share of an evaluation's cells."""
    from tsgb import worker

    worker.evaluate(_places(), resume_path[0], eval_id, *_part(part))  # type: ignore[arg-type]


@worker_app.command("report")
def worker_report(resume_path: ResumePath, eval_id: EvalId) -> None:
    """Merge the cells of one or several runs into a report."""
    from tsgb import worker

    typer.echo(worker.report(_places(), resume_path, eval_id))  # type: ignore[arg-type]


def main() -> None:
    """Entry point: errors of ours become one line and their exit code."""
    try:
        app()
    except TSGBError as error:
        typer.echo(f"tsgb: {error}", err=True)
        sys.exit(int(error.exit_code))
    except KeyboardInterrupt:
        sys.exit(int(ExitCode.INTERRUPTED))


if __name__ == "__main__":
    main()
