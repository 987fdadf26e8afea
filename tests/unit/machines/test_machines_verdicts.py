"""How the end of an attempt is judged, and how often another one may follow."""

from __future__ import annotations

import pytest

from tsgb.machines import Outcome, verdict


@pytest.mark.parametrize(
    ("exit_code", "said", "outcome"),
    [
        pytest.param(0, "done", Outcome.DONE, id="done"),
        pytest.param(-9, "done", Outcome.DONE, id="killed-after-it-was-done"),
        pytest.param(0, None, Outcome.DONE, id="exit-0-of-a-part-that-leaves-no-record"),
        pytest.param(1, "crash", Outcome.FAILED, id="crash"),
        pytest.param(2, "config", Outcome.FAILED, id="config"),
        pytest.param(5, "lease_lost", Outcome.FAILED, id="lease-lost"),
        pytest.param(6, "disk_full", Outcome.FAILED, id="disk-full"),
        pytest.param(7, "store_unreachable", Outcome.PREEMPTED, id="the-store-came-back"),
        pytest.param(7, None, Outcome.PREEMPTED, id="the-store-is-still-away"),
        pytest.param(130, "interrupted", Outcome.PREEMPTED, id="signal-that-was-not-ours"),
        pytest.param(-9, None, Outcome.PREEMPTED, id="sigkill"),
        pytest.param(-15, None, Outcome.PREEMPTED, id="sigterm-before-it-listened"),
        pytest.param(137, None, Outcome.PREEMPTED, id="sigkill-in-a-container"),
        pytest.param(130, None, Outcome.PREEMPTED, id="interrupted-before-it-could-save"),
        pytest.param(None, None, Outcome.PREEMPTED, id="machine-gone"),
        pytest.param(-11, None, Outcome.FAILED, id="segmentation-fault"),
        pytest.param(134, None, Outcome.FAILED, id="abort-in-a-container"),
        pytest.param(1, None, Outcome.FAILED, id="traceback-before-the-run-was-claimed"),
        pytest.param(2, None, Outcome.FAILED, id="usage"),
    ],
)
def test_verdict(exit_code: int | None, said: str | None, outcome: Outcome) -> None:
    assert verdict(exit_code, None if said is None else {"outcome": said}) is outcome
