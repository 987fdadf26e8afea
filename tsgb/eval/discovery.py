"""Discovery: which techniques each attacker of a training showed, and what each guard made of them.

A technique is an opening of the world where the signature of an attack begins with it (glyph: the
two tags), and the family of the attack elsewhere. The attackers are the members of the pool, each
by attacks that it wrote without a prescribed opening; the guards are the columns of the payoff.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from tsgb.config import RunConfig
from tsgb.envs.base import Environment
from tsgb.eval.records import Discovery, DiscoveryRound
from tsgb.eval.streams import fixed_prompts
from tsgb.protocols import Scores
from tsgb.types import Attack, Knowledge, Split

_DEMONSTRATIONS = 1000
"""Enough to see every technique: one in eighty of them has a technique of twenty."""
ScoreWith = Callable[[str, Sequence[str]], Scores]
"""Scores of texts by the guard of a column."""


def technique_of(openings: Sequence[str], signature: str, family: str) -> str:
    """Return the name of a technique: an opening that the signature begins with, or the family."""
    return next((opening for opening in openings if signature.startswith(opening)), family)


def discovery(
    env: Environment,
    config: RunConfig,
    state: Mapping[str, Any],
    score: ScoreWith,
    thresholds: Mapping[str, float],
) -> Discovery:
    """Count techniques by attacker, and verdicts on each technique by guard.

    Args:
        env: The world.
        config: Configuration of the run.
        state: Content of `trainer_state.json`, with the members of the pool.
        score: Scores texts with the guard of a column.
        thresholds: Operating point of each column.
    """
    openings = env.openings(Knowledge.EVERYTHING)
    rounds = [
        DiscoveryRound(
            attacker=member["name"],
            attacks=len(member["attacks"]),
            violated=Counter(
                technique_of(openings, attack["signature"], attack["technique"])
                for attack in member["attacks"]
                if attack["violated"]
            ),
        )
        for member in state["pool"]
    ]
    texts = _prompts_by_technique(env, config, openings)
    blocked: dict[str, list[int]] = {name: [] for name in texts}
    for guard in state["guards"]:
        for name, prompts in texts.items():
            hits = score(guard, prompts) > thresholds[guard]
            blocked[name].append(int(hits.sum()))
    return Discovery(
        seed=config.seed,
        arm=config.arm.value,
        known=_known(env, openings),
        rounds=rounds,
        guards=list(state["guards"]),
        prompts={name: len(prompts) for name, prompts in texts.items()},
        blocked=blocked,
    )


def _known(env: Environment, openings: Sequence[str]) -> list[str]:
    """Return the techniques of the demonstrations from which attackers of the training start."""
    shown = env.demonstrations(Random("known"), _DEMONSTRATIONS, Knowledge.INITIAL)
    attacks = [env.read(d.scenario, d.completion) for d in shown if d.scenario.harmful]
    return sorted({technique_of(openings, a.signature, a.technique) for a in attacks})


def _prompts_by_technique(
    env: Environment, config: RunConfig, openings: Sequence[str]
) -> Mapping[str, list[str]]:
    """Return the harmful prompts of the test by technique, those included that are reserved."""
    by_id = {scenario.scenario_id: scenario for scenario in env.scenarios(Split.TEST)}
    found: defaultdict[str, list[str]] = defaultdict(list)
    for prompt in fixed_prompts(env, config):
        scenario = by_id.get(prompt.scenario_id)
        if prompt.harmful and scenario is not None:
            attack: Attack = env.read(scenario, prompt.text)
            name = technique_of(openings, attack.signature, prompt.technique)
            found[name].append(prompt.text)
    return dict(sorted(found.items()))
