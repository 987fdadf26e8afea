"""A made-up evaluation as it lies in a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.fakes import evaluation as fake
from tsgb.eval.records import Item, Summary
from tsgb.eval.report import render_report
from tsgb.eval.summarise import summarise

ARMS = {name: fake.ARMS[name] for name in ("none", "frozen", "selfplay")}
DRAWS = 300


def store_evaluation(
    directory: Path,
    arms: Mapping[str, fake.Arm] = ARMS,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    *,
    eval_id: str = "eval-0001",
    changed: Callable[[Item], Item] = lambda item: item,
) -> Summary:
    """Write summary, items and page into `directory`; equal arguments give equal files."""
    items = fake.items(dict(arms), seeds, num_prompts=48, num_attacks=48)
    items = [changed(item) for item in items]
    setup = fake.setup(dict(arms), seeds).model_copy(update={"eval_id": eval_id})
    summary = summarise(items, setup, num_draws=DRAWS)
    directory.mkdir(parents=True)
    (directory / "summary.json").write_text(summary.model_dump_json())
    lines = [item.model_dump_json(exclude_none=True) for item in items]
    (directory / "results.jsonl").write_text("\n".join(lines) + "\n")
    (directory / "report.html").write_text(render_report(summary))
    return summary
