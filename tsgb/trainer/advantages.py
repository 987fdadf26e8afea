"""Group advantages: what an attempt earned beyond the other attempts at the same scenario."""

from __future__ import annotations

from torch import Tensor

from tsgb.models.tensors import floats


def leave_one_out(rewards_GK: Tensor) -> Tensor:
    """A_k = R_k - mean of the other K - 1 rewards (RLOO, Ahmadian et al. 2024), [G, K].

    No division by the group's standard deviation (Liu et al. 2025, Dr. GRPO).
    """
    K = rewards_GK.shape[1]
    others = (rewards_GK.sum(1, keepdim=True) - rewards_GK) / (K - 1)
    return rewards_GK - others


def live_groups(rewards_GK: Tensor) -> Tensor:
    """[G] True where a group's rewards differ.

    A group without spread carries no signal; it is dropped with its KL term, which would otherwise
    be a gradient of its own.
    """
    return rewards_GK.max(1).values - rewards_GK.min(1).values > 1e-6


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
