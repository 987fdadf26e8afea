"""A made-up evaluation as it lies in a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from tests.fakes import evaluation as fake
from tsgb.eval.records import Item, Summary
from tsgb.eval.report import render_report
from tsgb.eval.summarise import summarise

ARMS = {name: fake.ARMS[name] for name in ("none", "frozen", "selfplay")}
DRAWS = 300


def _as_made(item: Item) -> Item:
    return item


def store_evaluation(
    directory: Path,
    arms: Mapping[str, fake.Arm] = ARMS,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    *,
    eval_id: str = "eval-0001",
    changed: Callable[[Item], Item] = _as_made,
) -> Summary:
    """Write summary, items and page into `directory`; equal arguments give equal files."""
    summary, files = _made(tuple(arms.items()), tuple(seeds), eval_id, changed)
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    return summary


@cache
def _made(
    arms: tuple[tuple[str, fake.Arm], ...],
    seeds: tuple[int, ...],
    eval_id: str,
    changed: Callable[[Item], Item],
) -> tuple[Summary, Mapping[str, str]]:
    """The summary and the text of each file, computed once in a process."""
    items = fake.items(dict(arms), seeds, num_prompts=48, num_attacks=48)
    items = [changed(item) for item in items]
    setup = fake.setup(dict(arms), seeds).model_copy(update={"eval_id": eval_id})
    summary = summarise(items, setup, num_draws=DRAWS)
    lines = [item.model_dump_json(exclude_none=True) for item in items]
    return summary, {
        "summary.json": summary.model_dump_json(),
        "results.jsonl": "\n".join(lines) + "\n",
        "report.html": render_report(summary),
    }
