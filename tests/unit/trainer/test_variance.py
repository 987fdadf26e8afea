"""The gradient noise that claim H6 is read from."""

from __future__ import annotations

from random import Random

import pytest
import torch

from tests.fakes.miniature import make_trainer, miniature_config
from tsgb.envs.pool import PoolAttack
from tsgb.trainer.batches import GuardBatch
from tsgb.trainer.losses import exact_policy_gradient, sampled_policy_gradient
from tsgb.trainer.variance import gradient_batches, variance_ratio
from tsgb.types import Split, StreamKind


def attacks(env) -> list[PoolAttack]:
    drawn = env.stream(StreamKind.WIDE, Split.TRAIN, Random(1), 6)
    return [
        PoolAttack(text=p.text, harmful=True, violated=True, scenario_id=p.scenario_id)
        for p in drawn
    ]


@pytest.mark.parametrize("with_attacks", [True, False])
def test_as_many_batches_as_the_configuration_says(with_attacks: bool) -> None:
    config = miniature_config({"evaluation": {"variance_batches": 7}})
    trainer = make_trainer(config)
    pool = attacks(trainer.env) if with_attacks else []
    batches = gradient_batches(trainer.env, config, pool, Random(0))
    assert [len(batch.prompts) for batch in batches] == [config.guard.batch] * 7
    texts = {attack.text for attack in pool}
    assert all(bool(texts & set(batch.prompts)) == with_attacks for batch in batches)


def test_the_ratio_is_that_of_the_traces_of_both_covariances() -> None:
    config = miniature_config({"evaluation": {"variance_batches": 5}})
    trainer = make_trainer(config)
    guard = trainer.guard
    batches = gradient_batches(trainer.env, config, attacks(trainer.env), Random(0))
    ratio, low, high = variance_ratio(guard, batches, torch.Generator().manual_seed(3))
    draws = torch.Generator().manual_seed(3)

    def gradient(batch: GuardBatch, *, sampled: bool, uniform: torch.Tensor) -> torch.Tensor:
        z = guard.engine.scores(guard.role, guard.template, batch.prompts)
        gain = torch.tensor(batch.gains)
        loss = (
            sampled_policy_gradient(z, gain, uniform) if sampled else exact_policy_gradient(z, gain)
        )
        parts = torch.autograd.grad(
            loss, list(guard.parameters.values()), materialize_grads=True, allow_unused=True
        )
        return torch.cat([part.flatten() for part in parts]).double()

    uniforms = [torch.rand(len(batch.prompts), generator=draws) for batch in batches]
    traces = [
        torch.stack(
            [gradient(b, sampled=s, uniform=u) for b, u in zip(batches, uniforms, strict=True)]
        )
        .var(0)
        .sum()
        for s in (False, True)
    ]
    assert ratio == pytest.approx(float(traces[1] / traces[0]), rel=1e-4)
    assert low <= high
