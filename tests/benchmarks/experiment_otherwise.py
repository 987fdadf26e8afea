"""The work of `tsgb experiment --profile smoke`, started in another way than by that command.

    python tests/benchmarks/experiment_otherwise.py without-prefect RUN
    python tests/benchmarks/experiment_otherwise.py on-server RUN    # with PREFECT_API_URL set

Without Prefect it makes the calls that the flows and their tasks wrap, in their order: choose the
models, write configurations, train the segments, write the request, evaluate, report. The worker
processes and all that they read and write are the same; so what `test_experiment_cost.py` finds as
the difference is what Prefect costs. On a server, both flows are called as they are.
"""

from __future__ import annotations

import sys

from flows.machines import LocalMachine
from flows.model_choice import choose_models, stored_models
from flows.prepare import (
    additions_of,
    arm_configs,
    check_targets,
    evaluation_id,
    guards_of,
    training_data_of,
    valid_summary,
    with_checked_names,
    write_configs,
    write_request,
)
from flows.progress import watching
from flows.workers import Workers
from tsgb.checkpoint.urls import canonical_url
from tsgb.config import Arm
from tsgb.run_options import RunOptions
from tsgb.settings import load_settings


def without_prefect(options: RunOptions) -> None:
    settings = load_settings()
    settings.make_cache_dir()
    run = str(options.run)
    workers = Workers(settings, canonical_url(settings.default_store), run)
    options = choose_models(options, settings, stored_models(workers), evaluates=True)
    options = with_checked_names(options, settings)
    check_targets(options)
    data = training_data_of(options)
    configs = arm_configs(options, data)
    write_configs(workers, configs, data)
    with watching():
        machine = LocalMachine(workers, configs)
        for segment in range(next(iter(configs.values())).segments):
            machine.attempt(segment)
        guards, config = guards_of(workers, None), workers.config()
        targets, added = additions_of(options, config.model.black_boxes)
        number = evaluation_id({run: guards}, {run: config}, targets)
        write_request(workers, number, guards, targets, added)
        workers.evaluate(Arm.SELFPLAY, number, added)
        workers.report(Arm.SELFPLAY, number, [])
    assert valid_summary(workers.open(), f"reports/{number}") is not None
    assert "prefect" not in sys.modules


def on_server(options: RunOptions) -> None:
    load_settings().make_cache_dir()
    with watching():
        from flows.stage1 import stage1
        from flows.stage2 import stage2

        stage1(**options.parameters())
        stage2(run=str(options.run))


if __name__ == "__main__":
    {"without-prefect": without_prefect, "on-server": on_server}[sys.argv[1]](
        RunOptions(profile="smoke", run=sys.argv[2])
    )
