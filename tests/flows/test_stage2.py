"""One question is evaluated once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.artifacts import key_figures
from flows.stage2 import stage2
from tests.fakes.sentinels import sentinel
from tests.flows.conftest import Behave
from tests.flows.test_stage1 import TINY, train
from tsgb.errors import CheckpointError, InvalidResult

pytestmark = [pytest.mark.flows, pytest.mark.usefixtures("prefect_api")]


class Mine:
    def generate(self, prompt: str) -> str:
        return prompt


def test_a_question_is_evaluated_once(store: Path) -> None:
    trained = train("once", arms=["selfplay", "sft"]).result()
    payload: dict[str, Any] = {
        "run": "once",
        "checkpoint": trained["checkpoint"],
        "targets": None,
        "store": str(store),
    }
    first = stage2(**payload)
    directory = store / "once" / "reports" / first["eval_id"]
    request = json.loads((directory / "request.json").read_text())
    assert request["targets"] is None
    assert request["guards"] == trained["checkpoints"]
    assert Path(first["report"]).read_text() == "<p>fake</p>"
    (directory / "report.html").write_text("kept")

    again = stage2(**payload)
    assert again == first
    assert (directory / "report.html").read_text() == "kept", "no worker was started"

    figures = key_figures(first["summary"])
    assert {"guard", "target", "asr", "asr_no_guard", "fpr"} <= set(figures[0])
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["report-once"]))
        )
    assert first["report"] in artifacts[0].data


def test_a_summary_that_somebody_else_wrote_does_not_count(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that has the password of the store does not have the key that signs."""
    monkeypatch.setenv("TSGB_MANIFEST_KEY", sentinel("manifest"))
    trained = train("forged", arms=["selfplay", "sft"]).result()
    payload = {"run": "forged", "checkpoint": trained["checkpoint"], "store": str(store)}
    first = stage2(**payload)
    path = Path(first["summary_path"])
    honest = path.read_text()
    content = json.loads(honest)
    content["verdict"]["sentence"] = "SHOWN (written by the rented host)"
    path.write_text(json.dumps(content))
    assert stage2(**payload)["summary"] == first["summary"]
    assert path.read_text() == honest


def test_a_class_of_the_users_is_asked_anew_unless_it_says_what_it_is(store: Path) -> None:
    usual = {"evaluation": {"targets": ["T_s", "B_far"]}}
    assert train("own", overrides={**TINY, **usual}).is_completed()

    def evaluated(**own: Any) -> tuple[str, dict[str, Any]]:
        eval_id = stage2("own", **own)["eval_id"]
        request = store / "own" / "reports" / eval_id / "request.json"
        return eval_id, json.loads(request.read_text())

    judged, request = evaluated(judge_class="tsgb:SimpleJudge")
    assert request["judge_class"] == "tsgb:SimpleJudge"
    assert request["targets"] == ["B_far", "T_s"]
    assert evaluated(judge_class="tsgb:SimpleJudge")[0] == judged
    assert evaluated(judge_class="tsgb:SimpleJudge", fresh=True)[0] != judged
    asked, request = evaluated(target_class=[f"{__name__}:Mine"])
    assert request["target_class"] == [f"{__name__}:Mine"]
    assert request["targets"] == ["B_far", "Mine", "T_s"]
    assert evaluated(target_class=[f"{__name__}:Mine"])[0] != asked


def test_an_invalid_evaluation_fails_with_its_report_and_is_made_again(
    store: Path, behave: Behave
) -> None:
    assert train("broken").is_completed()
    behave({"broken": {"unanswered": True}})
    state = stage2("broken", return_state=True)
    assert state.is_failed()
    assert "not valid: " in str(state.message)
    with pytest.raises(InvalidResult, match=r"harmful prompts to B_mid\. Most common: HTTP 500"):
        state.result()
    [summary] = (store / "broken" / "reports").glob("*/summary.json")
    assert json.loads(summary.read_text())["invalid"]
    assert (summary.parent / "report.html").exists()
    assert list((summary.parent / "cells").iterdir()), "nothing is deleted"
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["report-broken"]))
        )
    assert "Not valid: " in artifacts[0].data

    behave({})
    mended = stage2("broken")
    assert mended["eval_id"] == summary.parent.name
    assert "invalid" not in json.loads(summary.read_text())


def test_runs_of_several_seeds_share_a_report(store: Path) -> None:
    for seed in (0, 1):
        assert train(f"pool-s{seed}", seed=seed).is_completed()
    pooled = stage2("pool-s0", more_runs=["pool-s1"])
    assert pooled["summary"]["run_ids"] == ["pool-s0", "pool-s1"]
    for run in ("pool-s0", "pool-s1"):
        assert (store / run / "reports" / pooled["eval_id"] / "cells").is_dir()


def test_an_unfinished_run_is_refused(store: Path, behave: Behave) -> None:
    behave({"half": {"crash": [1]}})
    assert train("half").is_failed()
    with pytest.raises(CheckpointError, match="no finished self-play guard"):
        stage2("half", store=str(store))
