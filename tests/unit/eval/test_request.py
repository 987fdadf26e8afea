"""How an evaluation's cells are shared among processes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.config import make_config
from tsgb.envs.canary import CanaryEnvironment
from tsgb.eval.request import EvaluationCell, scripted_weight, share


@given(targets=st.integers(0, 6), seeds=st.integers(1, 4), parts=st.integers(1, 9))
def test_shares_are_pieces_of_the_whole(targets: int, seeds: int, parts: int) -> None:
    attacked = [EvaluationCell(f"B{n}", seed) for seed in range(seeds) for n in range(targets)]
    cells = [EvaluationCell(), *attacked]
    shares = [share(cells, part, parts, 0.5) for part in range(parts)]
    assert [cell for part in shares for cell in part] == cells
    most = max(sum(cell.target is not None for cell in part) for part in shares)
    assert most <= len(attacked) / parts + 1


@given(added=st.sets(st.integers(0, 5)), seeds=st.integers(1, 4), parts=st.integers(1, 9))
def test_added_targets_are_attacked_by_the_part_that_asks_them_first(
    added: set[int], seeds: int, parts: int
) -> None:
    attacked = [EvaluationCell(f"B{n}", seed) for seed in range(seeds) for n in range(6)]
    cells, names = [EvaluationCell(), *attacked], {f"B{n}" for n in added}
    shares = [share(cells, part, parts, 3.0, names) for part in range(parts)]
    assert sorted(c.name for part in shares for c in part) == sorted(c.name for c in cells)
    [first] = [part for part in shares if EvaluationCell() in part]
    assert first[0] == EvaluationCell()
    assert names == {str(c.target) for c in first if c.target in names}
    assert not any(c.target in names for part in shares if part is not first for c in part)


@pytest.mark.parametrize(("profile", "num_cells"), [("demo", [2, 3]), ("paper", [3, 2])])
def test_streams_count_by_the_answers_that_they_ask_for(profile: str, num_cells: list[int]) -> None:
    """Canary's `demo` asks for more answers than its attackers do, and its `paper` for fewer."""
    sizes = CanaryEnvironment(world_seed=0).profile(profile)
    config = make_config({"profile": profile, "env": "canary"}, sizes)
    cells = [EvaluationCell(), *(EvaluationCell(name) for name in ("T", "A", "B", "C"))]
    weight = scripted_weight(config, 4, 6)
    assert [len(share(cells, part, 2, weight)) for part in range(2)] == num_cells
