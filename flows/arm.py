"""Training of one arm of a run on machines of its own; `flows.stage1` then finds it trained."""

# No postponed annotations: Prefect reads the flow's signature.

from typing import Any

from prefect import flow

from flows.artifacts import tag_run
from flows.cancellation import ends_when_cancelled
from flows.hooks import end_task_runs, release_machines, say_how_to_resume
from flows.parameters import takes
from flows.prepare import arm_configs, training_data_of, write_configs
from flows.training import train_segments
from flows.workers import Workers
from tsgb.checkpoint.urls import canonical_url
from tsgb.config import Arm
from tsgb.run_options import NOT_OF_A_RUN, RunOptions, read_options
from tsgb.settings import load_settings


@flow(
    name="tsgb-arm",
    flow_run_name="arm-{run}-{arm}",
    on_failure=[release_machines, say_how_to_resume],
    on_crashed=[release_machines, end_task_runs, say_how_to_resume],
    on_cancellation=[release_machines, end_task_runs, say_how_to_resume],
)
@ends_when_cancelled
@takes(name for name in RunOptions.model_fields if name not in NOT_OF_A_RUN)
def train_arm(arm: str, **options: Any) -> dict[str, Any]:
    """Train one arm to its last step, on machines that train nothing else.

    Beside the arm it takes the options of the whole run, with every name in them chosen already.

    Returns:
        Where its checkpoint is, by arm.
    """
    chosen, alone = read_options(**options), Arm(arm)
    settings = chosen.applied_to(load_settings())
    store = canonical_url(chosen.store or settings.default_store)
    workers = Workers(settings, store, str(chosen.run), chosen.env, alone)
    data = training_data_of(chosen)
    configs = {alone: arm_configs(chosen, data)[alone]}
    key = write_configs(workers, configs, data)
    tag_run(workers.run)
    notes = [f"stage 1: {workers.home}, on machines of its own, in {store}"]
    return train_segments(workers, configs, key, chosen.machine, notes)
