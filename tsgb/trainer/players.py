"""The two players as the trainer sees them: an adapter, its optimizer, and how it is asked.

They know models and losses; rounds, pools and rewards are the loop's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tsgb.config import AttackerConfig, GuardConfig, ModelConfig
from tsgb.envs.base import Environment
from tsgb.models.fast.adapters import Adapter
from tsgb.models.fast.engine import LanguageModel
from tsgb.models.fast.generation import Completions
from tsgb.models.fast.network import LARGE_VOCABULARY
from tsgb.models.optimizer import AdamW, clip_norm
from tsgb.models.torch_typing import backward, ints
from tsgb.trainer.advantages import leave_one_out, live_groups, scale_by_class
from tsgb.trainer.losses import (
    binary_entropy,
    binary_kl,
    clipped_policy_gradient,
    exact_policy_gradient,
    full_kl,
    k3_kl,
    sampled_policy_gradient,
    weighted_cross_entropy,
)
from tsgb.types import Demonstration, Scenario, TrainingText

Metrics = dict[str, float]


def make_optimizer(adapter: Adapter, lr: float) -> AdamW:
    """AdamW without weight decay (decay would pull whole weights to zero, not to the base)."""
    return AdamW(list(adapter.parameters.values()), lr=lr)


def apply_update(
    loss: Tensor, adapter: Adapter, optimizer: AdamW, lr: float, max_norm: float
) -> float:
    """One optimizer update; returns the gradient's norm before clipping."""
    optimizer.zero_grad()
    backward(loss)
    norm = clip_norm(list(adapter.parameters.values()), max_norm)
    optimizer.step(lr)
    return norm


@dataclass(slots=True)
class Writing:
    """One batch of attacks and what is needed to learn from it. N = groups x K."""

    scenarios: list[Scenario]
    """[N] grouped."""
    texts: list[str]
    prompts: list[list[int]]
    """[N] token rows."""
    completions: Completions
    num_tokens: int


def draw_openings(
    choices: Sequence[str], rng: Random, *, groups: int, group: int, share: float
) -> list[str]:
    """The quota of techniques: a `share` of groups gets a forced opening, the others none.

    Returns:
        One opening a completion, equal within a group.
    """
    drawn: list[str] = []
    for _ in range(groups):
        forced = rng.random() < share
        drawn += [rng.choice(choices) if forced else ""] * group
    return drawn


