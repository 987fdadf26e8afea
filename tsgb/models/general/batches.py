"""Token rows as micro-batches of padded tokens; what rows begin with alike is read once.

Rows of one chat share the whole chat, and prompts under one template share its beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

Row = Sequence[int]
"""Token ids."""
WORTHWHILE = 0.8
"""Prefixes are shared when at most this share of the tokens is left: sharing has a price, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Rows that are read at once, each a prefix and a suffix, and where one looks at them."""

    numbers: list[int]
    """Numbers of the rows."""
    prefixes: list[Row]
    """Beginnings that rows share; empty where each row stands alone."""
    parents: list[int]
    """Number of each row's prefix."""
    suffixes: list[Row]
    """The rest of each row, never empty."""
    positions: list[list[int]]
    """Positions in each row's suffix that are looked at."""

    def flat_positions(self, width: int) -> list[int]:
        """Return the positions in a grid of suffixes that are `width` tokens wide."""
        rows = enumerate(self.positions)
        return [row * width + position for row, found in rows for position in found]


def micro_batches(
    rows: Sequence[Row], positions: Sequence[Sequence[int]], *, limit: int, share: bool
) -> list[MicroBatch]:
    """Split rows into batches of at most `limit` padded tokens, or of one row.

    Args:
        rows: token ids, none empty.
        positions: positions of each row that are looked at, ascending, none empty.
        limit: most tokens of a batch, padding included.
        share: whether rows may share prefixes.
    """
    cuts = _shared_lengths(rows, [found[0] for found in positions]) if share else [0] * len(rows)
    prefixes = [tuple(row[:cut]) for row, cut in zip(rows, cuts, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: (cuts[i], prefixes[i], len(rows[i])))
    batches: list[MicroBatch] = []
    start = 0
    for stop in range(1, len(order) + 1):
        if stop < len(order) and _padded_tokens(order[start : stop + 1], rows, prefixes) <= limit:
            continue
        numbers = order[start:stop]
        distinct = list(dict.fromkeys(prefixes[i] for i in numbers if prefixes[i]))
        index = {prefix: number for number, prefix in enumerate(distinct)}
        batches.append(
            MicroBatch(
                numbers=numbers,
                prefixes=list(distinct),
                parents=[index[prefixes[i]] for i in numbers] if distinct else [],
                suffixes=[rows[i][cuts[i] :] for i in numbers],
                positions=[[p - cuts[i] for p in positions[i]] for i in numbers],
            )
        )
        start = stop
    return batches


def _padded_tokens(numbers: Sequence[int], rows: Sequence[Row], prefixes: Sequence[Row]) -> int:
    """Return the tokens that reading these rows at once takes, padding included."""
    distinct = {prefixes[i] for i in numbers}
    longest = max(len(rows[i]) - len(prefixes[i]) for i in numbers)
    return len(distinct) * max(map(len, distinct)) + len(numbers) * longest


def _shared_lengths(rows: Sequence[Row], firsts: Sequence[int]) -> list[int]:
    """Return how much of each row is its prefix: all before the first position, or what is common.

    A prefix ends before the first position that is looked at.
    """
    alone = sum(map(len, rows))
    common = min(firsts)
    for row in rows[1:]:
        common = next((i for i in range(common) if row[i] != rows[0][i]), common)
    cost = common + alone - common * len(rows)
    cuts = [common] * len(rows)
    if min(firsts):
        heads = {tuple(row[:first]) for row, first in zip(rows, firsts, strict=True)}
        of_heads = sum(map(len, heads)) + alone - sum(firsts)
        if of_heads < cost:
            cost, cuts = of_heads, list(firsts)
    return cuts if cost <= WORTHWHILE * alone else [0] * len(rows)


def flattened(rows: Sequence[Row]) -> list[int]:
    """Return all ids, row after row."""
    return list(chain.from_iterable(rows))
