"""How an evaluation's cells are shared among processes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tsgb.eval.request import EvaluationCell, share


@given(targets=st.integers(0, 6), seeds=st.integers(1, 4), parts=st.integers(1, 9))
def test_shares_are_pieces_of_the_whole(targets: int, seeds: int, parts: int) -> None:
    attacked = [EvaluationCell(f"B{n}", seed) for seed in range(seeds) for n in range(targets)]
    cells = [EvaluationCell(), *attacked]
    shares = [share(cells, part, parts) for part in range(parts)]
    assert [cell for part in shares for cell in part] == cells
    most = max(sum(cell.target is not None for cell in part) for part in shares)
    assert most <= len(attacked) / parts + 1


def test_the_streams_of_four_targets_go_with_two_of_them() -> None:
    cells = [EvaluationCell(), *(EvaluationCell(name) for name in ("T", "A", "B", "C"))]
    assert [len(share(cells, part, 2)) for part in range(2)] == [3, 2]
