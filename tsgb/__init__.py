"""TSGB: train a small guard by self-play; measure how far it protects big black boxes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsgb.export.loading import LoadedGuard
    from tsgb.judges.simple import SimpleJudge as SimpleJudge
    from tsgb.protocols import BlackBoxLLM as BlackBoxLLM

__all__ = ["BlackBoxLLM", "SimpleJudge", "load_guard"]


def load_guard(
    directory: str | Path,
    *,
    base: str | Path | None = None,
    preset: str | None = None,
    device: str = "auto",
    dtype: str | None = None,
) -> LoadedGuard:
    """Load what `tsgb export-guard` wrote; call it as a text-classification pipeline.

    Args:
        directory: the export.
        base: directory or name of the base, if the export does not hold the one that it needs;
            without it one from the hub is fetched, by the settings of the environment.
        preset: name of the operating point; the export's default when left out.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; whole weights take the first two.
        dtype: `float32` or `bfloat16`, if the export has thresholds in it; the dtype of its run
            when left out.

    Raises:
        UsageError: The directory holds no guard, or no thresholds in that dtype; its base cannot
            be had or is another one; or a prompt of the self-test gets another score.
        ConfigError: The base cannot be loaded.
    """
    from tsgb.export import loading
    from tsgb.models.fetch import fetch
    from tsgb.settings import load_settings

    def fetch_base(name: str) -> Path:
        settings = load_settings()
        settings.make_cache_dir()
        return fetch(name, settings, settings.cache_dir / "models").directory

    return loading.load_guard(
        directory, base=base, preset=preset, device=device, dtype=dtype, fetch_base=fetch_base
    )


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tsgb import protocols
    from tsgb.judges import simple

    return simple.SimpleJudge if name == "SimpleJudge" else protocols.BlackBoxLLM
