"""Token rows as a tree of prefixes: no padding, and what rows begin with alike is kept once.

A causal model computes the same thing for equal beginnings, so completions share their prompt,
prompts share the template in front of them, and a repeated row costs nothing. Linear layers run
on the N distinct tokens; only attention sees a padded grid. What a pad holds does not matter: no
real token looks at it, and its gradient is exactly zero.

Shape letters: B rows, T columns, N tokens, C heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tsgb.models.torch_typing import from_numpy

Ints = npt.NDArray[np.int64]


class Grid:
    """A [B, T] grid of N things; several slots may show the same one, which one of them owns."""

    def __init__(self, source_BT: Ints, owned_N: Ints, real_BT: npt.NDArray[np.bool_]) -> None:
        """Describe a grid.

        Args:
            source_BT: the thing in each slot; any at a pad.
            owned_N: the flat slot that owns each thing.
            real_BT: False on pads.
        """
        self.B, self.T = source_BT.shape
        self.source_BT = source_BT
        self.owned_N = owned_N
        self._real_BT = real_BT
        shared = real_BT.copy().reshape(-1)
        shared[owned_N] = False
        self._shared: Ints = np.flatnonzero(shared)

    @classmethod
    def filled_from_left(cls, counts_B: Ints) -> Grid:
        """A grid with `counts_B[b]` things of its own in row b, in order."""
        T, N = int(counts_B.max()), int(counts_B.sum())
        starts_B = np.cumsum(counts_B) - counts_B
        columns_T = np.arange(T)
        real_BT = columns_T < counts_B[:, None]
        source_BT = np.minimum(starts_B[:, None] + columns_T, N - 1)
        return cls(source_BT, np.flatnonzero(real_BT), real_BT)

    def moves(self, C: int) -> tuple[Tensor, Tensor]:
        """Row indices between things [N, C] and grid [C, B, T]: to the grid, and back."""
        heads = torch.arange(C)
        source = from_numpy(self.source_BT) * C
        owned = from_numpy(self.owned_N)
        return (
            (source + heads[:, None, None]).view(-1),
            (owned[:, None] + heads * (self.B * self.T)).view(-1),
        )

    def grouped_moves(self, J: int, G: int) -> tuple[Tensor, Tensor]:
        """Row indices between things [N, J * G] and grid [J, B, G, T]: to the grid, and back."""
        there, _ = self.moves(J * G)
        there = there.view(J, G, self.B, self.T).transpose(1, 2).reshape(-1)
        row_N, column_N = np.divmod(self.owned_N, self.T)
        first_N = from_numpy(row_N * (G * self.T) + column_N)
        heads = torch.arange(J)[:, None] * (self.B * G * self.T) + torch.arange(G) * self.T
        return there, (first_N[:, None] + heads.view(-1)).view(-1)

    def shared(self, C: int) -> tuple[Tensor, Tensor] | None:
        """The real slots that do not own what they show: rows of the grid, rows of the things."""
        if not len(self._shared):
            return None
        heads = torch.arange(C)
        slots = from_numpy(self._shared)
        things = from_numpy(self.source_BT.reshape(-1)[self._shared])
        return (
            (slots[:, None] + heads * (self.B * self.T)).view(-1),
            (things[:, None] * C + heads).view(-1),
        )

    def filled(self, C: int, dtype: torch.dtype) -> Tensor | None:
        """1 on real slots and 0 on pads, [C * B * T, 1]; None if there are no pads."""
        if bool(self._real_BT.all()):
            return None
        return from_numpy(self._real_BT).to(dtype).expand(C, -1, -1).reshape(-1, 1)


class Rows:
    """Token rows, packed."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        """Pack rows of any lengths (none empty); they keep their numbers."""
        order = sorted(range(len(rows)), key=lambda i: list(rows[i]))
        counts = np.fromiter((len(rows[i]) for i in order), np.int64, len(rows))
        T, columns_T = int(counts.max()), np.arange(int(counts.max()))
        real = columns_T < counts[:, None]
        ids = np.full((len(rows), T), -1)
        ids[real] = np.fromiter(chain.from_iterable(rows[i] for i in order), np.int64, counts.sum())
        # In sorted order a row shares its beginning with the one above, or with none.
        fresh = real.copy()
        fresh[1:] &= np.logical_or.accumulate(ids[1:] != ids[:-1], 1)
        kept = fresh.any(1)  # all but exact repetitions
        place = np.empty(len(rows), np.int64)
        place[order] = np.cumsum(kept) - 1
        ids, fresh, real = ids[kept], fresh[kept], real[kept]
        owned_N: Ints = np.flatnonzero(fresh)
        source = np.zeros(fresh.shape, np.int64)
        source.reshape(-1)[owned_N] = np.arange(len(owned_N))
        np.maximum.accumulate(source, 0, out=source)
        self.place_R: Ints = place
        """The grid's row of each row."""
        self.counts_R: Ints = np.fromiter(map(len, rows), np.int64, len(rows))
        self.grid = Grid(source, owned_N, real)
        shown = np.empty(int(kept.sum()), np.int64)
        shown[place] = np.arange(len(rows))
        self.rows_N: Ints = owned_N // T
        self.shown_N: Ints = shown[self.rows_N]
        """The number of a row that each token is in."""
        self.columns_N: Ints = owned_N % T
        self.ids_N = from_numpy(ids.reshape(-1)[owned_N])
        self._ids_BT = np.where(real, ids, -1)

    def tokens(self, row_M: Ints, column_M: Ints) -> Ints:
        """The number of the token at these rows and columns."""
        return self.grid.source_BT[self.place_R[row_M], column_M]

    def last(self, width: int = 1) -> Ints:
        """Numbers of the last `width` tokens of each row, row after row."""
        column = self.counts_R[:, None] + np.arange(-width, 0)
        return self.grid.source_BT[self.place_R[:, None], column].reshape(-1)

    def padded(self, pad: int) -> Tensor:
        """Ids as a grid [B, T], padded on the right."""
        return from_numpy(np.where(self._ids_BT < 0, pad, self._ids_BT))
