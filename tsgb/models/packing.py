"""Token rows without their padding: one long row of tokens, and where each stands in a grid.

Linear layers run on the N real tokens; only attention sees the padded grid. What a pad holds
does not matter: no real token looks at it, and its gradient is exactly zero.
Shape letters: B rows, T columns, N tokens, C heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.int64]


class Grid:
    """Where N things stand in a [B, T] grid, each row filled from the left."""

    def __init__(self, counts_B: Ints) -> None:
        """Lay out `counts_B[b]` things in row b, in order."""
        self.counts_B = counts_B
        self.starts_B: Ints = np.cumsum(counts_B) - counts_B
        self.B = len(counts_B)
        self.T = int(counts_B.max())
        self.N = int(counts_B.sum())
        self.columns_N: Ints = np.arange(self.N) - np.repeat(self.starts_B, counts_B)
        self.rows_N: Ints = np.repeat(np.arange(self.B), counts_B)
        last_B = np.maximum(counts_B, 1) - 1
        self.source_BT: Ints = np.minimum(
            self.starts_B[:, None] + np.minimum(np.arange(self.T), last_B[:, None]), self.N - 1
        )
        self.slots_N: Ints = self.rows_N * self.T + self.columns_N
        self._moves: dict[int, tuple[Tensor, Tensor]] = {}
        self._filled: dict[int, Tensor | None] = {}

    def moves(self, C: int) -> tuple[Tensor, Tensor]:
        """Row indices between tokens [N, C] and grid [C, B, T]: to the grid, and back."""
        found = self._moves.get(C)
        if found is None:
            heads = torch.arange(C)
            source = torch.from_numpy(self.source_BT)
            slots = torch.from_numpy(self.slots_N)
            found = (
                (source[None] * C + heads[:, None, None]).view(-1),
                (slots[:, None] + heads * (self.B * self.T)).view(-1),
            )
            self._moves[C] = found
        return found

    def filled(self, C: int, dtype: torch.dtype) -> Tensor | None:
        """1 on real slots and 0 on pads, [C * B * T, 1]; None if there are no pads."""
        if C not in self._filled:
            real = np.arange(self.T) < self.counts_B[:, None]
            self._filled[C] = (
                None
                if bool(real.all())
                else torch.from_numpy(real).to(dtype).expand(C, -1, -1).reshape(-1, 1)
            )
        return self._filled[C]


class Rows:
    """Token rows, packed."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        """Pack rows of any lengths (none empty)."""
        self.grid = Grid(np.fromiter(map(len, rows), np.int64, len(rows)))
        self.flat_N: Ints = np.fromiter(chain.from_iterable(rows), np.int64, self.grid.N)
        self.ids_N = torch.from_numpy(self.flat_N)
        self.positions_N = torch.from_numpy(self.grid.columns_N)

    def last(self, width: int = 1) -> Ints:
        """Indices [B * width] of the last `width` tokens of each row."""
        ends_B = self.grid.starts_B + self.grid.counts_B
        return (ends_B[:, None] + np.arange(-width, 0)).reshape(-1)

    def padded(self, pad: int) -> Tensor:
        """Ids as a grid [B, T], padded on the right."""
        ids_BT = np.full((self.grid.B, self.grid.T), pad)
        ids_BT[self.grid.rows_N, self.grid.columns_N] = self.flat_N
        return torch.from_numpy(ids_BT)
