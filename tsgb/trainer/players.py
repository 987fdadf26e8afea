"""The two players of a game: a role of the engine, its optimizer, and how each of them learns.

Players know models and losses; rounds, pools and rewards are the loop's business.
Shape letters: B prompts; G groups of K completions, N = G x K in all, L tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from random import Random

import torch
from torch import Tensor, nn

from tsgb.config import AttackerConfig, GuardConfig
from tsgb.envs.base import Environment
from tsgb.errors import TrainingFailed
from tsgb.models.engine import Engine, Role, Writing
from tsgb.models.optimizer import AdamW, clip_norm
from tsgb.models.torch_typing import backward
from tsgb.trainer.advantages import leave_one_out, live_groups, scale_by_class
from tsgb.trainer.losses import (
    binary_entropy,
    binary_kl,
    clipped_policy_gradient,
    exact_policy_gradient,
    masked_mean,
    sampled_policy_gradient,
    weighted_cross_entropy,
)
from tsgb.types import Demonstration, Scenario, TrainingText

Losses = dict[str, Tensor]
"""Parts of a loss, by name; `total` is what is minimised."""
Metrics = dict[str, float]
"""Figures of one update, by name."""


class Player:
    """A role that learns."""

    name = "player"
    """Name of the role, which its settings have too."""

    def __init__(self, engine: Engine, role: Role, lr: float) -> None:
        """Train `role` of `engine`, at first with learning rate `lr`."""
        self.engine = engine
        self.role = role
        self._lr = lr
        self.restart_optimizer()

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Trainable parameters by the names under which they are saved."""
        return self.engine.parameters(self.role)

    def restart_optimizer(self) -> None:
        """Forget moments: a re-initialised player starts without them.

        There is no weight decay: it would pull whole weights to zero, not to the base.
        """
        self.optimizer = AdamW(list(self.parameters.values()), lr=self._lr)

    def update(
        self, compute: Callable[[], Losses], lr: float, max_norm: float
    ) -> tuple[Losses, float]:
        """Do one optimizer update.

        Args:
            compute: Returns the losses. Where memory ends it is called again, so it draws no random
                numbers.
            lr: Learning rate.
            max_norm: Euclidean norm that gradients are scaled down to.

        Returns:
            The losses without their gradients, and the gradient's norm before clipping.

        Raises:
            TrainingFailed: The loss or the gradient is not finite; no weight was changed.
        """

        def passes() -> Losses:
            losses = compute()
            self.optimizer.zero_grad()
            backward(losses["total"])
            return {name: value.detach() for name, value in losses.items()}

        losses = self.engine.within_memory(passes)
        norm = clip_norm(list(self.parameters.values()), max_norm)
        loss = float(losses["total"])
        if not (isfinite(loss) and isfinite(norm)):
            self.optimizer.zero_grad()
            raise TrainingFailed(
                f"the {self.name}'s loss is {loss:g} and the norm of its gradient {norm:g}, so its "
                "weights were left as they were, and the last checkpoint is kept: start a new run "
                f"with a lower {self.name}.lr or {self.name}.sft_lr (the rate was {lr:g}), a lower "
                f"{self.name}.max_grad_norm (it is {max_norm:g}), or model.dtype = 'float32'"
            )
        self.optimizer.step(lr)
        self.engine.tidy()
        return losses, norm


@dataclass(slots=True)
class AttackBatch:
    """A batch of attacks, and what is needed to learn from it."""

    scenarios: list[Scenario]
    """[N] scenario of each attack, grouped."""
    writing: Writing
    """The N attacks as the attacker sampled them."""

    @property
    def num_tokens(self) -> int:
        """Tokens that were written, forced openings and end tokens included."""
        return int(self.writing.lengths_N.sum())


def draw_openings(
    choices: Sequence[str], rng: Random, *, groups: int, group: int, share: float
) -> list[str]:
    """Draw the quota of techniques: a `share` of groups gets a forced opening, the others none.

    Returns:
        [N] One opening a completion, equal within a group; empty where none is forced.
    """
    drawn: list[str] = []
    for _ in range(groups):
        forced = rng.random() < share
        drawn += [rng.choice(choices) if forced else ""] * group
    return drawn


