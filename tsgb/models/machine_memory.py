"""Memory of this machine and its cards, found without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tsgb.models.planner import DeviceMemory

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_QUERY = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
_MIB = 2**20


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
    return DeviceMemory("cpu", total)


def cards() -> list[DeviceMemory]:
    """Return the CUDA cards of this machine; none where its driver does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        done = subprocess.run(  # noqa: S603 - a program of the driver, with fixed arguments
            [tool, *_QUERY], capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rpartition(",") for line in done.stdout.splitlines()]
    return [
        DeviceMemory(f"cuda:{number}", int(memory) * _MIB, name.strip())
        for number, (name, _, memory) in enumerate(rows)
        if memory.strip().isdecimal()
    ]


def find_device(name: str) -> DeviceMemory:
    """Return the memory of the device that `ModelConfig.device` names; `auto` is a card if any.

    A card that is not found counts as the largest one there is: whoever loads a model looks again.
    """
    found = [] if name in {"cpu", "mps"} else cards()
    named = [card for card in found if card.device == name]
    return max(named or found or [main_memory()], key=lambda card: card.total)
