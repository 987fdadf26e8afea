"""Group advantages: what an attempt earned beyond the other attempts at the same scenario."""

from __future__ import annotations

import math

from torch import Tensor

from tsgb.models.torch_typing import floats


def leave_one_out(rewards_GK: Tensor) -> Tensor:
    """A_k = R_k - mean of the other K - 1 rewards (RLOO, Ahmadian et al. 2024), [G, K].

    No division by the group's standard deviation (Liu et al. 2025, Dr. GRPO). An attempt without a
    reward (NaN: nobody could judge it) gets no advantage and is in nobody's baseline.
    """
    known_GK = ~rewards_GK.isnan()
    paid_GK = rewards_GK.nan_to_num()
    num_others = known_GK.sum(1, keepdim=True) - known_GK.long()
    others = (paid_GK.sum(1, keepdim=True) - paid_GK) / num_others.clamp(min=1)
    return (paid_GK - others) * (known_GK & (num_others > 0))


def live_groups(rewards_GK: Tensor) -> Tensor:
    """[G] True where a group's rewards differ.

    A group without spread carries no signal; it is dropped with its KL term, which would otherwise
    be a gradient of its own.
    """
    highest = rewards_GK.nan_to_num(nan=-math.inf).amax(1)
    lowest = rewards_GK.nan_to_num(nan=math.inf).amin(1)
    return highest - lowest > 1e-6


def scale_by_class(advantages_GK: Tensor, classes_G: Tensor) -> Tensor:
    """Divide the advantages of each class by their root mean square, [G, K].

    Otherwise the class with the larger rewards drowns the other one.
    """
    scaled = advantages_GK.clone()
    for value in sorted(set(floats(classes_G))):
        rows = classes_G == value
        rms = advantages_GK[rows].pow(2).mean().sqrt()
        if rms > 1e-6:
            scaled[rows] = advantages_GK[rows] / rms
    return scaled
