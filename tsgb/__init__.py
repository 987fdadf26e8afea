"""TSGB: train a small guard by self-play; measure how far it protects big black boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsgb.export.loading import load_guard as load_guard
    from tsgb.judges.simple import SimpleJudge as SimpleJudge
    from tsgb.protocols import BlackBoxLLM as BlackBoxLLM

__all__ = ["BlackBoxLLM", "SimpleJudge", "load_guard"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "load_guard":
        from tsgb.export.loading import load_guard

        return load_guard
    from tsgb import protocols
    from tsgb.judges import simple

    return simple.SimpleJudge if name == "SimpleJudge" else protocols.BlackBoxLLM
