"""Memory of this machine, and of cards whose driver's program is on the path."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsgb.models.machine_memory import cards, find_device, main_memory
from tsgb.models.planner import DeviceMemory


def install(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = directory / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=":")


def test_a_machine_has_memory() -> None:
    assert main_memory().device == "cpu"
    assert main_memory().total > 2**28
    assert find_device("cpu") == main_memory()


def test_cards_are_those_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "NVIDIA GeForce RTX 3060, 12288\\nNVIDIA GeForce RTX 3090, 24576\\n"
    install(tmp_path, monkeypatch, f"printf '{lines}'")
    small, large = (
        DeviceMemory("cuda:0", 12288 * 2**20, "NVIDIA GeForce RTX 3060"),
        DeviceMemory("cuda:1", 24576 * 2**20, "NVIDIA GeForce RTX 3090"),
    )
    assert cards() == [small, large]
    assert find_device("auto") == find_device("cuda:1") == large
    assert find_device("cuda:0") == small
    assert find_device("cpu") == main_memory()
    assert str(large) == "cuda:1 (NVIDIA GeForce RTX 3090) with 25.8 GB"


@pytest.mark.parametrize("script", ["exit 9", "echo No devices were found"])
def test_a_driver_that_does_not_answer_has_no_cards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    install(tmp_path, monkeypatch, script)
    assert cards() == []
    assert find_device("auto") == main_memory()
