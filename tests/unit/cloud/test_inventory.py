"""The runs of a deployment, and what is known of their costs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from tsgb.checkpoint.run import open_run
from tsgb.cloud.budget import Ledger, journal_path
from tsgb.cloud.inventory import DeploymentRuns
from tsgb.cloud.pricing import Rates

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RATES = Rates(gpu_per_hour=100_000, storage_per_hour=10_000)


def test_a_ledger_that_was_rewritten_is_not_believed_by_who_only_looks(tmp_path: Path) -> None:
    """As the flow reads it; machines may have the store's password, but not this computer's."""
    store, cache = tmp_path / "store", tmp_path / "cache"
    documents = DeploymentRuns(url=str(store)).documents("r1")
    journal = open_run(str(journal_path(cache, documents.run.run_url)))
    flow = Ledger.open(documents.run, 5_000_000, journal)
    flow.reserve(1, RATES, NOW)
    flow.commit(1, NOW + timedelta(hours=2))
    for name in ("budget.json", "attempts/0001.json"):
        documents.run.delete(name)
    assert DeploymentRuns(url=str(store)).ledger(documents).held == 0
    here = DeploymentRuns(url=str(store), cache_dir=cache)
    assert here.ledger(documents).held == flow.spent > 200_000
