"""How fast a GPU is for a run: by the service's score, and by what was measured."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.cloud.provider import Offer
from tsgb.cloud.speed import (
    DOUBT,
    MOST,
    NOISE,
    REFERENCE,
    MeasuredUpdates,
    corrections,
    speeds,
    summarise,
)

GUARD, ATTACKER = ("r1", "guard"), ("r1", "attacker")
SCORES = {"RTX 3090": 60.0, "RTX 5090": 140.0}


def offer(name: str, dlperf: float, **more: int) -> Offer:
    return Offer(id=1, machine_id=1, host_id=1, gpu_name=name, dlperf=dlperf, **more)


def measured(
    seconds: dict[str, float], kind: tuple[str, str] = GUARD, num: int = 100_000
) -> list[MeasuredUpdates]:
    return [MeasuredUpdates(kind, name, num, value) for name, value in seconds.items()]


def ratio(of: dict[str, float]) -> float:
    return of.get("RTX 5090", 1.0) / of.get("RTX 3090", 1.0)


def test_without_measurements_the_median_score_of_a_name_counts() -> None:
    seen = [offer(REFERENCE, 60.0), *(offer("RTX 5090", score) for score in (140.0, 10.0, 150.0))]
    found = speeds([*seen, offer("A100", 360.0, num_gpus=2), offer("K80", 0.0)])
    assert found == {REFERENCE: 1.0, "RTX 5090": pytest.approx(7 / 3), "A100": 3.0}
    assert speeds([offer("Meadow G1", 0.0)]) == {}, "a service without scores"


def test_many_updates_outweigh_the_score() -> None:
    moved = corrections(SCORES, measured({"RTX 3090": 4.0, "RTX 5090": 3.0}))
    assert ratio(moved) * 140 / 60 == pytest.approx(4 / 3, rel=0.01)


def test_few_updates_move_it_little() -> None:
    miss = math.log(0.7)  # the 5090 is slower than its score by that factor
    for num in (1, 10, 100):
        seconds = {"RTX 3090": 1 / 60, "RTX 5090": 1 / 140 / 0.7}
        found = ratio(corrections(SCORES, measured(seconds, num=num)))
        share = num / (num + (NOISE / DOUBT) ** 2)
        assert math.log(found) == pytest.approx(share * miss)


def test_only_updates_of_one_kind_are_compared() -> None:
    """The updates of the attacker take longer, which says nothing of the machine."""
    alone = [*measured({"RTX 3090": 1.0}, GUARD), *measured({"RTX 5090": 9.0}, ATTACKER)]
    assert ratio(corrections(SCORES, alone)) == pytest.approx(1.0)


def test_a_machine_that_lies_moves_a_speed_by_a_bounded_factor() -> None:
    found = corrections(SCORES, measured({"RTX 3090": 1e9, "RTX 5090": 1e-9}))
    assert ratio(found) <= MOST**2 + 1e-9
    assert all(1 / MOST - 1e-9 <= factor <= MOST + 1e-9 for factor in found.values())


@given(
    times=st.dictionaries(st.sampled_from([*SCORES, "K80"]), st.floats(1e-3, 1e3)),
    num=st.integers(1, 1000),
    unit=st.floats(0.01, 100),
)
def test_the_size_of_an_update_does_not_matter(
    times: dict[str, float], num: int, unit: float
) -> None:
    scaled = {name: unit * value for name, value in times.items()}
    one = corrections(SCORES, measured(times, num=num))
    other = corrections(SCORES, measured(scaled, num=num))
    assert one == {name: pytest.approx(value, rel=1e-6) for name, value in other.items()}
    assert "K80" not in one, "nothing is known of a GPU without a score"


def test_updates_are_summarised_by_kind_and_gpu() -> None:
    timed = [(GUARD, "RTX 3090", 1.0), (GUARD, "RTX 3090", 4.0), (ATTACKER, "RTX 3090", 3.0)]
    assert summarise(timed) == (
        MeasuredUpdates(ATTACKER, "RTX 3090", 1, pytest.approx(3.0)),
        MeasuredUpdates(GUARD, "RTX 3090", 2, pytest.approx(2.0)),
    )
