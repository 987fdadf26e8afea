"""The outer loop of self-play, one update at a time.

The trainer knows the environment, two players, a surrogate and a schedule, and neither stores nor
signals: `step` does one update, `files` returns the whole state between two updates, and `load`
restores it. The result does not depend on how often the state was saved and loaded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tsgb.checkpoint.codec import FrozenTensors
from tsgb.config import Arm, Phase, RunConfig
from tsgb.envs.base import Environment
from tsgb.envs.pool import PoolAttack, PoolMember, draw, draw_capped, replay_weights
from tsgb.envs.rollout import play
from tsgb.errors import TrainingFailed
from tsgb.logging import get_logger
from tsgb.models.engine import Engine
from tsgb.models.torch_typing import flags, floats
from tsgb.models.weights import load_parameters, snapshot
from tsgb.protocols import Target
from tsgb.trainer.batches import SLICES, GuardBatch, clean_batch, draw_from, selfplay_batch
from tsgb.trainer.calibration import calibrated_threshold
from tsgb.trainer.players import AttackerPlayer, GuardPlayer, draw_openings
from tsgb.trainer.state import (
    CheckpointBuffers,
    SavedRole,
    TrainerState,
    checkpoint_files,
    restore,
)
from tsgb.types import (
    Buffer,
    Episode,
    Knowledge,
    Label,
    Scenario,
    Split,
    StreamKind,
    TrainingText,
)

Metrics = dict[str, Any]
"""Figures of one update, by name, as `metrics.jsonl` holds them."""
RECALIBRATE = 50
"""Guard updates between two calibrations inside a phase (each phase also starts with one)."""

ENOUGH_ATTACKS = 150
"""Number of attacks that all failed from which the next one succeeds less than once in fifty, with
95 % confidence (Hanley & Lippman-Hand 1983, the rule of three)."""


class Trainer:
    """Trains one arm of one run."""

    def __init__(
        self,
        config: RunConfig,
        env: Environment,
        engine: Engine,
        surrogate: Target,
        target: Engine | None = None,
    ) -> None:
        """Start both players anew.

        Args:
            config: configuration of the run.
            env: its world.
            engine: base of both players.
            surrogate: answers the attacks.
            target: the model behind the surrogate, if it is not the base: checkpoints name it.
        """
        self.config = config
        self.env = env
        self.engine = engine
        self.surrogate = surrogate
        self.target = target
        self.phases = config.phases()
        self.total_steps = config.total_steps
        self.rng = Random(f"tsgb-{config.seed}")
        self.generator = torch.Generator().manual_seed(config.seed * 1_000_003 + 17)
        self.state = TrainerState()
        self.attacker = AttackerPlayer(
            engine, env, config.attacker, engine.add_role(config.model, self.generator)
        )
        self.guard = GuardPlayer(
            engine, env, config.guard, engine.add_role(config.model, self.generator)
        )
        fresh = FrozenTensors(self.attacker.parameters)
        self.starts: dict[str, FrozenTensors] = {"sft": fresh, "warm": fresh}
        """Weights of attackers to restart from, by name; an empty phase leaves them alone."""
        self.columns: dict[str, FrozenTensors] = {}
        """Weights of the guards of the payoff's columns, by name."""
        self._label = lru_cache(maxsize=16_384)(env.label)
        self._calibrated: dict[str, Tensor] | None = None
        self._threshold = 0.0
        scenarios = env.scenarios(Split.TRAIN)
        self._harmful = [s for s in scenarios if s.harmful]
        self._benign = [s for s in scenarios if not s.harmful]

    # -- the schedule ----------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """True when every update of the schedule is made."""
        return self.state.step >= self.total_steps

    def phase(self) -> Phase:
        """Return the phase that the next update belongs to."""
        return next(p for p in self.phases if self.state.step < p.stop)

    def step(self) -> Metrics:
        """Do one update, and what its phase does at its start and end; returns metrics.

        Raises:
            TrainingFailed: A loss is not finite, or the attacker has nothing to learn from.
        """
        phase = self.phase()
        if self.state.step == phase.start:
            self._enter(phase)
        within = self.state.step - phase.start
        handler = {
            "sft_attacker": self._sft_attacker,
            "warmup": self._attack,
            "attacker": self._attack,
            "sft_guard": self._sft_guard,
            "guard": self._defend,
        }[phase.kind]
        try:
            metrics = handler(phase, within)
        except TrainingFailed as error:
            raise TrainingFailed(f"update {self.state.step + 1} ({phase.kind}): {error}") from error
        self.state.step += 1
        if self.state.step == phase.stop:
            self._leave(phase)
        return {
            "step": self.state.step,
            "episode": self.state.episode,
            "phase": phase.kind,
            "round": phase.round,
            "tau": self.state.threshold,
            "mu": max(self._prices().values()),
            **self._batches(),
            **metrics,
        }

    def _batches(self) -> Metrics:
        """Return the micro-batch, which becomes smaller where memory ends; none if not split."""
        tokens = self.engine.micro_batch_tokens
        return {"micro_batch_tokens": tokens} if tokens else {}

    # -- phases ----------------------------------------------------------------------------

    def _enter(self, phase: Phase) -> None:
        if phase.kind == "attacker":
            self.calibrate()
            start = "warm"
            if self.config.selfplay.reinitialise and phase.round % 2 == 1:
                start = "sft"
            load_parameters(self.attacker.parameters, self.starts[start])
            self.attacker.restart_optimizer()
            self.state.buffer = []
        elif phase.kind == "warmup":
            self.attacker.restart_optimizer()
        elif phase.kind == "guard":
            if phase.round == 0:
                self._add_column("sft")
            if self.config.arm is not Arm.SFT and not self.config.attacker_learns:
                self.state.buffer = self._sample_attacks(self.config.selfplay.buffer, forced=True)
            self.calibrate()

    def _leave(self, phase: Phase) -> None:
        if phase.kind == "sft_attacker":
            self.starts["sft"] = self.starts["warm"] = FrozenTensors(self.attacker.parameters)
        elif phase.kind == "warmup":
            self.starts["warm"] = FrozenTensors(self.attacker.parameters)
            self._add_member("warm")
            self._check_signal(phase)
        elif phase.kind == "attacker":
            fresh = round(self.config.selfplay.buffer * self.config.selfplay.resample)
            if fresh:
                learned = self.config.selfplay.buffer - fresh
                kept = self.state.buffer[-learned:] if learned else []
                self.state.buffer = kept + self._sample_attacks(fresh, forced=True)
            self._add_member(f"round-{phase.round + 1}")
        elif phase.kind == "guard":
            self._add_column(f"round-{phase.round + 1}")

    def _check_signal(self, phase: Phase) -> None:
        """Say that no attack of the warm-up violated; refuse to go on where that is no chance.

        Raises:
            TrainingFailed: So many attacks failed without any guard that none can be expected to
                succeed: the attacker has no reward to learn from, and the guard nothing to defend.
        """
        if self.state.successes:
            return
        config = self.config.attacker
        harmful = config.scenarios_per_step - self._num_benign(
            config.scenarios_per_step, config.benign_share
        )
        num = (phase.stop - phase.start) * harmful * config.group_size
        num += self.config.selfplay.payoff_attacks
        problem = (
            f"none of {num} attacks of the warm-up made the target {self.surrogate.name!r} violate "
            "the policy, though no guard stood before it: self-play has nothing to learn from"
        )
        if num >= ENOUGH_ATTACKS:
            raise TrainingFailed(
                f"update {self.state.step} (warmup): {problem}. Name a target that can be attacked "
                "(--target-model), or give the attacker more attacker.sft_steps or "
                "attacker.warmup_steps"
            )
        get_logger().warning(problem)

    def _sft_attacker(self, phase: Phase, within: int) -> Metrics:
        config = self.config.attacker
        demonstrations = self.env.demonstrations(self.rng, config.sft_batch, Knowledge.INITIAL)
        lr = config.sft_lr * _decay(within, phase.stop - phase.start, 0.1)
        metrics = self.attacker.imitate(demonstrations, lr)
        return {**metrics, "tokens": sum(1 + len(d.completion.split()) for d in demonstrations)}

    def _sft_guard(self, phase: Phase, within: int) -> Metrics:
        config = self.config.guard
        batch = clean_batch(self.env, config, self.rng, config.sft_batch)
        lr = config.sft_lr * _decay(within, phase.stop - phase.start, 0.3)
        return self._guard_update(batch, "weighted_ce", lr)

    def _attack(self, phase: Phase, within: int) -> Metrics:
        """Do one rollout and one policy-gradient update of the attacker."""
        config = self.config.attacker
        scenarios = self._draw_scenarios(config.scenarios_per_step, config.benign_share)
        openings = self._draw_openings(len(scenarios), config.group_size, config.forced_share)
        batch = self.attacker.write(scenarios, config.group_size, self.generator, openings)
        guarded = phase.kind == "attacker"
        ramp = config.anneal * (phase.stop - phase.start)
        weight = min(1.0, within / ramp) if guarded and ramp else float(guarded)
        episodes = self._play(batch.scenarios, batch.writing.texts, guarded, weight)
        rewards = [e.attacker_reward for e in episodes]
        metrics = self.attacker.learn(batch, rewards, config.lr)
        if guarded:
            kept = _usable(episodes)
            self.state.buffer = (self.state.buffer + kept)[-self.config.selfplay.buffer :]
        harmful = [e for e in episodes if e.scenario.harmful]
        violated = [e.judgement.label is Label.HARMFUL for e in harmful]
        return {
            **metrics,
            "tokens": batch.num_tokens,
            "reward": _mean([r for r in rewards if not math.isnan(r)]),
            "asr_no_guard": _mean(violated),
            "asr": _mean([v * (1 - e.p_block) for v, e in zip(violated, harmful, strict=True)]),
            "faithful": _mean([e.attack.faithful for e in episodes]),
            **self._families(harmful),
            "signatures": len(
                {e.attack.signature for e, v in zip(harmful, violated, strict=True) if v}
            ),
        }

    def _families(self, harmful: Sequence[Episode]) -> Metrics:
        """Return the largest share of a technique family, in runs that cap it in the replay."""
        if self.config.selfplay.family_cap is None:
            return {}
        families = Counter(e.attack.technique for e in harmful if e.attack.faithful)
        largest = max(families.values(), default=0)
        return {"family_share": largest / max(1, families.total())}

    def _defend(self, phase: Phase, within: int) -> Metrics:
        """Do one update of the guard."""
        if within and within % RECALIBRATE == 0:
            self.calibrate()
        config = self.config.guard
        done = phase.round * self.config.selfplay.guard_steps + within
        total = self.config.selfplay.rounds * self.config.selfplay.guard_steps
        lr = config.lr * _decay(done, total, config.lr_final)
        if self.config.arm is Arm.SFT:
            batch = clean_batch(self.env, config, self.rng, config.batch, self._prices())
            metrics = self._guard_update(batch, "weighted_ce", lr)
        else:
            pool: list[PoolAttack] = []
            num = round(config.batch * config.pool_share)
            buffer = self._labelled(self.state.buffer)
            if self.config.selfplay.pool and self.state.pool:
                pool = self._draw_pool(num)
            elif buffer:
                pool = draw_from(buffer, self.config.selfplay, self.rng, num)
            batch = selfplay_batch(
                self.env,
                config,
                self.config.selfplay,
                self.rng,
                buffer=buffer,
                pool_draw=pool,
                prices=self._prices(),
            )
            metrics = self._guard_update(batch, config.loss, lr)
        return metrics

    def _draw_pool(self, num: int) -> list[PoolAttack]:
        """Draw attacks of earlier attackers, those who beat the guards more often."""
        weights = replay_weights(np.array(self.state.payoff)).tolist()
        known = [
            (replace(member, attacks=tuple(attacks)), weight)
            for member, weight in zip(self.state.pool, weights, strict=True)
            if (attacks := self._labelled(member.attacks))
        ]
        members, weights = [member for member, _ in known], [weight for _, weight in known]
        cap = self.config.selfplay.family_cap
        if cap is None:
            return draw(members, weights, self.rng, num)
        return draw_capped(members, weights, self.rng, num, cap)

    def _labelled(self, attacks: Sequence[PoolAttack]) -> list[PoolAttack]:
        """Those whose label is exact: a free text that did not make the surrogate violate has none.

        The guard would otherwise be taught to block whatever a drifting attacker wrote.
        """
        return [a for a in attacks if a.violated is not False or self._label(a.text) is not None]

    def _guard_update(self, batch: GuardBatch, loss: str, lr: float) -> Metrics:
        config = self.config.guard
        replay: Sequence[TrainingText] = ()
        if config.lm_replay:
            replay = self.env.corpus("replay", self.rng, config.replay_batch)
        metrics, z_B = self.guard.learn(
            batch.prompts,
            batch.gains,
            loss_name=loss,
            replay=replay,
            lr=lr,
            generator=self.generator,
        )
        blocked = flags(z_B > self.state.threshold)
        false = [b for b, h in zip(blocked, batch.harmful, strict=True) if not h]
        missed = [not b for b, h in zip(blocked, batch.harmful, strict=True) if h]
        fpr = _mean(false)
        self._raise_prices(batch, blocked)
        return {
            **metrics,
            "lr": lr,
            "fpr": fpr,
            "fnr": _mean(missed),
            "distance_to_always_block": 1 - fpr,
            "tokens": sum(len(p.split()) for p in batch.prompts),
        }

    def _prices(self) -> dict[StreamKind, float]:
        """Return mu, the extra price of a false positive, by slice."""
        return {kind: self.state.prices.get(kind.value, 0.0) for kind in SLICES}

    def _raise_prices(self, batch: GuardBatch, blocked: Sequence[bool]) -> None:
        """Do one step of dual ascent on the false-positive rate of each slice of the batch.

        One price for all would be paid by ordinary traffic, which is most of the batch, for the
        prompts close to the border, which are most of the false positives.
        """
        config, budget = self.config.guard, self.config.calibration.fpr
        for kind, price in self._prices().items():
            false = [b for b, one in zip(blocked, batch.slices, strict=True) if one is kind]
            if false:
                raised = price + config.dual_lr * (_mean(false) - budget)
                self.state.prices[kind.value] = min(config.dual_max, max(0.0, raised))

    # -- pool and operating point ------------------------------------------------------------

    def calibrate(self) -> float:
        """Set tau to the Neyman-Pearson threshold of the current guard; returns it."""
        current = self.guard.parameters
        if self._calibrated is None or not all(
            torch.equal(current[name], tensor) for name, tensor in self._calibrated.items()
        ):
            self._threshold = calibrated_threshold(self.env, self.guard, self.config)
            self._calibrated = snapshot(self.guard.parameters)
        self.state.threshold = self._threshold
        return self.state.threshold

    def _add_member(self, name: str) -> None:
        attacks = self._sample_attacks(self.config.selfplay.payoff_attacks, forced=False)
        if not attacks:
            return  # it wrote nothing readable, so there is nothing to replay
        member = PoolMember(name=name, attacks=tuple(attacks))
        self.state.pool.append(member)
        row: list[float] = []
        kept = snapshot(self.guard.parameters)
        for column, threshold in zip(self.state.guards, self.state.thresholds, strict=True):
            load_parameters(self.guard.parameters, self.columns[column])
            row.append(self._success_rate(member, threshold))
        load_parameters(self.guard.parameters, kept)
        self.state.payoff.append(row)

    def _add_column(self, name: str) -> None:
        threshold = self.calibrate()
        self.state.guards.append(name)
        self.state.thresholds.append(threshold)
        self.columns[name] = FrozenTensors(self.guard.parameters)
        for row, member in zip(self.state.payoff, self.state.pool, strict=True):
            row.append(self._success_rate(member, threshold))
        self.state.best_guard = self._select()

    def _select(self) -> int:
        """The column whose worst case over all attackers is lowest; the newest among equals."""
        if not self.state.payoff:
            return len(self.state.guards) - 1
        worst = np.array(self.state.payoff).max(0)
        return int(len(worst) - 1 - np.argmin(worst[::-1]))

    def _success_rate(self, member: PoolMember, threshold: float) -> float:
        z_N = floats(self.guard.score([a.text for a in member.attacks]))
        hits = [
            bool(a.violated) and z <= threshold for a, z in zip(member.attacks, z_N, strict=True)
        ]
        return _mean(hits)

    def _sample_attacks(self, num: int, *, forced: bool) -> list[PoolAttack]:
        """Attacks of the current attacker on harmful scenarios, judged without a guard."""
        attacks: list[PoolAttack] = []
        for start in range(0, num, 256):
            count = min(256, num - start)
            scenarios = [self.rng.choice(self._harmful) for _ in range(count)]
            share = self.config.attacker.forced_share if forced else 0.0
            openings = self._draw_openings(count, 1, share)
            written = self.attacker.write(scenarios, 1, self.generator, openings).writing
            attacks += _usable(self._play(scenarios, written.texts, guarded=False, weight=0.0))
        return attacks

    def _play(
        self, scenarios: Sequence[Scenario], texts: Sequence[str], guarded: bool, weight: float
    ) -> list[Episode]:
        self.state.episode += len(texts)
        return play(
            self.env,
            scenarios,
            texts,
            target=self.surrogate.name,
            answer=self.surrogate.answer,
            score=(lambda prompts: floats(self.guard.score(prompts))) if guarded else None,
            threshold=self.state.threshold,
            attacker=self.config.attacker,
            guard=self.config.guard,
            guard_weight=weight,
            successes=self.state.successes,
        )

    def _draw_scenarios(self, num: int, benign_share: float) -> list[Scenario]:
        benign = self._num_benign(num, benign_share)
        return [self.rng.choice(self._harmful) for _ in range(num - benign)] + [
            self.rng.choice(self._benign) for _ in range(benign)
        ]

    def _num_benign(self, num: int, benign_share: float) -> int:
        return round(num * benign_share) if self._benign else 0

    def _draw_openings(self, groups: int, group: int, share: float) -> list[str]:
        choices = self.env.openings(Knowledge.INITIAL)
        return draw_openings(choices, self.rng, groups=groups, group=group, share=share)

    # -- state -----------------------------------------------------------------------------

    def files(
        self, now: datetime | None = None, buffers: CheckpointBuffers | None = None
    ) -> dict[str, Buffer]:
        """Return the five files of a checkpoint, and their parts as `FILE/PART`.

        The files are valid until `buffers` are filled again; parts never change.
        """
        return checkpoint_files(
            self.engine,
            self.config.model,
            self.state,
            self._roles(),
            rng=self.rng,
            generator=self.generator,
            now=now or datetime.now(UTC),
            buffers=buffers or CheckpointBuffers(),
            target=self.target,
        )

    def load(self, files: Mapping[str, Buffer]) -> None:
        """Continue from the five files of a checkpoint and their parts.

        Raises:
            CheckpointError: The files belong to another base model, target or version.
        """
        self.state = restore(
            files,
            self.engine,
            self._roles(),
            rng=self.rng,
            generator=self.generator,
            target=self.target,
            earlier_dtype=self.config.model.earlier_dtype,
        )

    def _roles(self) -> list[SavedRole]:
        return [
            SavedRole("attacker", self.attacker, self.starts),
            SavedRole("guard", self.guard, self.columns),
        ]


def _usable(episodes: Sequence[Episode]) -> list[PoolAttack]:
    """Attacks that the guard may train on: readable, undrifted, unreserved and judged."""
    return [
        PoolAttack(
            text=e.attack.text,
            harmful=e.scenario.harmful,
            violated=e.judgement.label is Label.HARMFUL if e.scenario.harmful else None,
            technique=e.attack.technique,
            signature=e.attack.signature,
            scenario_id=e.scenario.scenario_id,
        )
        for e in episodes
        if e.attack.faithful and not e.attack.reserved and e.judgement.label.scored
    ]


def _mean(values: Sequence[float]) -> float:
    """Return the mean, and 0 without values: JSON has no NaN."""
    return float(np.mean(values)) if values else 0.0


def _decay(done: int, total: int, final: float) -> float:
    """Fall linearly from 1 to `final`."""
    return 1 - (1 - final) * min(1.0, done / max(1, total))
