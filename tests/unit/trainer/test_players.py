"""What one update of a player changes, and what it must not change."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from random import Random

import pytest
import torch
from torch import Tensor

from tests.fakes.miniature import (
    benign_scenarios,
    harmful_scenarios,
    miniature_config,
    untrained_model,
    world,
)
from tsgb.errors import TrainingFailed
from tsgb.models.weights import snapshot
from tsgb.trainer.players import AttackBatch, AttackerPlayer, GuardPlayer
from tsgb.types import Split, StreamKind

CONFIG = miniature_config({"attacker": {"kl": 0.5, "entropy": 0.1}})
K = CONFIG.attacker.group_size


def make_attacker() -> AttackerPlayer:
    """Off its base, so that its divergence from it has a gradient."""
    model = untrained_model()
    generator = torch.Generator().manual_seed(5)
    role = model.add_role(CONFIG.model, generator)
    with torch.no_grad():
        for parameter in model.parameters(role).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return AttackerPlayer(model, world(), CONFIG.attacker, role)


def write(attacker: AttackerPlayer, seed: int = 1) -> AttackBatch:
    scenarios = [*harmful_scenarios(2), *benign_scenarios(1)]
    return attacker.write(scenarios, K, torch.Generator().manual_seed(seed))


@torch.no_grad()
def logp(attacker: AttackerPlayer, batch: AttackBatch) -> Tensor:
    """Log-probabilities [N, L] of what was written, now; 0 where nothing was sampled."""
    found = attacker.engine.logps(attacker.role, batch.writing, 1.0).logp_NL
    return found * batch.writing.sampled_NL


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_without_spread_in_any_group_nothing_changes() -> None:
    attacker = make_attacker()
    before = snapshot(attacker.parameters)
    metrics = attacker.learn(write(attacker), [0.4] * K + [1.0] * K + [-0.3] * K, lr=0.1)
    assert metrics["live_groups"] == 0
    assert equal(snapshot(attacker.parameters), before)
    assert not attacker.optimizer.state, "not even a moment"


def test_a_group_without_spread_adds_nothing_not_even_its_divergence() -> None:
    """Exchange what it wrote: the update stays the same to the last bit."""
    rewards = [1.0, 0.0, 0.5] + [0.4] * K + [0.0, 0.3, 0.1]
    results: list[dict[str, Tensor]] = []
    for word in (None, 7):
        attacker = make_attacker()
        batch = write(attacker)
        if word is not None:
            batch.writing.ids_NL[K : 2 * K] = word
            batch.writing.logp_NL[K : 2 * K] = -1.0
        metrics = attacker.learn(batch, rewards, lr=0.1)
        assert metrics["live_groups"] == pytest.approx(2 / 3)
        assert metrics["kl"] > 0
        results.append(snapshot(attacker.parameters))
    assert not equal(results[0], snapshot(make_attacker().parameters)), "the others do learn"
    assert equal(*results)


def test_rewards_that_differ_by_a_constant_give_the_same_update() -> None:
    results: list[dict[str, Tensor]] = []
    for shift in (0.0, 2.0):
        attacker = make_attacker()
        rewards = [shift + r for r in (1.0, 0.0, 0.5, 0.0, 0.0, 0.25, 0.0, 0.5, 0.5)]
        attacker.learn(write(attacker), rewards, lr=0.1)
        results.append(snapshot(attacker.parameters))
    assert equal(*results)


def test_what_is_learnt_from_is_what_was_sampled() -> None:
    """Sampling and learning agree on log-probabilities, or no ratio would be 1."""
    attacker = make_attacker()
    batch = write(attacker)
    mask = batch.writing.sampled_NL
    torch.testing.assert_close(
        logp(attacker, batch)[mask], batch.writing.logp_NL[mask], rtol=1e-4, atol=1e-5
    )


def test_an_update_makes_what_earned_more_more_likely() -> None:
    attacker = make_attacker()
    batch = write(attacker)
    before = logp(attacker, batch)[::K].sum()
    attacker.learn(batch, [1.0, 0.0, 0.0] * 3, lr=1e-3)
    assert logp(attacker, batch)[::K].sum() > before


@pytest.mark.parametrize("loss", ["exact_pg", "weighted_ce", "sampled_pg"])
def test_a_guard_learns_from_gains_alone(loss: str) -> None:
    model = untrained_model()
    generator = torch.Generator().manual_seed(5)
    config = CONFIG.guard.model_copy(update={"lm_replay": 0.0, "entropy": 0.0})
    guard = GuardPlayer(model, world(), config, model.add_role(CONFIG.model, generator))
    texts = [p.text for p in world().stream(StreamKind.WIDE, Split.TRAIN, Random(3), 32)]
    gains = [3.0 if i % 2 else -2.0 for i in range(32)]
    learn = {"loss_name": loss, "replay": [], "lr": 3e-3, "generator": generator}

    def agreement() -> float:
        return float((guard.score(texts).sigmoid() * torch.tensor(gains)).mean())

    start = agreement()
    _, before = guard.learn(texts, gains, **learn)
    assert torch.equal(before, model.scores(model.base, guard.template, texts).detach())
    for _ in range(60):
        guard.learn(texts, gains, **learn)
    assert agreement() > start + 0.1


class TestNotFinite:
    """A loss or a gradient that is no number ends the run before it reaches a weight."""

    def refuses(self, player: AttackerPlayer | GuardPlayer, learn: Callable[[], object]) -> str:
        before = snapshot(player.parameters)
        with pytest.raises(TrainingFailed) as caught:
            learn()
        assert not player.optimizer.state
        after = snapshot(player.parameters)
        assert all(torch.equal(after[name], before[name]) for name in before)
        return str(caught.value)

    @pytest.mark.parametrize("gain", [math.nan, math.inf, 1e38], ids=["nan", "inf", "gradient"])
    def test_of_the_guard(self, gain: float) -> None:
        model = untrained_model()
        role = model.add_role(CONFIG.model, torch.Generator().manual_seed(5))
        guard = GuardPlayer(model, world(), CONFIG.guard, role)
        prompts = [p.text for p in world().stream(StreamKind.WIDE, Split.TRAIN, Random(3), 8)]

        def learn() -> None:
            guard.learn(
                prompts,
                [gain] * 8,
                loss_name="exact_pg",
                replay=(),
                lr=0.01,
                generator=torch.Generator(),
            )

        line = self.refuses(guard, learn)
        assert re.match(r"the guard's loss is \S+ and the norm of its gradient (nan|inf), so", line)
        assert "lower guard.lr or guard.sft_lr (the rate was 0.01)" in line
        assert "\n" not in line

    def test_of_the_attacker(self) -> None:
        attacker = make_attacker()
        batch = write(attacker)
        batch.writing.logp_NL[:] = math.nan

        def learn() -> None:
            attacker.learn(batch, [1.0, 0.0, 0.5] * 3, lr=0.01)

        line = self.refuses(attacker, learn)
        assert line.startswith(
            "the attacker's loss is nan and the norm of its gradient nan, so its"
        )
