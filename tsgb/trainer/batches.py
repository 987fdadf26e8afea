"""Batches of the guard's updates: attacks, their twins, and clean traffic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import MappingProxyType

from tsgb.config import GuardConfig, SelfPlayConfig
from tsgb.envs.base import Environment
from tsgb.envs.pool import PoolAttack, PoolMember, draw_capped
from tsgb.envs.rubric import guard_gain
from tsgb.types import Attack, LabelledPrompt, Split, StreamKind


@dataclass(frozen=True, slots=True)
class GuardBatch:
    """B prompts with their gains."""

    prompts: list[str]
    """[N] prompts."""
    harmful: list[bool]
    """[N] labels, True for a harmful prompt."""
    gains: list[float]
    """Reward of blocking minus reward of allowing."""
    slices: list[StreamKind | None]
    """[N] slice of `SLICES` that a benign prompt belongs to; None for a harmful one."""


SLICES = (StreamKind.BENIGN, StreamKind.HARD_BENIGN, StreamKind.TWINS)
"""Benign traffic whose false positives are counted, and priced, apart."""
NO_PRICE: Mapping[StreamKind, float] = MappingProxyType(dict.fromkeys(SLICES, 0.0))
"""False positives cost what the rubric says."""


def clean_prompts(
    env: Environment, rng: Random, num: int, hard_share: float
) -> list[LabelledPrompt]:
    """Half static attacks; of the rest half static benign, half wide and hard benign traffic.

    Args:
        env: The world.
        rng: Private.
        num: Number of prompts.
        hard_share: Share of them that is close to the policy's border, at most a quarter.
    """
    static, benign = num // 2, num // 4
    hard = min(num - static - benign, round(num * hard_share))
    return [
        *env.stream(StreamKind.STATIC, Split.TRAIN, rng, static),
        *env.stream(StreamKind.STATIC_BENIGN, Split.TRAIN, rng, benign),
        *env.stream(StreamKind.HARD_BENIGN, Split.TRAIN, rng, hard),
        *env.stream(StreamKind.BENIGN, Split.TRAIN, rng, num - static - benign - hard),
    ]


def clean_batch(
    env: Environment,
    config: GuardConfig,
    rng: Random,
    num: int,
    prices: Mapping[StreamKind, float] = NO_PRICE,
) -> GuardBatch:
    """Labelled static data only: supervised start and SFT-only baseline."""
    return _batch(config, prices, [], clean_prompts(env, rng, num, config.hard_share))


def selfplay_batch(
    env: Environment,
    config: GuardConfig,
    selfplay: SelfPlayConfig,
    rng: Random,
    *,
    buffer: Sequence[PoolAttack],
    pool_draw: Sequence[PoolAttack],
    prices: Mapping[StreamKind, float] = NO_PRICE,
) -> GuardBatch:
    """Attacks of this round and of the pool, benign twins of them, and clean prompts.

    Args:
        env: makes twins and clean prompts.
        config: shares.
        selfplay: whether there are twins, and the cap of a family.
        rng: private.
        buffer: attacks of this round; none if nothing that it wrote was readable.
        pool_draw: attacks drawn from the pool.
        prices: extra price of a false positive, by slice.
    """
    num_current = round(config.batch * config.current_share) if buffer else 0
    current = draw_from(buffer, selfplay, rng, num_current)
    attacks = [*current, *pool_draw]
    benign: list[LabelledPrompt] = []
    if selfplay.twins and attacks:
        for _ in range(round(config.batch * config.twins_share)):
            twin = env.twin(as_attack(rng.choice(attacks)), rng)
            if twin is not None:
                benign.append(twin)
    rest = max(0, config.batch - len(attacks) - len(benign))
    clean = clean_prompts(env, rng, rest, config.hard_share)
    return _batch(config, prices, attacks, [*benign, *clean])


def draw_from(
    buffer: Sequence[PoolAttack], selfplay: SelfPlayConfig, rng: Random, num: int
) -> list[PoolAttack]:
    """Draw `num` of the attacks with replacement; fewer where the cap of a family leaves gaps."""
    if selfplay.family_cap is None:
        return [rng.choice(buffer) for _ in range(num)]
    current = PoolMember(name="current", attacks=tuple(buffer))
    return draw_capped([current], [1.0], rng, num, selfplay.family_cap)


def as_attack(attack: PoolAttack) -> Attack:
    """Return an attack with all that the environment needs to make a twin."""
    return Attack(
        scenario_id=attack.scenario_id,
        text=attack.text,
        faithful=True,
        technique=attack.technique,
        signature=attack.signature,
    )


def _batch(
    config: GuardConfig,
    prices: Mapping[StreamKind, float],
    attacks: Sequence[PoolAttack],
    clean: Sequence[LabelledPrompt],
) -> GuardBatch:
    prompts = [*attacks, *clean]
    slices = [_slice_of(prompt) for prompt in prompts]
    gains = [
        guard_gain(
            config,
            harmful=prompt.harmful,
            violated=prompt.violated if isinstance(prompt, PoolAttack) else None,
            mu=0.0 if kind is None else prices[kind],
        )
        for prompt, kind in zip(prompts, slices, strict=True)
    ]
    return GuardBatch([p.text for p in prompts], [p.harmful for p in prompts], gains, slices)


def _slice_of(prompt: PoolAttack | LabelledPrompt) -> StreamKind | None:
    """Return the slice of a benign prompt; what an attacker wrote has the form of an attack."""
    if prompt.harmful:
        return None
    if isinstance(prompt, PoolAttack):
        return StreamKind.TWINS
    return prompt.stream if prompt.stream in SLICES else StreamKind.BENIGN
