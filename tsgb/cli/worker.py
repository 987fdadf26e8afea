"""`tsgb worker ...`: the commands of one attempt, which a flow starts, or a person by hand."""

from __future__ import annotations

from typing import Annotated

import typer

from tsgb.cli.options import (
    OwnEnvOption,
    TrustOption,
    parse_names,
    read_context,
    takes,
)
from tsgb.errors import UsageError
from tsgb.plugins import Trust
from tsgb.run_options import RunOptions

worker_app = typer.Typer(help="One attempt: the process that trains or evaluates.")

ResumePath = Annotated[
    list[str],
    typer.Option(
        "--resume-path",
        metavar="URL",
        help="URL or path of a run, or of a store with one run.",
    ),
]
EvalId = Annotated[str, typer.Option("--eval-id", metavar="ID", help="Names the evaluation.")]
PartOption = Annotated[
    str, typer.Option("--part", metavar="K/N", help="Part K of N of the work, K from 0.")
]


def _one(paths: list[str]) -> str:
    if len(paths) != 1:
        raise UsageError(f"--resume-path was given {len(paths)} times: this command takes one run")
    return paths[0]


def _part(text: str) -> tuple[int, int]:
    index, _, total = text.partition("/")
    if not (index.isdecimal() and total.isdecimal() and int(index) < int(total)):
        raise UsageError(f"--part {text!r} is not K/N with 0 <= K < N, as in 0/2")
    return int(index), int(total)


@worker_app.command("run")
def worker_run(
    resume_path: ResumePath,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Fencing token; without it the next free one.")
    ] = None,
    until_step: Annotated[
        int | None, typer.Option(min=0, help="Stop there; without it train to the end.")
    ] = None,
    env: OwnEnvOption = None,
    trust_config: TrustOption = False,
) -> None:
    """Resume a run from its newest checkpoint and train it."""
    path = _one(resume_path)
    from tsgb.worker.train import train

    context = read_context(Trust.of(env, trust_config=trust_config))
    typer.echo(train(context, path, attempt=attempt, until_step=until_step).url)


@worker_app.command("machine")
def worker_machine(
    resume_path: ResumePath,
    attempt: Annotated[int, typer.Option(min=1, help="Fencing token; the lease names it.")],
    arms: Annotated[
        str,
        typer.Option(
            metavar="A,B", help="Arms to train, between commas; with '' it does all but train."
        ),
    ],
    lease_poll_seconds: Annotated[
        float | None,
        typer.Option(min=0.01, help="Seconds between two reads of the lease; 30 by default."),
    ] = None,
) -> None:
    """Run as a rented machine: train arms of a run under its lease, then destroy the machine."""
    path, names = _one(resume_path), parse_names(arms or None, "--arms") or []
    from tsgb.config import Arm
    from tsgb.settings import child_environment, load_settings
    from tsgb.worker.context import MachineContext
    from tsgb.worker.machine import WorkerMachine

    try:
        trained = [Arm(name) for name in names]
    except ValueError as error:
        raise UsageError(f"--arms {arms!r}: {error}: choose of {', '.join(Arm)}") from None
    settings = load_settings()
    changed = {} if lease_poll_seconds is None else {"lease_poll_seconds": lease_poll_seconds}
    context = MachineContext(
        hub=settings,
        store=settings,
        worker=settings,
        instance=settings.model_copy(update=changed),
        cloud=settings,
        environment=child_environment(settings),
    )
    raise typer.Exit(int(WorkerMachine(context, path, attempt, trained).run()))


@worker_app.command("build")
def worker_build(
    resume_path: ResumePath,
    part: PartOption = "0/1",
    env: OwnEnvOption = None,
    trust_config: TrustOption = False,
) -> None:
    """Build the models that a run needs and that are not cached."""
    path, share = _one(resume_path), _part(part)
    from tsgb.worker.build import build

    build(read_context(Trust.of(env, trust_config=trust_config)), path, *share)


@worker_app.command("evaluate")
@takes("target_class", "judge_class", "judge", "guards", "adaptive", "max_requests", "max_cost")
def worker_evaluate(
    *,
    resume_path: ResumePath,
    eval_id: EvalId,
    part: PartOption = "0/1",
    endpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="JSON", help="Declaration of an endpoint; may be repeated."),
    ] = None,
    options: RunOptions,
    env: OwnEnvOption = None,
    trust_config: TrustOption = False,
) -> None:
    """Fill a share of an evaluation's cells."""
    path, share = _one(resume_path), _part(part)
    from tsgb.eval.additions import Additions
    from tsgb.targets.endpoint import endpoint_from_json
    from tsgb.worker.evaluate import evaluate

    evaluate(
        read_context(Trust.of(env, trust_config=trust_config)),
        path,
        eval_id,
        *share,
        added=Additions(
            target_class=options.target_class or (),
            judge_class=options.judge_class,
            judge=options.judge,
            guards=options.guards or (),
            endpoints=[endpoint_from_json(text) for text in endpoint or ()],
            adaptive=options.adaptive,
            max_requests=options.max_requests,
            max_cost=options.max_cost,
        ),
    )


@worker_app.command("report")
def worker_report(
    resume_path: ResumePath,
    eval_id: EvalId,
    env: OwnEnvOption = None,
    trust_config: TrustOption = False,
) -> None:
    """Merge the cells of one or several runs into a report, in the first one."""
    from tsgb.worker.report import report

    context = read_context(Trust.of(env, trust_config=trust_config))
    typer.echo(report(context, resume_path, eval_id))
