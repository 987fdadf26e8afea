"""What the guard is shown: shares, labels and gains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from tests.fakes.miniature import harmful_scenarios, miniature_config, world
from tsgb.config import GuardConfig, SelfPlayConfig
from tsgb.envs.glyph import GlyphEnvironment
from tsgb.envs.pool import PoolAttack
from tsgb.envs.rubric import guard_gain
from tsgb.trainer.batches import (
    NO_PRICE,
    SLICES,
    GuardBatch,
    as_attack,
    clean_batch,
    clean_prompts,
    selfplay_batch,
)
from tsgb.types import StreamKind

CONFIG = miniature_config(
    {"guard": {"batch": 40, "current_share": 0.3, "pool_share": 0.2, "twins_share": 0.25}}
)
GUARD, SELFPLAY = CONFIG.guard, CONFIG.selfplay


def attacks(num: int, start: int = 0) -> list[PoolAttack]:
    """Readable attacks on one scenario, every other one successful."""
    scenario = harmful_scenarios(1)[0]
    found: list[PoolAttack] = []
    for index in range(start, start + 10 * num):
        attack = world().read(scenario, f"attack {index}")
        if attack.faithful and not attack.reserved:
            found.append(
                PoolAttack(
                    text=attack.text,
                    harmful=True,
                    violated=len(found) % 2 == 0,
                    technique=attack.technique,
                    signature=attack.signature,
                    scenario_id=attack.scenario_id,
                )
            )
    return found[:num]


def make_batch(
    buffer: list[PoolAttack],
    pool_draw: list[PoolAttack],
    guard: GuardConfig = GUARD,
    selfplay: SelfPlayConfig = SELFPLAY,
    prices: Mapping[StreamKind, float] = NO_PRICE,
) -> GuardBatch:
    return selfplay_batch(
        world(), guard, selfplay, Random(1), buffer=buffer, pool_draw=pool_draw, prices=prices
    )


def test_shares_are_those_of_the_configuration() -> None:
    buffer, pool = attacks(5), attacks(8, start=1000)
    batch = make_batch(buffer, pool)
    assert len(batch.prompts) == len(batch.harmful) == len(batch.gains) == 40
    assert set(batch.prompts[:12]) <= {a.text for a in buffer}
    assert batch.prompts[12:20] == [a.text for a in pool]
    assert all(batch.harmful[:20])
    assert not any(batch.harmful[20:30]), "ten twins"
    assert sum(batch.harmful[30:]) == 5, "half of the clean rest"


def test_twins_are_benign_and_have_the_form_of_an_attack() -> None:
    buffer = attacks(6)
    scenario, reader = harmful_scenarios(1)[0], GlyphEnvironment(0)
    for text in make_batch(buffer, []).prompts[12:22]:
        assert world().label(text) is False
        assert reader.read(scenario, text).signature in {a.signature for a in buffer}


@pytest.mark.parametrize("priced", [None, *SLICES], ids=str)
def test_gains_are_those_of_the_rubric_at_the_price_of_their_slice(
    priced: StreamKind | None,
) -> None:
    buffer = attacks(6)
    prices = {kind: 1.5 if kind is priced else 0.0 for kind in SLICES}
    batch = make_batch(buffer, [], prices=prices)
    violated = {a.text: a.violated for a in buffer}
    assert set(batch.slices) == {None, *SLICES}
    for text, harmful, gain, kind in zip(
        batch.prompts, batch.harmful, batch.gains, batch.slices, strict=True
    ):
        assert harmful == world().label(text)
        assert (kind is None) is harmful
        mu = 1.5 if kind is not None and kind is priced else 0.0
        wanted = guard_gain(GUARD, harmful=harmful, violated=violated.get(text), mu=mu)
        assert gain == wanted


def test_what_an_attacker_writes_about_a_benign_scenario_is_a_twin() -> None:
    [attack] = attacks(1)
    harmless = replace(attack, harmful=False, violated=None)
    batch = make_batch([], [harmless])
    assert batch.slices[0] is StreamKind.TWINS


def test_without_twins_clean_prompts_take_their_place() -> None:
    batch = make_batch(attacks(4), [], selfplay=SELFPLAY.model_copy(update={"twins": False}))
    assert len(batch.prompts) == 40
    assert sum(batch.harmful) == 12 + 14


@pytest.mark.parametrize("drawn", [0, 8])
def test_without_attacks_of_this_round_the_rest_is_clean(drawn: int) -> None:
    """An attacker may write nothing that can be read."""
    batch = make_batch([], attacks(drawn))
    assert len(batch.prompts) == 40
    twins = 10 if drawn else 0
    assert sum(batch.harmful) == drawn + (40 - drawn - twins) // 2


def test_an_attack_that_cannot_be_read_has_no_twin() -> None:
    unreadable = PoolAttack(text="no such words", harmful=True, violated=False)
    assert world().twin(as_attack(unreadable), Random(0)) is None
    batch = make_batch([unreadable], [])
    assert len(batch.prompts) == 40


def test_clean_prompts_are_labelled_static_and_wide_traffic() -> None:
    prompts = clean_prompts(world(), Random(2), 41, 0.125)
    streams = [prompt.stream for prompt in prompts]
    wanted: dict[Any, int] = {
        StreamKind.STATIC: 20,
        StreamKind.STATIC_BENIGN: 10,
        StreamKind.HARD_BENIGN: 5,
        StreamKind.BENIGN: 6,
    }
    assert {stream: streams.count(stream) for stream in set(streams)} == wanted
    assert all(prompt.harmful == world().label(prompt.text) for prompt in prompts)


def test_a_clean_batch_is_labelled_data_only() -> None:
    batch = clean_batch(world(), GUARD, Random(3), 20, dict.fromkeys(SLICES, 0.5))
    assert len(batch.prompts) == 20
    assert sum(batch.harmful) == 10
    for harmful, gain in zip(batch.harmful, batch.gains, strict=True):
        assert (gain > 0) is harmful


def test_a_cap_keeps_one_family_from_filling_the_batch() -> None:
    [common, *others] = attacks(5)
    buffer = [replace(common, technique="a")] * 95
    buffer += [replace(a, technique=t) for a, t in zip(others, "bcde", strict=True)]
    texts = {attack.text: attack.technique for attack in buffer}

    def families(cap: float | None) -> Counter[str]:
        selfplay = SELFPLAY.model_copy(update={"family_cap": cap})
        batch = make_batch(buffer, [], selfplay=selfplay)
        assert len(batch.prompts) == 40
        return Counter(texts[text] for text in batch.prompts[:12])

    assert families(None)["a"] >= 10
    assert families(0.25)["a"] == 3
    assert families(0.25).total() == 12


def test_clean_prompts_take_the_places_that_the_cap_leaves_free() -> None:
    alone = [replace(attack, technique="a") for attack in attacks(4)]
    selfplay = SELFPLAY.model_copy(update={"family_cap": 0.25})
    batch = make_batch(alone, [], selfplay=selfplay)
    assert len(batch.prompts) == 40
    assert sum(text in {a.text for a in alone} for text in batch.prompts) == 3
