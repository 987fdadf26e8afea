"""TSGB: train a small guard by self-play; measure how far it protects big black boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsgb.custom import BlackBoxLLM as BlackBoxLLM
    from tsgb.custom import SimpleJudge as SimpleJudge

__all__ = ["BlackBoxLLM", "SimpleJudge"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tsgb import custom

    return getattr(custom, name)
