"""TSGB: train a small guard by self-play; measure how far it protects big black boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsgb.judges.simple import SimpleJudge as SimpleJudge
    from tsgb.protocols import BlackBoxLLM as BlackBoxLLM

__all__ = ["BlackBoxLLM", "SimpleJudge"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tsgb import protocols
    from tsgb.judges import simple

    return simple.SimpleJudge if name == "SimpleJudge" else protocols.BlackBoxLLM
