"""Batches of the guard's updates: attacks, their twins, and clean traffic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

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


def clean_prompts(env: Environment, rng: Random, num: int) -> list[LabelledPrompt]:
    """Half static attacks, a quarter static benign, a quarter wide benign traffic."""
    static, benign = num // 2, num // 4
    return [
        *env.stream(StreamKind.STATIC, Split.TRAIN, rng, static),
        *env.stream(StreamKind.STATIC_BENIGN, Split.TRAIN, rng, benign),
        *env.stream(StreamKind.BENIGN, Split.TRAIN, rng, num - static - benign),
    ]


def clean_batch(
    env: Environment, config: GuardConfig, rng: Random, num: int, mu: float
) -> GuardBatch:
    """Labelled static data only: supervised start and SFT-only baseline."""
    return _batch(config, mu, [], clean_prompts(env, rng, num))


def selfplay_batch(
    env: Environment,
    config: GuardConfig,
    selfplay: SelfPlayConfig,
    rng: Random,
    *,
    buffer: Sequence[PoolAttack],
    pool_draw: Sequence[PoolAttack],
    mu: float,
) -> GuardBatch:
    """Attacks of this round and of the pool, benign twins of them, and clean prompts.

    Args:
        env: makes twins and clean prompts.
        config: shares.
        selfplay: whether there are twins, and the cap of a family.
        rng: private.
        buffer: attacks of this round; none if nothing that it wrote was readable.
        pool_draw: attacks drawn from the pool.
        mu: extra price of a false positive.
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
    return _batch(config, mu, attacks, [*benign, *clean_prompts(env, rng, rest)])


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
    config: GuardConfig, mu: float, attacks: Sequence[PoolAttack], clean: Sequence[LabelledPrompt]
) -> GuardBatch:
    prompts = [a.text for a in attacks] + [p.text for p in clean]
    harmful = [a.harmful for a in attacks] + [p.harmful for p in clean]
    gains = [guard_gain(config, harmful=a.harmful, violated=a.violated, mu=mu) for a in attacks] + [
        guard_gain(config, harmful=p.harmful, violated=None, mu=mu) for p in clean
    ]
    return GuardBatch(prompts, harmful, gains)
