"""A worker that speaks the contract of `tsgb.worker` and computes nothing.

    python tests/fakes/worker.py run --resume-path URL --attempt 1 --until-step 10

`TSGB_FAKE` in its environment is a JSON object, from a run id to what its attempts do:
`{"r1": {"vanish": [1, 2], "crash": [3]}, "r1.sft": {"hang": [1]}}`; any other attempt finishes.
A vanishing one publishes a checkpoint half way and then kills itself without a trace.
`"unanswered": true` makes a report in which a black box answered nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from tsgb.checkpoint.run import RunStore, open_run
from tsgb.checkpoint.store import CheckpointStore
from tsgb.config import parse_config
from tsgb.errors import ExitCode
from tsgb.settings import load_settings

STOP = threading.Event()


def plan_of(run_id: str) -> dict[str, Any]:
    return json.loads(os.environ.get("TSGB_FAKE", "{}")).get(run_id, {})


def train(run: RunStore, attempt: int | None, until: int | None) -> int:
    config = parse_config(run.read_text("config.json"), run.run_url)
    store = CheckpointStore(run)
    attempt = store.claim(attempt)
    until = config.total_steps if until is None else until
    newest = store.newest()
    step = 0 if newest is None else newest.step
    plan = plan_of(run.run_id)

    def save() -> dict[str, Any]:
        files = {"guard.safetensors": f"weights {step}".encode()}
        return asdict(store.publish(step, step * 10, files, config.fingerprint))

    def leave(outcome: str, message: str, checkpoint: dict[str, Any] | None) -> None:
        record = {"outcome": outcome, "message": message, "step": step, "checkpoint": checkpoint}
        run.write_json(f"exits/{attempt:04d}.json", record)

    if newest is None:
        save()  # as the real one: a save that dies later then leaves something to go on from
    while step < until:
        if STOP.is_set():
            leave("interrupted", "SIGTERM", save())
            return 130
        step += 1
        heartbeat = {
            "attempt": attempt,
            "pid": os.getpid(),
            "step": step,
            "total_steps": config.total_steps,
            "episode": step * 10,
            "phase": "guard",
            "round": 0,
            "metrics": {},
            "updated_at": datetime.now(UTC).isoformat(),
        }
        run.write_json(f"heartbeats/{attempt:04d}.json", heartbeat)
        time.sleep(float(plan.get("step_seconds", 0)))
        if attempt in plan.get("crash", []):
            leave("crash", "ValueError: the fake crashes", None)
            return 1
        if attempt in plan.get("vanish", []):
            save()
            os.kill(os.getpid(), signal.SIGKILL)
        while attempt in plan.get("hang", []):
            time.sleep(0.05)  # deaf to SIGTERM
    leave("done", "", save())
    return 0


def evaluate(run: RunStore, eval_id: str, part: str) -> int:
    index, num = (int(x) for x in part.split("/"))
    request = run.read_json(f"reports/{eval_id}/request.json")
    targets = request["targets"] or ["B0"]
    cells = [(g, t) for g in request["guards"] for t in targets][index::num]
    for done, (guard, target) in enumerate(cells, 1):
        name = f"reports/{eval_id}/cells/{guard}-{target}.json"
        time.sleep(float(plan_of(run.run_id).get("cell_seconds", 0)))
        try:
            run.read_json(name)
        except FileNotFoundError:
            run.write_json(name, {"guard": guard, "target": target})
        progress = {"done": done, "total": len(cells), "label": guard, "updated_at": ""}
        run.write_json(f"reports/{eval_id}/progress-{index}.json", progress)
    return 0


def report(runs: list[RunStore], eval_id: str) -> int:
    """A made-up summary in the published format; it insists on the cells of every run."""
    from tests.fakes import evaluation
    from tsgb.eval.summarise import summarise

    first = runs[0]
    for run in runs:
        assert run.list(f"reports/{eval_id}/cells")
    setup = evaluation.setup(seeds=[0]).model_copy(
        update={"eval_id": eval_id, "run_ids": [run.run_id for run in runs]}
    )
    items = evaluation.items(seeds=[0], num_prompts=24, num_attacks=24)
    if plan_of(first.run_id).get("unanswered"):
        error = {"violated": None, "error": "HTTP 500"}
        items = [i.model_copy(update=error) if i.target == "B_mid" else i for i in items]
    summary = summarise(items, setup, num_draws=50)
    first.write_text(f"reports/{eval_id}/report.html", "<p>fake</p>")
    first.write_signed(f"reports/{eval_id}/summary.json", summary.model_dump_json().encode())
    return ExitCode.INVALID if summary.invalid else ExitCode.OK


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["build", "run", "evaluate", "report"])
    parser.add_argument("--resume-path", action="append", required=True)
    parser.add_argument("--attempt", type=int)
    parser.add_argument("--until-step", type=int)
    parser.add_argument("--eval-id")
    parser.add_argument("--part")
    parser.add_argument("--env")
    parser.add_argument("--trust-config", action="store_true")
    parser.add_argument("--target-class", action="append")
    parser.add_argument("--judge-class")
    options = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: STOP.set())
    settings = load_settings()
    access = settings.webdav_user, settings.webdav_pass
    key = settings.manifest_key
    runs = [open_run(url, *access, manifest_key=key) for url in options.resume_path]
    if options.verb == "build":
        return 0
    if options.verb == "run":
        return train(runs[0], options.attempt, options.until_step)
    if options.verb == "evaluate":
        return evaluate(runs[0], options.eval_id, options.part)
    return report(runs, options.eval_id)


if __name__ == "__main__":
    sys.exit(main())