class AttackerPlayer:
    """Writes prompts and learns from what they earned."""

    def __init__(
        self, model: LanguageModel, env: Environment, config: AttackerConfig, adapter: Adapter
    ) -> None:
        self.model = model
        self.env = env
        self.config = config
        self.adapter = adapter
        self.optimizer = make_optimizer(adapter, config.lr)

    def restart_optimizer(self) -> None:
        """Forget moments: a re-initialised attacker starts without them."""
        self.optimizer = make_optimizer(self.adapter, self.config.lr)

    def imitate(self, demonstrations: Sequence[Demonstration], lr: float) -> Metrics:
        """One supervised update on demonstrations."""
        tokenizer = self.model.tokenizer
        texts: list[TrainingText] = []
        for demonstration in demonstrations:
            chat = self.env.attacker_messages(demonstration.scenario)
            texts.append(
                TrainingText(text=tokenizer.chat_text(chat), completion=demonstration.completion)
            )
        loss = self.model.text_loss(self.adapter, texts)
        norm = apply_update(loss, self.adapter, self.optimizer, lr, self.config.max_grad_norm)
        self.model.tidy()
        return {"loss": float(loss.detach()), "grad_norm": norm}

    def write(
        self,
        scenarios: Sequence[Scenario],
        group: int,
        generator: torch.Generator,
        openings: Sequence[str] | None = None,
    ) -> Writing:
        """Sample `group` attacks a scenario."""
        prompts, completions, texts = self.model.write(
            self.adapter,
            [self.env.attacker_messages(s) for s in scenarios],
            group=group,
            max_new_tokens=self.config.max_new_tokens,
            generator=generator,
            temperature=self.config.temperature,
            openings=openings,
        )
        return Writing(
            scenarios=[s for s in scenarios for _ in range(group)],
            texts=texts,
            prompts=[p for p in prompts for _ in range(group)],
            completions=completions,
            num_tokens=int(completions.lengths_N.sum()),
        )

    def learn(self, writing: Writing, rewards: Sequence[float], lr: float) -> Metrics:
        """One clipped leave-one-out policy-gradient update."""
        config = self.config
        completions = writing.completions
        K = config.group_size
        rewards_GK = torch.tensor(list(rewards)).view(-1, K)
        live_G = live_groups(rewards_GK)
        if not bool(live_G.any()):
            return {"loss": 0.0, "grad_norm": 0.0, "kl": 0.0, "entropy": 0.0, "live_groups": 0.0}
        classes_G = torch.tensor([float(s.harmful) for s in writing.scenarios[::K]])
        A_GK = scale_by_class(leave_one_out(rewards_GK)[live_G], classes_G[live_G])
        rows = live_G.repeat_interleave(K).nonzero().squeeze(-1)
        picked = [writing.prompts[i] for i in ints(rows)]
        part = Completions(
            ids_NL=completions.ids_NL[rows],
            logp_NL=completions.logp_NL[rows],
            sampled_NL=completions.sampled_NL[rows],
            lengths_N=completions.lengths_N[rows],
        )
        mask_NL = part.sampled_NL.float()
        policy_of = self._policy if self.model.vocabulary <= LARGE_VOCABULARY else self._estimate
        logp_NL, entropy_NL, kl = policy_of(picked, part, mask_NL)
        entropy = (entropy_NL * mask_NL).sum() / mask_NL.sum().clamp(min=1)
        scale = float(len(writing.texts) * config.max_new_tokens)
        policy = clipped_policy_gradient(
            logp_NL, part.logp_NL, A_GK.flatten(), mask_NL, config.clip, scale
        )
        loss = policy + config.kl * kl - config.entropy * entropy
        norm = apply_update(loss, self.adapter, self.optimizer, lr, config.max_grad_norm)
        self.model.tidy()
        return {
            "loss": float(policy.detach()),
            "kl": float(kl.detach()),
            "entropy": float(entropy.detach()),
            "grad_norm": norm,
            "live_groups": float(live_G.float().mean()),
        }

    def _policy(
        self, prompts: Sequence[Sequence[int]], part: Completions, mask_NL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability and entropy at each token [N, L], and the exact KL to the base."""
        T = self.config.temperature
        logits_NLV = self.model.completion_logits(self.adapter, prompts, part)
        logp_NLV = F.log_softmax(logits_NLV.float() / T, -1)
        with torch.no_grad():
            reference = self.model.completion_logits(self.model.base, prompts, part)
            reference_NLV = F.log_softmax(reference.float() / T, -1)
        return (
            logp_NLV.gather(-1, part.ids_NL[..., None]).squeeze(-1),
            -(logp_NLV.exp() * logp_NLV).sum(-1),
            full_kl(logp_NLV, reference_NLV, mask_NL),
        )

    def _estimate(
        self, prompts: Sequence[Sequence[int]], part: Completions, mask_NL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same for a large vocabulary, the KL estimated on the sampled tokens."""
        T = self.config.temperature
        logp_NL, entropy_NL = self.model.completion_logps(self.adapter, prompts, part, T)
        with torch.no_grad():
            reference_NL, _ = self.model.completion_logps(self.model.base, prompts, part, T)
        return logp_NL, entropy_NL, k3_kl(logp_NL, reference_NL, mask_NL)


class GuardPlayer:
    """Scores prompts and learns from both rewards of each."""

    def __init__(
        self, model: LanguageModel, env: Environment, config: GuardConfig, adapter: Adapter
    ) -> None:
        self.model = model
        self.config = config
        self.adapter = adapter
        self.template = env.guard_template()
        self.optimizer = make_optimizer(adapter, config.lr)

    def score(self, prompts: Sequence[str]) -> Tensor:
        """Verdict scores [N], no gradient."""
        return self.model.score_all(self.adapter, self.template, prompts)

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
        """One update; returns metrics and the scores [B] before it."""
        config = self.config
        z_B = self.model.scores(self.adapter, self.template, prompts)
        gain_B = torch.tensor(list(gains))
        if loss_name == "exact_pg":
            policy = exact_policy_gradient(z_B, gain_B)
        elif loss_name == "weighted_ce":
            policy = weighted_cross_entropy(z_B, gain_B)
        else:
            policy = sampled_policy_gradient(z_B, gain_B, torch.rand(len(z_B), generator=generator))
        entropy = binary_entropy(z_B)
        loss = policy
        kl = torch.zeros(())
        if loss_name != "weighted_ce":
            loss = loss - config.entropy * entropy
        if config.kl:
            with torch.no_grad():
                reference_B = self.model.scores(self.model.base, self.template, prompts)
            kl = binary_kl(z_B, reference_B)
            loss = loss + config.kl * kl
        replayed = torch.zeros(())
        if config.lm_replay and replay:
            replayed = self.model.text_loss(self.adapter, replay)
            loss = loss + config.lm_replay * replayed
        norm = apply_update(loss, self.adapter, self.optimizer, lr, config.max_grad_norm)
        self.model.tidy()
        return {
            "loss": float(policy.detach()),
            "kl": float(kl.detach()),
            "entropy": float(entropy.detach()),
            "lm_loss": float(replayed.detach()),
            "grad_norm": norm,
        }, z_B.detach()


def make_adapter(model: LanguageModel, config: ModelConfig, generator: torch.Generator) -> Adapter:
    """A fresh adapter for a role."""
    return model.add_role(kind=config.adapter, rank=config.rank, generator=generator)
