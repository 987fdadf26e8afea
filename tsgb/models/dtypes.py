"""The dtype of frozen weights, chosen without torch: planning and loading share the rule."""

from __future__ import annotations

from pathlib import Path

from tsgb.config import ModelConfig
from tsgb.models.planner import DeviceMemory

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


def card_has_units(capability: tuple[int, int]) -> bool:
    """Return whether a CUDA card multiplies in bfloat16 itself, by its compute capability."""
    return capability >= (8, 0)


def dtype_of(model: ModelConfig, device: DeviceMemory) -> str:
    """Return the dtype of frozen weights; `auto` is bfloat16 where a device multiplies in it.

    Whole weights that are trained begin as they are: with them `auto` is float32.
    """
    if model.dtype != "auto":
        return model.dtype
    coarse = model.adapter == "lora" and device.has_bfloat16_units
    return "bfloat16" if coarse else "float32"
