"""The probe of a rented machine's card, on a card."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from tsgb.worker.card_probe import CardFault, probe_card

pytestmark = pytest.mark.gpu

COMMAND = [sys.executable, "-m", "tsgb.worker.card_probe"]


def test_a_good_card_is_measured_in_seconds(card: torch.device) -> None:
    total = torch.cuda.mem_get_info(card)[1] / 1e9
    probe = probe_card(COMMAND, dict(os.environ), card_gb=1.0)
    assert probe.gpu_name == torch.cuda.get_device_name(card)
    assert probe.torch_cuda == torch.version.cuda
    assert probe.memory_gb == pytest.approx(total, rel=1e-3)
    assert probe.seconds < 5
    assert probe.tflops > 1
    print(probe)  # noqa: T201 - for -rPs


def test_a_card_that_is_hidden_is_not_there(card: torch.device) -> None:
    del card
    with pytest.raises(CardFault, match="torch finds no card"):
        probe_card(COMMAND, {**os.environ, "CUDA_VISIBLE_DEVICES": ""}, card_gb=1.0)
