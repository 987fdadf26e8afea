"""Training series out of the metrics that a run keeps while it trains."""

from __future__ import annotations

from tsgb.checkpoint.documents import count_in, parse_json_lines
from tsgb.eval.records import Curve

CURVE_POINTS = 200
"""Most points of a series, about."""
CURVE_FIELDS = (
    "asr",
    "asr_no_guard",
    "family_share",
    "fpr",
    "fnr",
    "kl",
    "entropy",
    "grad_norm",
    "loss",
    "tau",
)
_PHASES = frozenset({"attacker", "guard", "warmup"})


def curve_of(text: str, seed: int, arm: str) -> Curve:
    """Return the series of one arm, thinned; lines that cannot be read are left out.

    Args:
        text: Content of `metrics.jsonl`, one JSON object an update.
        seed: Training seed.
        arm: Name of the arm.
    """
    lines = [line for line in parse_json_lines(text) if str(line.get("phase")) in _PHASES]
    points = [
        {"step": float(count_in(line, "step"))}
        | {k: float(line[k]) for k in CURVE_FIELDS if isinstance(line.get(k), int | float)}
        for line in lines[:: max(1, len(lines) // CURVE_POINTS)]
    ]
    return Curve(seed=seed, arm=arm, points=points)
