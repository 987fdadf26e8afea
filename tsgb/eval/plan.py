"""The pieces of an evaluation: each is one file of items, made once, by whichever process.

scripted              every guard's scores and every target's answers on the fixed streams
<target>.<br seed>    fresh attackers on one target, against each guard in turn
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tsgb.config import RunConfig


@dataclass(frozen=True, slots=True)
class Cell:
    """One piece of work.

    Example: `Cell(target="B_far", br_seed=2)`, or `Cell()` for the scripted streams.
    """

    target: str | None = None
    br_seed: int = 0

    @property
    def name(self) -> str:
        """File name, without its ending."""
        return "scripted" if self.target is None else f"{self.target}.{self.br_seed}"


def plan(config: RunConfig, targets: Sequence[str]) -> list[Cell]:
    """All cells, in the order in which parts take contiguous shares of them."""
    responses = range(config.evaluation.best_responses)
    return [Cell(), *(Cell(target, br_seed) for br_seed in responses for target in targets)]


def share(cells: Sequence[Cell], part: int, parts: int) -> list[Cell]:
    """A contiguous share: cells of one best-response seed reuse its supervised start."""
    return list(cells[len(cells) * part // parts : len(cells) * (part + 1) // parts])
