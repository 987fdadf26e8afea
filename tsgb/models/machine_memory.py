"""Memory of this machine and its cards, found without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tsgb.models import cuda_driver
from tsgb.models.dtypes import card_has_units, cpu_has_units
from tsgb.models.planner import DeviceMemory

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_SECONDS = 20.0
"""Seconds that the driver of cards may take to answer."""


def main_memory() -> DeviceMemory:
    """Return the memory of this machine, or of the container that it is."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        try:
            limit = Path(path).read_text("utf-8").strip()
        except OSError:
            continue
        if limit.isdecimal():
            total = min(total, int(limit))
    return DeviceMemory("cpu", total, has_bfloat16_units=cpu_has_units())


def cards() -> list[DeviceMemory]:
    """Return the CUDA cards that a process of this machine may use, numbered as torch does.

    The driver's library is asked, and not nvidia-smi, which numbers cards in another order and
    shows those that `CUDA_VISIBLE_DEVICES` hides. No card is found where it does not answer.
    """
    try:
        done = subprocess.run(  # noqa: S603 - a file of this package
            [sys.executable, "-I", cuda_driver.__file__],
            capture_output=True,
            text=True,
            check=True,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [
        DeviceMemory(f"cuda:{number}", total, label, has_bfloat16_units=card_has_units((*cap,)))
        for number, (label, total, cap) in enumerate(json.loads(done.stdout))
    ]


def find_device(name: str) -> DeviceMemory:
    """Return the memory of the device that `ModelConfig.device` names.

    It is the one that torch takes for the name: `auto` and `cuda` are the first card. Where a card
    is not found the first device counts that there is: whoever loads a model looks again.
    """
    found = [] if name in {"cpu", "mps"} else cards()
    named = [card for card in found if card.device == name]
    return next(iter(named or found or [main_memory()]))
