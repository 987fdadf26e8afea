"""Memory of this machine, and of the cards that its driver shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.cuda_driver import RTX_3060, RTX_3090, T4, install_driver
from tsgb.models.dtypes import cpu_has_units
from tsgb.models.machine_memory import cards, find_device, main_memory
from tsgb.models.planner import DeviceMemory

SMALL = DeviceMemory("cuda:0", RTX_3060[1], RTX_3060[0], has_bfloat16_units=True)
LARGE = DeviceMemory("cuda:1", RTX_3090[1], RTX_3090[0], has_bfloat16_units=True)


def test_a_machine_has_memory() -> None:
    assert main_memory().device == "cpu"
    assert main_memory().total > 2**28
    assert main_memory().has_bfloat16_units == cpu_has_units()
    assert find_device("cpu") == find_device("mps") == main_memory()


def test_names_mean_the_cards_that_torch_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_driver(tmp_path, monkeypatch, RTX_3060, RTX_3090)
    assert cards() == [SMALL, LARGE]
    assert find_device("auto") == find_device("cuda") == find_device("cuda:0") == SMALL
    assert find_device("cuda:1") == LARGE
    assert find_device("cuda:2") == SMALL, "whoever loads a model refuses it"
    assert find_device("cpu") == main_memory()
    assert str(LARGE) == "cuda:1 (NVIDIA GeForce RTX 3090) with 25.8 GB"


def test_cards_that_are_hidden_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_driver(tmp_path, monkeypatch, RTX_3060, RTX_3090)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert find_device("auto").label == RTX_3090[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert [card.label for card in cards()] == [RTX_3090[0], RTX_3060[0]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_device("auto") == main_memory()


def test_an_old_card_has_no_units_for_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_driver(tmp_path, monkeypatch, T4, RTX_3090)
    assert [card.has_bfloat16_units for card in cards()] == [False, True]


@pytest.mark.parametrize("code", [100, 999])
def test_a_driver_that_fails_has_no_cards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    install_driver(tmp_path, monkeypatch, T4, fails_with=code)
    assert cards() == []
    assert find_device("auto") == main_memory()


def test_a_library_that_is_no_driver_has_no_cards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"not a library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of this machine's own driver
    assert cards() == []
