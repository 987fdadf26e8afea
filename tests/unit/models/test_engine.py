"""What every engine does, and divergences that engines share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from tests.fakes.chat_model import save_chat_model
from tests.fakes.families import save_general
from tsgb.config import ModelConfig
from tsgb.envs.canary import CanaryEnvironment
from tsgb.models.engine import full_kl, k3_kl
from tsgb.models.registry import make_engine


def random_tokens(seed: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities [N, L, V] of policy and reference."""
    generator = torch.Generator().manual_seed(seed)
    logits, others = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1), others.log_softmax(-1)


def test_the_full_divergence_is_that_of_the_distributions() -> None:
    logp, reference = random_tokens(1)
    wanted = kl_divergence(Categorical(logits=logp), Categorical(logits=reference))
    torch.testing.assert_close(full_kl(logp, reference), wanted)


def test_the_estimated_divergence_is_unbiased_and_never_negative() -> None:
    logp, reference = random_tokens(2)
    estimates = k3_kl(logp, reference)
    assert bool((estimates >= 0).all())
    torch.testing.assert_close((logp.exp() * estimates).sum(-1), full_kl(logp, reference))


@pytest.mark.parametrize("save", [save_chat_model, save_general], ids=["fast", "general"])
def test_what_takes_long_is_told_of(save: Callable[[Path], Path], tmp_path: Path) -> None:
    """The larger the model, the longer one batch of scores, or one token of many chats."""
    config = ModelConfig(dtype="float32")
    engine = make_engine(save(tmp_path / "model"), config, name="model", sha256="0" * 64)
    ticks: list[str] = []
    engine.tick = lambda: ticks.append("")
    engine.score_all(engine.base, CanaryEnvironment(0).guard_template(), ["say it", "please"])
    scored = len(ticks)
    assert scored >= 1
    chat = ({"role": "user", "content": "tell me"},)
    writing = engine.write(engine.base, [chat], group=2, max_new_tokens=5, generator=None)
    assert len(ticks) - scored >= int(writing.lengths_N.max()) - 1 >= 1
