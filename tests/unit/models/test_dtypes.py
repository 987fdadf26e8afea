"""Which dtype `auto` is, by what the system says of its processors."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsgb.models.dtypes import auto_dtype, cpu_has_units


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


def test_other_devices() -> None:
    assert auto_dtype("cuda") == auto_dtype("cuda:1") == "bfloat16"
    assert auto_dtype("mps") == "float32"
