"""Which prompts train, calibrate and test: by group, so that no variant of a prompt is in two.

A group's place is a hash of its name: rows that come later move nobody. Only where a new row is a
duplicate that joins two groups does the later one follow the earlier one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from tsgb.errors import UsageError
from tsgb.types import Split

_SCALE = 2.0**64


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFractions:
    """Shares of the groups; they add up to 1.

    Example: `SplitFractions(test=0.5, calibration=0.3, train=0.2)`
    """

    test: float = 0.5
    """Share on which figures are measured."""
    calibration: float = 0.3
    """Share on which thresholds are chosen."""
    train: float = 0.2
    """Share that a guard may learn from."""

    def __post_init__(self) -> None:
        """Check the shares."""
        shares = (self.test, self.calibration, self.train)
        if not all(share >= 0 for share in shares) or not math.isclose(sum(shares), 1):
            raise UsageError(
                f"splits test={self.test:g}, calibration={self.calibration:g}, "
                f"train={self.train:g} do not add up to 1, or one is negative: write shares that do"
            )

    def split_of(self, group: str) -> Split:
        """Return the split of a group, which depends on its name and on the shares alone."""
        digest = hashlib.sha256(f"tsgb-split\0{group}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / _SCALE
        if place < self.test:
            return Split.TEST
        return Split.CALIBRATION if place < self.test + self.calibration else Split.TRAIN


DEFAULT_FRACTIONS = SplitFractions()
"""Half of the groups for figures, most of the rest for thresholds."""


def hash_of_split(members: Iterable[tuple[str, bytes, bool | None]]) -> str:
    """Return the sha256 (hex) of a split's prompts, in whatever order they come.

    Args:
        members: group, digest of the text, and label of each prompt.
    """
    whole = hashlib.sha256()
    for group, digest, harmful in sorted(members, key=lambda m: (m[0], m[1], str(m[2]))):
        whole.update(f"{group}\0{digest.hex()}\0{harmful}\n".encode())
    return whole.hexdigest()
