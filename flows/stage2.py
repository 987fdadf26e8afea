"""Stage 2: how far the guards of a run protect the black boxes; evaluated once for each question.

Wiring only. The same guards, configuration and targets give the same evaluation id, and a report
that is there already is not made again.
"""

# No postponed annotations: see `flows.stage1`.

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from prefect import flow
from prefect.runtime import deployment, flow_run

from flows import tasks
from flows.artifacts import show_report, tag_run
from flows.cancellation import ends_when_cancelled
from flows.hooks import end_task_runs, say_how_to_resume
from flows.interrupts import check_interrupt, pause
from flows.parameters import takes
from flows.prepare import (
    additions_of,
    evaluation_id,
    fought_guards,
    guards_of,
    labels_of,
    valid_summary,
    with_checked_names,
    write_request,
)
from flows.progress import listener, listening
from flows.server_settings import settings_of_flow
from flows.task_runners import LOCAL, cluster_of, run_all
from flows.workers import Workers
from tsgb.checkpoint.urls import canonical_url, place
from tsgb.errors import InvalidResult
from tsgb.eval.additions import named_targets
from tsgb.eval.ration import share_of_run
from tsgb.eval.responses import DIRECTORY
from tsgb.eval.unfinished import FRESH, UnfinishedEvaluation
from tsgb.models.file_lock import locked
from tsgb.models.hash_cache import HashCache
from tsgb.run_options import RunId, Text, read_options
from tsgb.settings import Settings, endpoint_key
from tsgb.targets.pretrained import file_hashes

_WAIT_SECONDS = 2.0


def _flow_run_name() -> str:
    return f"stage2-{flow_run.parameters['run']}"


@flow(
    name="tsgb",
    flow_run_name=_flow_run_name,
    on_failure=[say_how_to_resume],
    on_crashed=[end_task_runs, say_how_to_resume],
    on_cancellation=[end_task_runs, say_how_to_resume],
)
@ends_when_cancelled
@takes(
    [
        *("targets", "targets_file", "adaptive", "max_requests", "max_cost"),
        *("target_class", "judge_class", "judge", "human_labels", "guards", "fresh", "store"),
    ]
)
def stage2(
    run: RunId,
    checkpoint: Text | None = None,
    more_runs: list[RunId] | None = None,
    *,
    env: Text | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate the guards of a run and report.

    Args:
        run: The name of the run whose guards are evaluated, as in first-try.
        checkpoint: The URL of a checkpoint of its self-play guard. Without it, the newest counts.
        more_runs: Further runs of the same configuration, one a seed, pooled into one report.
        env: The world as module:attribute if it is code of yours, imported only if it is named.
        **options: Options of a run, as below.

    Raises:
        InvalidResult: Too many items have no outcome. The report with bounds is there, and the same
            flow asks only what failed or was not asked.

    Returns:
        `eval_id`, `report` and `summary_path` (paths, or URLs in a remote store), and `summary`.
    """
    settings = settings_of_flow()
    tag_run(run)
    chosen = with_checked_names(read_options(**options), settings)
    labels = labels_of(chosen)
    where = canonical_url(chosen.store or settings.default_store)
    runs = {name: Workers(settings, where, name, env) for name in [run, *(more_runs or [])]}
    guards = {
        name: guards_of(workers, checkpoint if name == run else None)
        for name, workers in runs.items()
    }
    configs = {name: workers.config() for name, workers in runs.items()}
    targets, added = additions_of(chosen, configs[run].model.black_boxes)
    targets = named_targets(targets, configs[run])
    fought = fought_guards(guards[run], chosen)
    share = share_of_run(configs[run], added.adaptive, fought, len(runs))
    added = replace(added, guards=chosen.guards or (), adaptive=share)
    added.check_endpoints(endpoint_key)
    models = HashCache(settings.cache_dir / "models")
    hashes = file_hashes(added.black_boxes, models.sha256_of)
    unfinished = UnfinishedEvaluation(
        settings.cache_dir / DIRECTORY,
        {"evaluation": evaluation_id(guards, configs, targets, hashes)},
        added.identities(fresh=chosen.fresh),
    )
    identities = unfinished.join()
    eval_id = evaluation_id(guards, configs, targets, {**identities, **hashes})
    directory = f"reports/{eval_id}"
    home = runs[run].open()
    summary = valid_summary(home, directory)
    if labels is not None and summary is not None and not labels.are_in(summary.get("judge")):
        summary = None  # its cells are there: they are merged again, and nothing is asked
    if summary is None:
        cluster = None if added.binds_to_machine else cluster_of(settings, where)
        if added.binds_to_machine and settings.task_runner != LOCAL:
            listener().note("this machine evaluates: what you add to a world stays on it")
        with listening(tasks.PrefectListener(listener())), _alone(settings):
            for name, workers in runs.items():
                arms = ", ".join(guards[name])
                listener().note(f"stage 2: run {name}, {arms}, evaluation {eval_id}")
                fresh = FRESH in identities
                write_request(
                    workers, eval_id, guards[name], targets, added, fresh=fresh, labels=labels
                )
                if cluster is None:
                    tasks.resilient(tasks.evaluate, settings)(name, where, eval_id, env, added)
            if cluster is not None:
                num = len(targets or runs[run].world(configs[run]).targets())
                question = {"store": where, "eval_id": eval_id, "env": env, "added": added}
                run_all(
                    cluster,
                    tasks.resilient(tasks.evaluate_part, settings),
                    [
                        {**question, "run": name, "part": part, "parts": num}
                        for name in runs
                        for part in range(num)
                    ],
                )
            summary = tasks.resilient(tasks.report, settings)(
                run, where, eval_id, more_runs or [], env
            )
    report = place(f"{home.run_url}/{directory}/report.html")
    obstacle = show_report(run, report, summary)
    if obstacle is not None:
        raise InvalidResult(obstacle)
    unfinished.finish()
    return {
        "eval_id": eval_id,
        "report": report,
        "summary_path": place(f"{home.run_url}/{directory}/summary.json"),
        "summary": summary,
    }


@contextmanager
def _alone(settings: Settings) -> Generator[None]:
    """Let one deployed evaluation at a time use this machine; the others wait, each in its flow.

    A concurrency limit of the deployment would be a lease in the server's memory, and a restart of
    the server would end an evaluation whose tasks go on or have completed.
    """
    if deployment.id is None:
        yield
        return
    told: list[str] = []

    def wait() -> None:
        if not told:
            told.append("another evaluation uses this machine: this one waits for its end")
            listener().note(told[0])
        check_interrupt()
        pause(_WAIT_SECONDS)

    with locked(settings.cache_dir / "stage2.lock", wait):
        yield
