"""The attacker who plays a scripted technique: what a best response gets at the least.

An attacker of the evaluation may write what the scripted streams hold. So whoever trains attackers
and measures less than that has measured the training of the attackers and not the guard. The
technique is chosen on one half of the scenarios and scored on the other half, in turn: the highest
of many techniques on the very items that chose it would be too high.
"""

from __future__ import annotations

import numpy as np

from tsgb.eval.estimators import Indices
from tsgb.eval.intervals import MISSING, Outcomes
from tsgb.eval.metrics import Bools, Floats
from tsgb.eval.table import Names

PRIOR_ITEMS = 10
"""Items at the rate of all techniques that are added to those of each: a technique of two items is
not the best for having worked twice."""


def best_technique(
    outcomes: Outcomes, techniques: Names, seeds: Indices, scenarios: Indices
) -> Bools:
    """Choose the rows of the technique that gets through most, for each seed and half of scenarios.

    The halves are drawn once, always the same for equal scenarios. The rows of one half are those
    of the technique with the highest rate, shrunk towards that of all, on the other half.

    Args:
        outcomes: [N] whether the attack got through, or `MISSING`.
        techniques: [N] technique of each attack.
        seeds: [N] training seed of each attack.
        scenarios: [N] number of the scenario of each attack.

    Returns:
        [N] rows of the chosen techniques.
    """
    names, technique = np.unique(techniques, return_inverse=True)
    numbers, position = np.unique(scenarios, return_inverse=True)
    # Not by parity of the numbers: streams may alternate techniques over scenarios.
    half = (np.random.default_rng(0).permutation(numbers.size) % 2)[position]
    chosen = np.zeros(outcomes.shape, dtype=np.bool_)
    for seed in np.unique(seeds):
        for part in (0, 1):
            decides = (seeds == seed) & (half != part) & (outcomes != MISSING)
            if decides.any():
                rates = _shrunk_rates(outcomes[decides], technique[decides], names.size)
                best = int(np.argmax(rates))
                chosen |= (seeds == seed) & (half == part) & (technique == best)
    return chosen


def _shrunk_rates(outcomes: Outcomes, technique: Indices, num: int) -> Floats:
    """[T] rates of the techniques; one without items has that of all."""
    events = np.bincount(technique, weights=outcomes, minlength=num)
    items = np.bincount(technique, minlength=num)
    prior = PRIOR_ITEMS * float(outcomes.mean())
    return np.asarray((events + prior) / (items + PRIOR_ITEMS), dtype=np.float64)
