"""`tsgb manager ...`: runs of the flow on rented machines. Thin: the flow does it all."""

from __future__ import annotations

from typing import Annotated

import typer

from tsgb.cli.experiment import TRAINING, run
from tsgb.cli.options import JsonOption, takes
from tsgb.errors import UsageError
from tsgb.run_options import MachineKind, RunOptions

manager_app = typer.Typer(help="Train on rented machines, within a budget.")

RENTED = (*TRAINING, "budget", "max_price", "service_url")
"""Options of every command that trains on rented machines."""


@manager_app.command("run")
@takes(*RENTED, "seeds", "machines", "evaluate", machine=MachineKind.RENTED)
def manager_run(options: RunOptions, as_json: JsonOption = False) -> None:
    """Train on rented machines, then evaluate here; resumes with the same --run-id.

    Ctrl-C lets the machine save and ends it; what was trained is kept.
    """
    check(options, evaluates=True)
    run(options, as_json=as_json)


@manager_app.command("loop")
@takes(*RENTED, machine=MachineKind.RENTED)
def manager_loop(
    options: RunOptions,
    interval: Annotated[
        float, typer.Option("--interval", min=1, help="Seconds between two starts of the flow.")
    ] = 60.0,
) -> None:
    """Serve the deployment: start the run again until it is done, however its flow ended.

    Each start resumes --run-id; a run that is done ends at once. Needs PREFECT_API_URL.
    """
    if options.run is None:
        raise UsageError("--run-id is missing: a loop resumes one run, so name it")
    check(options)
    from tsgb.settings import is_home_known

    if not is_home_known():
        raise UsageError("Prefect needs a home directory: set HOME to one that you can write")
    from flows.serving import serve

    serve(interval, options.parameters())


def check(options: RunOptions, *, evaluates: bool = False) -> None:
    """Refuse what cannot work before Prefect starts.

    Args:
        options: Options of the run.
        evaluates: Whether this machine evaluates the guards after the training.

    Raises:
        TSGBError: See `flows.model_choice.choose_models`, `check_targets` and `training_data_of` of
            `flows.prepare`, and `flows.rented.preflight`.
    """
    from flows.model_choice import choose_models
    from flows.prepare import check_targets, training_data_of
    from flows.rented import preflight
    from tsgb.checkpoint.urls import canonical_url
    from tsgb.settings import load_settings

    settings = options.applied_to(load_settings())
    where = canonical_url(options.store or settings.default_store)
    check_targets(choose_models(options, settings, evaluates=evaluates))
    training_data_of(options)
    preflight(settings, where)
