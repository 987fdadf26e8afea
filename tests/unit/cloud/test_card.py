"""The probe of a card as a control plane reads it: bounded, and compared with what was offered."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.cloud.card import CardProbe, objection

FOUND: dict[str, Any] = {
    "gpu_name": "NVIDIA GeForce RTX 4090",
    "driver": "580.65.06",
    "cuda": "13.0",
    "torch_cuda": "13.0",
    "memory_gb": 25.3,
    "free_gb": 24.9,
    "seconds": 2.1,
    "tflops": 160.5,
}


def read(**changes: Any) -> CardProbe | None:
    return CardProbe.read({"probe": FOUND | changes})


def test_what_is_read_is_what_was_told() -> None:
    probe = read()
    assert probe is not None
    assert probe.model_dump() == FOUND
    assert objection(probe, gpu_name="RTX 4090", card_gb=24) == ""


@pytest.mark.parametrize(
    "changes",
    [
        *({name: None} for name in FOUND if name != "driver"),
        *({name: value} for name in ("memory_gb", "tflops") for value in (math.nan, math.inf)),
        {"seconds": -1},
        {"tflops": 1e9},
        {"memory_gb": "24"},
        {"memory_gb": True},
        {"gpu_name": ["x"]},
        {"gpu_name": ""},
    ],
    ids=str,
)
def test_what_is_absurd_is_nothing(changes: dict[str, Any]) -> None:
    assert read(**changes) is None
    assert "no probe" in objection(read(**changes), gpu_name="RTX 4090", card_gb=8)


@pytest.mark.parametrize("told", [None, [], "x", 7, {}])
def test_nothing_is_nothing(told: object) -> None:
    assert CardProbe.read({"probe": told}) is None
    assert CardProbe.read({}) is None


@given(st.text())
def test_a_name_is_short_and_cannot_steer_a_terminal(text: str) -> None:
    probe = read(gpu_name=text, driver=text)
    if probe is not None:
        assert len(probe.gpu_name) <= 80
        assert (probe.gpu_name + probe.driver).isprintable()
        assert objection(probe, gpu_name="RTX 4090", card_gb=1000).isprintable()


def test_work_without_a_card_asks_for_nothing() -> None:
    assert objection(None, gpu_name="RTX 4090", card_gb=0) == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"memory_gb": 11.9}, "has 11.9 GB, and 24 GB were promised"),
        ({"free_gb": 3.0}, "has 3.0 GB free of 25.3 GB"),
        ({"tflops": 0.0}, "computes nothing"),
        ({"gpu_name": "NVIDIA GeForce RTX 3090"}, "and 'RTX 4090' was offered"),
    ],
    ids=str,
)
def test_a_card_that_is_not_what_was_promised(changes: dict[str, Any], reason: str) -> None:
    assert reason in objection(read(**changes), gpu_name="RTX 4090", card_gb=24)


@pytest.mark.parametrize(
    ("offered", "found", "same"),
    [
        ("H100 SXM", "NVIDIA H100 80GB HBM3", True),
        ("A100 SXM4", "NVIDIA A100-SXM4-80GB", True),
        ("Q RTX 8000", "Quadro RTX 8000", True),
        ("RTX 6000Ada", "NVIDIA RTX 6000 Ada Generation", True),
        ("RTX A6000", "NVIDIA RTX A6000", True),
        ("RTX 4070S Ti", "NVIDIA GeForce RTX 4070 Ti SUPER", True),
        ("GH200 SXM", "NVIDIA GH200 480GB", True),
        ("Tesla V100", "Tesla V100-SXM2-16GB", True),
        ("L4", "NVIDIA L4", True),
        ("Titan RTX", "NVIDIA TITAN RTX", True),
        ("L4", "NVIDIA L40S", False),
        ("RTX 6000Ada", "NVIDIA RTX A6000", False),
        ("A100 SXM4", "NVIDIA A10", False),
        ("RTX 5090", "NVIDIA GeForce GTX 1080 Ti", False),
    ],
)
def test_services_and_drivers_name_a_card_differently(offered: str, found: str, same: bool) -> None:
    assert (objection(read(gpu_name=found), gpu_name=offered, card_gb=8) == "") is same
