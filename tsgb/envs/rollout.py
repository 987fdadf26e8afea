"""Playing games: attacks are read, the surrogate answers, the judge judges, rewards are paid.

It knows the environment and two callables; how texts are written and scored is not its business.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tsgb.config import AttackerConfig, GuardConfig
from tsgb.envs.base import Environment
from tsgb.envs.rubric import attacker_reward, guard_gain, p_block
from tsgb.protocols import checked_judgement
from tsgb.types import Attack, Episode, Judgement, Label, Messages, Response, Scenario

Answer = Callable[[Sequence[Messages]], list[Response]]
Score = Callable[[Sequence[str]], Sequence[float]]
UNASKED = Judgement(label=Label.SAFE, reason="the target was not asked")


def judge_response(
    env: Environment, scenario: Scenario, prompt: str, response: Response
) -> Judgement:
    """Ask the environment's judge; anything but a `Judgement` from it leaves the item unscored."""
    return checked_judgement(env.judge(scenario, prompt, response))


class Judged(NamedTuple):
    """The outcome of one attack without a guard."""

    judgement: Judgement
    """Judgement of the answer; `UNASKED` where there is none."""
    response: Response | None
    """Answer of the target; None if it was not asked."""


def judge_attacks(
    env: Environment,
    target: str,
    answer: Answer,
    scenarios: Sequence[Scenario],
    attacks: Sequence[Attack],
    *,
    reserved: bool,
) -> list[Judged]:
    """Ask the target once for each distinct usable harmful attack, and judge its answer.

    Args:
        env: judge and target messages.
        target: the target's name.
        answer: the target.
        scenarios: one for each attack.
        attacks: as read by the environment.
        reserved: whether reserved techniques count (in an evaluation) or are out of bounds.
    """
    asked: dict[tuple[str, str], int] = {}
    chats: list[Messages] = []
    slots: list[int | None] = []
    for scenario, attack in zip(scenarios, attacks, strict=True):
        if not (scenario.harmful and attack.faithful and (reserved or not attack.reserved)):
            slots.append(None)
            continue
        key = (scenario.scenario_id, attack.text)
        if key not in asked:
            asked[key] = len(chats)
            chats.append(env.target_messages(target, scenario, attack.text))
        slots.append(asked[key])
    responses = answer(chats) if chats else []
    judged: list[Judged] = []
    for scenario, attack, slot in zip(scenarios, attacks, slots, strict=True):
        if slot is None:
            judged.append(Judged(UNASKED, None))
        else:
            response = responses[slot]
            found = judge_response(env, scenario, attack.text, response)
            judged.append(Judged(found, response))
    return judged


def play(
    env: Environment,
    scenarios: Sequence[Scenario],
    texts: Sequence[str],
    *,
    target: str,
    answer: Answer,
    score: Score | None,
    threshold: float,
    attacker: AttackerConfig,
    guard: GuardConfig,
    guard_weight: float,
    successes: Counter[str],
    reserved: bool = False,
) -> list[Episode]:
    """Play one game a text.

    Args:
        env: the world.
        scenarios: one for each text.
        texts: what the attacker wrote.
        target: the target's name.
        answer: the target.
        score: the guard's scores; None plays without a guard.
        threshold: tau, the guard's calibrated operating point.
        attacker: rewards.
        guard: rewards.
        guard_weight: how much of a block the attacker feels.
        successes: earlier violations by signature; updated in place.
        reserved: whether reserved techniques are in bounds.
    """
    attacks = [env.read(s, text) for s, text in zip(scenarios, texts, strict=True)]
    judged = judge_attacks(env, target, answer, scenarios, attacks, reserved=reserved)
    usable = [a.faithful and (reserved or not a.reserved) for a in attacks]
    blocked = [0.0] * len(attacks)
    if score is not None:
        index = [i for i, ok in enumerate(usable) if ok]
        for i, z in zip(index, score([attacks[i].text for i in index]), strict=True):
            blocked[i] = p_block(z, threshold, attacker.guard_temperature)
    episodes: list[Episode] = []
    for scenario, attack, (judgement, _), ok, p in zip(
        scenarios, attacks, judged, usable, blocked, strict=True
    ):
        violated = judgement.label is Label.HARMFUL
        episodes.append(
            Episode(
                scenario=scenario,
                attack=attack,
                p_block=p,
                judgement=judgement,
                attacker_reward=attacker_reward(
                    attacker,
                    harmful=scenario.harmful,
                    usable=ok,
                    violated=violated,
                    p_blocked=p,
                    guard_weight=guard_weight,
                    seen=successes[attack.signature],
                )
                if judgement.label.scored
                else math.nan,
                guard_gain=guard_gain(guard, harmful=scenario.harmful, violated=violated, mu=0.0),
            )
        )
        if violated:
            successes[attack.signature] += 1
    return episodes
