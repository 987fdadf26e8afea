"""Which dtype `auto` is, by what the system says of its processors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tsgb.config import ModelConfig
from tsgb.models.dtypes import card_has_units, cpu_has_units, dtype_of
from tsgb.models.planner import DeviceMemory


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("fpu sse avx512f avx512_bf16 vaes", True),
        ("fpu amx_bf16 amx_tile", True),
        ("fpu sse avx2 avx512f", False),
        ("fpu avx512_bf16x", False),
        ("", False),
    ],
)
def test_a_cpu_has_units_if_its_flags_name_them(tmp_path: Path, flags: str, has: bool) -> None:
    facts = tmp_path / "cpuinfo"
    facts.write_text(f"processor\t: 0\nbugs\t: avx512_bf16\nflags\t\t: {flags}\n")
    assert cpu_has_units(facts) is has


def test_a_system_that_describes_no_processors_has_no_units(tmp_path: Path) -> None:
    assert not cpu_has_units(tmp_path / "absent")
    (tmp_path / "cpuinfo").write_bytes(b"\xff\xfe")
    assert not cpu_has_units(tmp_path / "cpuinfo")


@pytest.mark.parametrize(
    ("capability", "has"),
    [((7, 0), False), ((7, 5), False), ((8, 0), True), ((8, 9), True), ((12, 0), True)],
)
def test_cards_have_units_from_ampere_on(capability: tuple[int, int], has: bool) -> None:
    assert card_has_units(capability) is has


def test_auto_is_what_the_device_multiplies_in() -> None:
    lora, full = ModelConfig(adapter="lora"), ModelConfig(adapter="full")
    old = DeviceMemory("cuda:0", 16 * 10**9)
    new = replace(old, has_bfloat16_units=True)
    assert (dtype_of(lora, old), dtype_of(lora, new)) == ("float32", "bfloat16")
    assert dtype_of(full, new) == "float32"
    assert dtype_of(ModelConfig(adapter="lora", dtype="bfloat16"), old) == "bfloat16"
    assert dtype_of(ModelConfig(adapter="lora", dtype="float32"), new) == "float32"
