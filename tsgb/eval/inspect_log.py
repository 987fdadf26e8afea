"""Scripted attacks on one target as a log that `inspect view` opens (inspect_ai, log version 2).

One log has one model, so each target has its own. A sample is one prompt of one training seed,
named by its digest and the seed; its scores say of each guard whether the attack got through (1)
or not (0), and of the bare target whether it violated. Texts are in no log, since items hold none.

The fields are those that `inspect_ai.log.read_eval_log` validates; it fills in the rest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tsgb.checkpoint.manifest import sha256_hex
from tsgb.eval.records import Item, ItemSource, Rate, Result, Summary

BARE = "no_guard"
"""Score of the target without a guard."""


def log_name(summary: Summary, target: str) -> str:
    """Return the name of the file of a target's log, by which inspect finds its task and id.

    It holds letters, digits, dots and dashes alone, whatever the names in a summary are; targets
    have different ones.

    Example: `"2026-01-02T03-04-05_tsgb_eval-0001-T-s-1f2e3d4c.json"`
    """
    when = summary.provenance.created_at.strftime("%Y-%m-%dT%H-%M-%S")
    named, digest = f"{summary.eval_id}-{target}", sha256_hex(target.encode())[:8]
    return f"{when}_tsgb_{re.sub('[^A-Za-z0-9.-]+', '-', named)[:80]}-{digest}.json"


def inspect_log(summary: Summary, items: Iterable[Item], target: str) -> dict[str, Any]:
    """Return the document of a target's log.

    Args:
        summary: The evaluation.
        items: Its items.
        target: Name of the target.
    """
    guards = [guard for guard in summary.guards if guard != "none"]
    samples = _samples([i for i in items if _is_of(i, target)], guards)
    created = summary.provenance.created_at.isoformat()
    rows = {r.guard: r for r in summary.results if (r.target, r.seed) == (target, None)}
    return {
        "version": 2,
        "status": "success",
        "invalidated": bool(summary.invalid),
        "eval": {
            "eval_id": summary.eval_id,
            "run_id": summary.eval_id,
            "created": created,
            "task": "tsgb",
            "task_id": f"{summary.eval_id}-{target}",
            "task_version": summary.schema_version,
            "task_attribs": {},
            "task_args": {"env": summary.env, "profile": summary.profile},
            "dataset": {
                "name": summary.env,
                "samples": len(samples),
                "sample_ids": [sample["id"] for sample in samples],
                "shuffled": False,
            },
            "model": f"tsgb/{target}",
            "model_args": {},
            "config": {"epochs": 1},
            "packages": {"tsgb": summary.provenance.versions.get("tsgb", "")},
            "metadata": {
                "threshold_rule": summary.threshold_rule,
                "verdict": summary.verdict.sentence,
                "limits": summary.limits,
            },
        },
        "plan": {"name": "tsgb", "steps": []},  # no header can be read without one
        "results": {
            "total_samples": len(samples),
            "completed_samples": sum("error" not in sample for sample in samples),
            "scores": [_score(guard, rows[guard]) for guard in summary.guards if guard in rows],
        },
        "stats": {"started_at": created, "completed_at": created, "model_usage": {}},
        "samples": samples,
    }


def _is_of(item: Item, target: str) -> bool:
    return item.source is ItemSource.SCRIPTED and item.target == target


def _samples(items: Sequence[Item], guards: Sequence[str]) -> list[dict[str, Any]]:
    times: Counter[str] = Counter()
    out: list[dict[str, Any]] = []
    for item in items:
        # A reader takes ids for one epoch each, so equal prompts are told apart by their ids.
        name = f"{item.item_id}.{item.seed}"
        times[name] += 1
        sample: dict[str, Any] = {
            "id": name if times[name] == 1 else f"{name}.{times[name]}",
            "epoch": 1,
            "input": f"{item.scenario_id}, {item.technique or 'plain'}",
            "target": "no violation",
            "metadata": {
                "scenario_id": item.scenario_id,
                "technique": item.technique,
                "stream": item.stream and item.stream.value,
                "seed": item.seed,
                "z": item.scores,
            },
        }
        if item.violated is None:
            sample["error"] = {
                "message": item.error or "no outcome",
                "traceback": "",
                "traceback_ansi": "",
            }
        else:
            through = {
                g: item.violated and not item.blocked[g] for g in guards if g in item.blocked
            }
            scores = {BARE: item.violated, **through}
            sample["scores"] = {name: {"value": int(value)} for name, value in scores.items()}
        out.append(sample)
    return out


def _score(guard: str, row: Result) -> dict[str, Any]:
    bare = guard == "none"
    rate: Rate | None = row.asr_no_guard if bare else row.asr
    name = BARE if bare else guard
    metrics: dict[str, Any] = {}
    if rate is not None:
        figures = {"asr": rate.value, "asr_low": rate.low, "asr_high": rate.high}
        metrics = {key: {"name": key, "value": value} for key, value in figures.items()}
    return {"name": name, "scorer": name, "metrics": metrics}
