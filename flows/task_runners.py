"""Where the parts of an evaluation run: on this machine, or as tasks in a Dask or Ray cluster.

Prefect's task runners for clusters come with extras, `tsgb[dask]` and `tsgb[ray]`. A cluster of
more than one machine needs on each what its tasks need: this package, the settings (or a Prefect
server that holds them), and a store and a Prefect server that it reaches.
"""

# No postponed annotations: see `flows.stage1`.

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from prefect import Task
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import TaskRunner

from flows.interrupts import check_interrupt
from flows.progress import listener
from tsgb.checkpoint.urls import local_path
from tsgb.cloud.provider import is_loopback
from tsgb.errors import UsageError
from tsgb.settings import Settings

LOCAL = "local"
"""Value of the setting with which this machine does it all."""
_OPTION = "TSGB_TASK_RUNNER"
_WAIT_SECONDS = 2.0


def cluster_of(settings: Settings, store: str) -> TaskRunner[Any] | None:
    """Return the task runner of the settings, not started; None where this machine does it all.

    Args:
        settings: Say which it is, and how many processes a cluster of this machine has.
        store: URL of the store, which a cluster elsewhere must reach.

    Raises:
        UsageError: Its package is not installed, or it cannot reach this machine's store or server.
    """
    kind, _, address = settings.task_runner.partition(":")
    if kind == LOCAL:
        return None
    if address and not _is_here(address):
        _check_reach(settings.task_runner, store)
    try:
        runners = import_module(f"prefect_{kind}.task_runners")
    except ImportError as error:
        raise UsageError(
            f"{_OPTION} {settings.task_runner}: {error.name} is not installed: "
            f"pip install 'tsgb[{kind}]' here and on the machines of the cluster"
        ) from None
    num = settings.max_parallel
    shares = settings.shared_by(num)
    if kind == "dask":
        own = {
            "n_workers": num,
            "threads_per_worker": 1,
            "dashboard_address": None,  # it would listen on all addresses
            "worker_dashboard_address": None,
            "env": shares,
        }
        where = {"address": address} if address else {"cluster_kwargs": own}
        return runners.DaskTaskRunner(**where)
    own = {"num_cpus": num, "include_dashboard": False, "runtime_env": {"env_vars": shares}}
    return runners.RayTaskRunner(**({"address": address} if address else {"init_kwargs": own}))


def _is_here(address: str) -> bool:
    """Whether the host of an address, `tcp://10.0.0.5:8786` or `10.0.0.5:6379`, is this machine."""
    return address == "auto" or is_loopback(address if "//" in address else f"//{address}")


def _check_reach(runner: str, store: str) -> None:
    if _is_here(str(PREFECT_API_URL.value() or "")):
        raise UsageError(
            f"{_OPTION} {runner}: its machines cannot reach the Prefect server of this one: start "
            "one that they reach and set PREFECT_API_URL, or leave the address away"
        )
    if local_path(store) is None and _is_here(store):
        raise UsageError(
            f"{_OPTION} {runner}: its machines cannot reach the store {store}: name one that they "
            "reach, or leave the address away"
        )


def run_all(
    runner: TaskRunner[Any], task: Task[..., Any], parameters: Sequence[dict[str, Any]]
) -> None:
    """Run a task once for each set of parameters in a cluster, and wait for all of them.

    A signal ends the wait, and so does the first part that fails; the others find by themselves
    that their flow run has ended.

    Raises:
        Exception: The error of a part.
    """
    with runner:
        futures: list[PrefectFuture[Any]] = [runner.submit(task, one) for one in parameters]
        listener().note(f"{len(futures)} parts were handed to the cluster ({runner.name})")
        for done, future in enumerate(futures, 1):
            _wait_for(future)
            listener().note(f"part {done} of {len(futures)} is done")


def _wait_for(future: PrefectFuture[Any]) -> None:
    while True:
        check_interrupt()
        try:
            future.result(timeout=_WAIT_SECONDS)
        except TimeoutError:
            if future.state.is_final():  # it was the task's own error
                raise
        else:
            return
