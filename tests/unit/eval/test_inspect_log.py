"""A target's log says what the items say; the real library reads it in the slow tests."""

import json
from pathlib import Path

import pytest

from tests.fakes.stored_evaluation import store_evaluation
from tsgb.eval.inspect_log import BARE, inspect_log
from tsgb.eval.records import ItemSource
from tsgb.eval.stored import find_evaluation


def test_samples_are_scripted_attacks_and_scores_are_what_got_through(tmp_path: Path) -> None:
    def broken(item):
        return item.model_copy(update={"violated": None, "error": "http_500"})

    lost = {"static-0", "wide-3"}
    summary = store_evaluation(
        tmp_path / "e",
        changed=lambda i: broken(i) if i.item_id in lost and i.target == "B_mid" else i,
    )
    stored = find_evaluation(str(tmp_path / "e"))
    log = inspect_log(summary, stored.items(), "B_mid")
    assert json.loads(json.dumps(log)) == log
    items = [i for i in stored.items() if i.source is ItemSource.SCRIPTED and i.target == "B_mid"]
    assert len(log["samples"]) == len(items) == log["results"]["total_samples"]
    assert len({s["id"] for s in log["samples"]}) == len(items)
    assert log["eval"]["dataset"]["sample_ids"] == [s["id"] for s in log["samples"]]
    failed = [sample for sample in log["samples"] if "error" in sample]
    assert {sample["id"].rpartition(".")[0] for sample in failed} == lost
    assert log["results"]["completed_samples"] == len(items) - len(failed)
    for sample, item in zip(log["samples"], items, strict=True):
        if item.violated is not None:
            assert sample["scores"][BARE] == {"value": int(item.violated)}
            through = item.violated and not item.blocked["selfplay"]
            assert sample["scores"]["selfplay"] == {"value": int(through)}
    asr = next(s for s in log["results"]["scores"] if s["name"] == "selfplay")["metrics"]["asr"]
    row = next(r for r in summary.results if (r.guard, r.target) == ("selfplay", "B_mid"))
    assert row.asr is not None
    assert asr["value"] == pytest.approx(row.asr.value)
