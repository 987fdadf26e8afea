"""How exploitable a guard is: a fresh attacker, trained against it, from its own start.

The attacker shares nothing with training but the frozen base: its supervised start has its own
seed, it warms up on the very target that is evaluated, and it sees the guard at its operating
point. It is shown every technique, reserved ones too, whatever the attacker of the training knew.
What it writes at the end is the measurement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from tsgb.config import RunConfig
from tsgb.envs.base import Environment
from tsgb.envs.rollout import judge_attacks, play
from tsgb.models.engine import Engine, Tick
from tsgb.models.weights import load_parameters, snapshot
from tsgb.protocols import Target
from tsgb.trainer.players import AttackerPlayer, draw_openings
from tsgb.types import Attack, Judgement, Knowledge, Response, Scenario, Split

Score = Callable[[Sequence[str]], Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BestResponseAttack:
    """One attack of a best response, with the target's un-guarded outcome."""

    scenario: Scenario
    """Scenario that the attack is for."""
    attack: Attack
    """Prompt that the attacker wrote."""
    judgement: Judgement
    """Judgement of the target's response."""
    response: Response | None = None
    """Answer of the target to the attack itself; None if it was not asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Practice:
    """Who answers in a target's place while an attacker begins to learn.

    Example: `Practice(target=surrogate, steps=30)`
    """

    target: Target
    """Answers the first updates; such as the surrogate, where each question of the target costs."""
    steps: int
    """Number of these updates."""


class FreshAttacker:
    """An attacker of the evaluation: one supervised start, many targets and guards."""

    def __init__(
        self, env: Environment, engine: Engine, config: RunConfig, br_seed: int, tick: Tick
    ) -> None:
        """Train the supervised start.

        Args:
            env: the world.
            engine: the base that the attacker starts from.
            config: attacker settings and evaluation budget.
            br_seed: number of the best response; starts of different numbers are independent.
            tick: progress.
        """
        self.env = env
        self.config = config
        self.tick = tick
        self.br_seed = br_seed
        self._rng = Random(f"best-response-{config.seed}-{br_seed}")
        self._generator = torch.Generator().manual_seed(self._rng.getrandbits(62))
        self.player = AttackerPlayer(
            engine, env, config.attacker, engine.add_role(config.model, self._generator)
        )
        known = Knowledge.EVERYTHING if config.evaluation.reserved else Knowledge.TRAINING
        for _ in range(config.attacker.sft_steps):
            demonstrations = env.demonstrations(self._rng, config.attacker.sft_batch, known)
            self.player.imitate(demonstrations, config.attacker.sft_lr)
            tick()
        self._start = snapshot(self.player.parameters)
        self._scenarios = [s for s in env.scenarios(Split.TEST) if s.harmful]
        self._openings = env.openings(known)

    def warm_up(self, target: Target, practice: Practice | None = None) -> dict[str, Tensor]:
        """Learn to break the bare target; returns the attacker's parameters."""
        rng, generator = self._generators(f"warm-up-{target.name}")
        steps = self.config.evaluation.warmup_steps
        return self._train(self._start, target, None, 0.0, steps, rng, generator, practice)

    def respond(
        self,
        warm: dict[str, Tensor],
        target: Target,
        score: Score,
        threshold: float,
        name: str,
        practice: Practice | None = None,
    ) -> dict[str, Tensor]:
        """Learn to break the target behind a guard; returns the attacker's parameters."""
        rng, generator = self._generators(f"respond-{target.name}-{name}")
        steps = self.config.evaluation.attack_steps
        return self._train(warm, target, score, threshold, steps, rng, generator, practice)

    def sample_attacks(
        self,
        parameters: dict[str, Tensor],
        target: Target,
        name: str,
        num: int | None = None,
    ) -> list[BestResponseAttack]:
        """Sample attacks on test scenarios and ask the target about each.

        Args:
            parameters: The attacker's.
            target: Answers.
            name: Name of the guard that the attacker learned against.
            num: Number of attacks; without it as many as the configuration says.
        """
        rng, generator = self._generators(f"attempts-{target.name}-{name}")
        load_parameters(self.player.parameters, parameters)
        found: list[BestResponseAttack] = []
        wanted = self.config.evaluation.prompts if num is None else num
        # Every scenario equally often: the cluster bootstrap resamples scenarios.
        order = list(self._scenarios)
        rng.shuffle(order)
        scenarios = [order[i % len(order)] for i in range(wanted)]
        for start in range(0, wanted, 256):
            part = scenarios[start : start + 256]
            writing = self.player.write(part, 1, generator).writing
            attacks = [self.env.read(s, t) for s, t in zip(part, writing.texts, strict=True)]
            judged = judge_attacks(
                self.env,
                target.name,
                target.answer,
                part,
                attacks,
                reserved=self.config.evaluation.reserved,
            )
            found += [
                BestResponseAttack(scenario=s, attack=a, judgement=j.judgement, response=j.response)
                for s, a, j in zip(part, attacks, judged, strict=True)
            ]
        return found

    def _train(
        self,
        start: dict[str, Tensor],
        target: Target,
        score: Score | None,
        threshold: float,
        steps: int,
        rng: Random,
        generator: torch.Generator,
        practice: Practice | None,
    ) -> dict[str, Tensor]:
        config = self.config.attacker
        load_parameters(self.player.parameters, start)
        self.player.restart_optimizer()
        successes: Counter[str] = Counter()
        for step in range(steps):
            scenarios = [rng.choice(self._scenarios) for _ in range(config.scenarios_per_step)]
            openings = draw_openings(
                self._openings,
                rng,
                groups=len(scenarios),
                group=config.group_size,
                share=config.forced_share,
            )
            batch = self.player.write(scenarios, config.group_size, generator, openings)
            asked = practice.target if practice and step < practice.steps else target
            ramp = config.anneal * steps
            episodes = play(
                self.env,
                batch.scenarios,
                batch.writing.texts,
                target=asked.name,
                answer=asked.answer,
                score=score,
                threshold=threshold,
                attacker=config,
                guard=self.config.guard,
                guard_weight=min(1.0, step / ramp) if ramp else 1.0,
                successes=successes,
                reserved=self.config.evaluation.reserved,
            )
            self.player.learn(batch, [e.attacker_reward for e in episodes], config.lr)
            self.tick()
        return snapshot(self.player.parameters)

    def _generators(self, purpose: str) -> tuple[Random, torch.Generator]:
        """Private generators a purpose, so that results do not depend on the order of work."""
        rng = Random(f"{self.config.seed}-{self.br_seed}-{purpose}")
        return rng, torch.Generator().manual_seed(rng.getrandbits(62))
