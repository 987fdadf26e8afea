"""What a command of `tsgb` that ran in this process left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Ended(NamedTuple):
    """Exit code and both streams."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]
