"""Speed of GPUs for a run: the service's own score first, then the updates that were measured.

Without a measurement a GPU is as fast as its score says (`dlperf`), relative to that of
`REFERENCE`. How far a score misses the speed at this kind of work is unknown: the logarithm of the
ratio is taken to be normal around 0 with standard deviation `DOUBT`. Updates of one kind in one run
on several GPUs tell their speeds apart, whatever the model and the batch are. The posterior mean is
then the usual shrinkage of normal distributions: n updates count n / (n + (NOISE / DOUBT)^2).

Machines report their own times, and nobody trusts them: no measurement moves a GPU by more than
`MOST`. All functions are pure.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import mean, median

from tsgb.cloud.provider import Offer

REFERENCE = "RTX 3090"
"""GPU whose speed is 1: hours of work that a user gives are hours on it."""
REFERENCE_SCORE = 60.0
"""Its score by the service, about."""
DOUBT = 0.3
"""Standard deviation of the logarithm of true speed over that by the score, assumed."""
NOISE = 0.5
"""Standard deviation of the logarithm of one update's seconds, assumed."""
MOST = 2.0
"""Factor by which measurements may move a speed, up or down."""


@dataclass(frozen=True, slots=True)
class MeasuredUpdates:
    """Updates of one kind that one kind of GPU made for one run.

    Example: `MeasuredUpdates(("r1", "guard"), "RTX 5090", num=40, seconds=2.1)`
    """

    kind: tuple[str, str]
    """Run, and kind of the updates: only within both can times be compared."""
    gpu_name: str
    """Name of the GPU."""
    num: int
    """Number of updates."""
    seconds: float
    """Geometric mean of their seconds."""


def summarise(
    timed: Iterable[tuple[tuple[str, str], str, float]],
) -> tuple[MeasuredUpdates, ...]:
    """Return the updates by kind and GPU.

    Args:
        timed: Kind, name of the GPU and seconds of each update; seconds are above 0.
    """
    found: dict[tuple[tuple[str, str], str], list[float]] = defaultdict(list)
    for kind, gpu_name, seconds in timed:
        found[kind, gpu_name].append(math.log(seconds))
    return tuple(
        MeasuredUpdates(kind, gpu_name, len(logs), math.exp(mean(logs)))
        for (kind, gpu_name), logs in sorted(found.items())
    )


def speeds(offers: Iterable[Offer], measured: Iterable[MeasuredUpdates] = ()) -> dict[str, float]:
    """Return the useful work per hour of each GPU on offer, relative to the reference's.

    Args:
        offers: Offers of one GPU each; the median score of a name counts, since each machine's own
            depends on its power limit and processor.
        measured: Updates of this deployment's machines.

    Returns:
        Speeds by name. A GPU without a score is missing; all are, if the service scores none.
    """
    known = scores(offers)
    moved = corrections(known, measured)
    return {name: score / REFERENCE_SCORE * moved.get(name, 1.0) for name, score in known.items()}


def scores(offers: Iterable[Offer]) -> dict[str, float]:
    """Return the median score of one GPU by its name."""
    found: dict[str, list[float]] = defaultdict(list)
    for offer in offers:
        score = offer.dlperf / max(1, offer.num_gpus)
        if score > 0 and math.isfinite(score):
            found[offer.gpu_name].append(score)
    return {name: median(values) for name, values in sorted(found.items())}


def corrections(
    known: Mapping[str, float], measured: Iterable[MeasuredUpdates]
) -> dict[str, float]:
    """Return the factors by which measurements move the speeds of GPUs with these scores.

    For a kind of updates, the differences of the logarithms of measured speed and score have a mean
    that says how large an update is, and nothing of any GPU. What is left of each difference is
    what the score has missed.
    """
    kinds: dict[tuple[str, str], list[MeasuredUpdates]] = defaultdict(list)
    for one in measured:
        if one.num > 0 and one.seconds > 0 and one.gpu_name in known:
            kinds[one.kind].append(one)
    misses: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for group in kinds.values():
        differences = [-math.log(one.seconds * known[one.gpu_name]) for one in group]
        weights = [1 / (DOUBT**2 + NOISE**2 / one.num) for one in group]
        usual = sum(d * w for d, w in zip(differences, weights, strict=True)) / sum(weights)
        for one, difference in zip(group, differences, strict=True):
            misses[one.gpu_name].append((difference - usual, one.num / NOISE**2))
    bound = math.log(MOST)
    factors: dict[str, float] = {}
    for name, found in misses.items():
        precision = 1 / DOUBT**2 + sum(weight for _, weight in found)
        moved = sum(miss * weight for miss, weight in found) / precision
        factors[name] = math.exp(min(bound, max(-bound, moved)))
    return factors
