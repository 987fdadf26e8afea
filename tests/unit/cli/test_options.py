"""`--set NAME=VALUE` becomes the part of a configuration that it names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tsgb.cli import options


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {}),
        (["segments=2"], {"segments": 2}),
        (["attacker.kl=1e-3", "attacker.lr=2"], {"attacker": {"kl": 0.001, "lr": 2}}),
        (["selfplay.pool=false"], {"selfplay": {"pool": False}}),
        (["guard.loss=weighted_ce"], {"guard": {"loss": "weighted_ce"}}),
        (["guard.loss=a=b"], {"guard": {"loss": "a=b"}}),
        (["segments=1", "segments=2"], {"segments": 2}),
    ],
)
def test_overrides(given: Sequence[str], expected: dict[str, Any]) -> None:
    assert options.parse_overrides(given) == expected
