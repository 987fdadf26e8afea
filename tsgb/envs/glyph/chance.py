"""Draws. The only place that turns a world's seed into randomness."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def world_random(world_seed: int, purpose: str) -> Random:
    """A generator of its own for each hidden thing, so that adding one never moves another."""
    return Random(f"glyph/{world_seed}/{purpose}")


def pick(items: Sequence[T], rng: Random) -> T:
    """One of them, evenly; half the cost of `rng.choice`."""
    return items[int(rng.random() * len(items))]