class AttackerPlayer(Player):
    """Writes prompts and learns from what they earned."""

    name = "attacker"

    def __init__(
        self, engine: Engine, env: Environment, config: AttackerConfig, role: Role
    ) -> None:
        super().__init__(engine, role, config.lr)
        self.env = env
        self.config = config

    def imitate(self, demonstrations: Sequence[Demonstration], lr: float) -> Metrics:
        """Do one supervised update on demonstrations."""
        texts = [
            TrainingText(
                chat=(
                    *self.env.attacker_messages(d.scenario),
                    {"role": "assistant", "content": d.completion},
                )
            )
            for d in demonstrations
        ]
        losses, norm = self.update(
            lambda: {"total": self.engine.text_loss(self.role, texts)},
            lr,
            self.config.max_grad_norm,
        )
        return {"loss": float(losses["total"]), "grad_norm": norm}

    def write(
        self,
        scenarios: Sequence[Scenario],
        group: int,
        generator: torch.Generator,
        openings: Sequence[str] | None = None,
    ) -> AttackBatch:
        """Sample `group` attacks a scenario."""
        writing = self.engine.write(
            self.role,
            [self.env.attacker_messages(s) for s in scenarios],
            group=group,
            max_new_tokens=self.config.max_new_tokens,
            generator=generator,
            temperature=self.config.temperature,
            openings=openings,
            learns=group > 1,  # a single completion has no baseline
        )
        return AttackBatch([s for s in scenarios for _ in range(group)], writing)

    def learn(self, batch: AttackBatch, rewards: Sequence[float], lr: float) -> Metrics:
        """Do one clipped leave-one-out policy-gradient update.

        Args:
            batch: attacks of this player.
            rewards: [N] reward of each attack; NaN where it could not be judged.
            lr: learning rate.
        """
        config = self.config
        K = config.group_size
        rewards_GK = torch.tensor(list(rewards), device="cpu").view(-1, K)
        live_G = live_groups(rewards_GK)
        if not bool(live_G.any()):
            return {"loss": 0.0, "grad_norm": 0.0, "kl": 0.0, "entropy": 0.0, "live_groups": 0.0}
        classes_G = torch.tensor([float(s.harmful) for s in batch.scenarios[::K]], device="cpu")
        A_GK = scale_by_class(leave_one_out(rewards_GK)[live_G], classes_G[live_G])
        part = batch.writing.select(live_G.repeat_interleave(K).nonzero().squeeze(-1))
        mask_NL = part.sampled_NL.float()
        scale = float(len(batch.scenarios) * config.max_new_tokens)

        def compute() -> Losses:
            now = self.engine.logps(self.role, part, config.temperature)
            kl = masked_mean(now.kl_NL, mask_NL)
            entropy = masked_mean(now.entropy_NL, mask_NL)
            policy = clipped_policy_gradient(
                now.logp_NL, part.logp_NL, A_GK.flatten(), mask_NL, config.clip, scale
            )
            total = policy + config.kl * kl - config.entropy * entropy
            return {"total": total, "policy": policy, "kl": kl, "entropy": entropy}

        losses, norm = self.update(compute, lr, config.max_grad_norm)
        return {
            "loss": float(losses["policy"]),
            "kl": float(losses["kl"]),
            "entropy": float(losses["entropy"]),
            "grad_norm": norm,
            "live_groups": float(live_G.float().mean()),
        }


class GuardPlayer(Player):
    """Scores prompts and learns from both rewards of each."""

    name = "guard"

    def __init__(self, engine: Engine, env: Environment, config: GuardConfig, role: Role) -> None:
        super().__init__(engine, role, config.lr)
        self.config = config
        self.template = env.guard_template()

    def score(self, prompts: Sequence[str]) -> Tensor:
        """Return verdict scores [N], without gradients."""
        return self.engine.score_all(self.role, self.template, prompts)

    def learn(
        self,
        prompts: Sequence[str],
        gains: Sequence[float],
        *,
        loss_name: str,
        replay: Sequence[TrainingText],
        lr: float,
        generator: torch.Generator,
    ) -> tuple[Metrics, Tensor]:
        """Do one update.

        Args:
            prompts: [B] the batch.
            gains: [B] reward of blocking minus reward of allowing.
            loss_name: loss of the policy, as `GuardConfig.loss` names it.
            replay: texts for the language-model loss.
            lr: learning rate.
            generator: draws verdicts for `sampled_pg`.

        Returns:
            Metrics, and the scores [B] before the update.
        """
        config = self.config
        gain_B = torch.tensor(list(gains), device="cpu")
        drawn_B = torch.zeros(0, device="cpu")
        if loss_name == "sampled_pg":
            drawn_B = torch.rand(len(prompts), generator=generator, device="cpu")

        def compute() -> Losses:
            z_B = self.engine.scores(self.role, self.template, prompts)
            if loss_name == "exact_pg":
                policy = exact_policy_gradient(z_B, gain_B)
            elif loss_name == "weighted_ce":
                policy = weighted_cross_entropy(z_B, gain_B)
            else:
                policy = sampled_policy_gradient(z_B, gain_B, drawn_B)
            entropy = binary_entropy(z_B)
            total = policy
            kl = replayed = torch.zeros((), device="cpu")
            if loss_name != "weighted_ce":
                total = total - config.entropy * entropy
            if config.kl:
                with torch.no_grad():
                    reference_B = self.engine.scores(self.engine.base, self.template, prompts)
                kl = binary_kl(z_B, reference_B)
                total = total + config.kl * kl
            if config.lm_replay and replay:
                replayed = self.engine.text_loss(self.role, replay)
                total = total + config.lm_replay * replayed
            parts = {"policy": policy, "kl": kl, "entropy": entropy, "replayed": replayed}
            return {"total": total, "scores": z_B, **parts}

        losses, norm = self.update(compute, lr, config.max_grad_norm)
        return {
            "loss": float(losses["policy"]),
            "kl": float(losses["kl"]),
            "entropy": float(losses["entropy"]),
            "lm_loss": float(losses["replayed"]),
            "grad_norm": norm,
        }, losses["scores"]
