"""Sampling: against transformers, against recomputation, and against itself in other company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.unit.models.conftest import EOS, PAD, MakeLlama, Row
from tsgb.models import sampling
from tsgb.models.fast.adapters import BaseWeights
from tsgb.models.fast.generation import generate
from tsgb.models.fast.network import Shape, hidden_states, logits
from tsgb.models.fast.packing import Rows
from tsgb.models.sampling import Completions

variants = pytest.mark.parametrize(("kv_heads", "tied"), [(4, False), (2, True), (1, False)])
LIMIT = 12


def run(
    module: torch.nn.Module,
    prompts: list[Row],
    *,
    group: int = 1,
    seed: int | None = None,
    temperature: float = 1.0,
    openings: list[Row] | None = None,
) -> Completions:
    return generate(
        BaseWeights.of(module),
        Shape.of(module.config),
        Rows(prompts),
        group=group,
        max_new_tokens=LIMIT,
        stop_ids=(EOS,),
        pad=PAD,
        generator=None if seed is None else torch.Generator().manual_seed(seed),
        temperature=temperature,
        openings=openings,
    )


def written(out: Completions) -> list[Row]:
    rows = zip(out.ids_NL.tolist(), out.lengths_N.tolist(), strict=True)
    return [ids[:length] for ids, length in rows]


def recomputed(module: torch.nn.Module, prompt: Row, ids: Row, temperature: float) -> Tensor:
    weights, packed = BaseWeights.of(module), Rows([[*prompt, *ids[:-1]]])
    with torch.no_grad():
        hidden = hidden_states(weights, Shape.of(module.config), packed)
        logp = (logits(weights, hidden) / temperature).log_softmax(-1)[len(prompt) - 1 :]
    return logp.gather(-1, torch.tensor(ids)[:, None]).squeeze(-1)


@variants
def test_greedy_is_that_of_transformers(
    make_llama: MakeLlama, rows: list[Row], kv_heads: int, tied: bool
) -> None:
    module = make_llama(kv_heads, tied=tied)
    ours = written(run(module, rows))
    for prompt, ids in zip(rows, ours, strict=True):
        theirs = module.generate(torch.tensor([prompt]), max_new_tokens=LIMIT, do_sample=False)
        assert ids == theirs[0, len(prompt) :].tolist()


@variants
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_log_probabilities_are_the_recomputed_ones(
    make_llama: MakeLlama, rows: list[Row], kv_heads: int, tied: bool, temperature: float
) -> None:
    module = make_llama(kv_heads, tied=tied)
    out = run(module, rows, group=3, seed=0, temperature=temperature)
    assert out.ids_NL.shape[1] == int(out.lengths_N.max())
    for number, ids in enumerate(written(out)):
        theirs = recomputed(module, rows[number // 3], ids, temperature)
        torch.testing.assert_close(out.logp_NL[number, : len(ids)], theirs, rtol=0, atol=3e-5)
        assert bool(out.sampled_NL[number, : len(ids)].all())
        assert not bool(out.sampled_NL[number, len(ids) :].any())
        assert (out.ids_NL[number, len(ids) :] == PAD).all()
        assert EOS not in ids[:-1]


@pytest.mark.parametrize("drop_below", [0.0, 1.0])
def test_a_completion_does_not_depend_on_when_others_end(
    make_llama: MakeLlama, rows: list[Row], monkeypatch: pytest.MonkeyPatch, drop_below: float
) -> None:
    """Row 0's uniforms are the first drawn, so it must write the same in any company."""
    module = make_llama()
    with torch.no_grad():
        module.lm_head.weight[EOS] *= 3  # rows end early, at different times
    monkeypatch.setattr(sampling, "DROP_BELOW", drop_below)
    out = run(module, rows, group=4, seed=7)
    assert len(set(out.lengths_N.tolist())) > 3
    assert written(out)[:4] == written(run(module, rows[:1], group=4, seed=7))
    monkeypatch.setattr(sampling, "DROP_BELOW", 0.6)
    again = run(module, rows, group=4, seed=7)
    assert written(again) == written(out)
    torch.testing.assert_close(again.logp_NL, out.logp_NL, rtol=0, atol=3e-5)


def test_forced_openings_are_respected_and_not_marked_sampled(
    make_llama: MakeLlama, rows: list[Row]
) -> None:
    module = make_llama(2)
    openings = [[10, 11, 12], [], [13], [*range(20, 40)]] * (len(rows) // 4)
    out = run(module, rows, seed=1, openings=openings)
    free = run(module, rows, seed=1)
    for number, (ids, opening) in enumerate(zip(written(out), openings, strict=True)):
        forced = opening[: len(ids)]
        assert ids[: len(forced)] == forced
        sampled = out.sampled_NL[number, : len(ids)].tolist()
        assert sampled == [False] * len(forced) + [True] * (len(ids) - len(forced))
        theirs = recomputed(module, rows[number], ids, 1.0)
        torch.testing.assert_close(out.logp_NL[number, : len(ids)], theirs, rtol=0, atol=3e-5)
        if not opening:
            assert ids == written(free)[number]


def test_sampling_follows_the_distribution(make_llama: MakeLlama) -> None:
    module = make_llama()
    prompt = [5, 9, 11]
    with torch.no_grad():
        expected = module(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    first = run(module, [prompt], group=2000, seed=3).ids_NL[:, 0]
    share = torch.bincount(first, minlength=len(expected)) / len(first)
    assert float((share - expected).abs().max()) < 0.04
