"""The dtype that `auto` stands for, found without torch."""

from __future__ import annotations

from pathlib import Path

UNITS = ("avx512_bf16", "amx_bf16")
"""Flags of CPUs that multiply in bfloat16 themselves, as Linux names them. Others are not measured,
or take far longer than in float32."""
CPU_FACTS = Path("/proc/cpuinfo")
"""File in which Linux describes the processors; other systems have none."""


def cpu_has_units(facts: Path | None = None) -> bool:
    """Return whether this machine's CPU multiplies in bfloat16 itself; without, it takes longer.

    Args:
        facts: Description of the processors, which all have the same flags; `CPU_FACTS` without it.
    """
    try:
        lines = (facts or CPU_FACTS).read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not set(UNITS).isdisjoint(flags.split())


def auto_dtype(device: str) -> str:
    """Return the dtype of `auto` on a device whose kind is `device`, as in `cuda:1` or `cpu`.

    A card counts as one that computes in bfloat16: whoever loads a model asks torch.
    """
    kind = device.partition(":")[0]
    return "bfloat16" if kind == "cuda" or (kind == "cpu" and cpu_has_units()) else "float32"
