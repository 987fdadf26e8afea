"""The estimate before anything is asked counts what an evaluation would ask."""

from __future__ import annotations

from tests.fakes.miniature import miniature_config, world
from tsgb.eval.streams import estimate_costs, fixed_prompts
from tsgb.targets.endpoint import parse_endpoint
from tsgb.types import StreamKind


def test_equal_seeds_draw_equal_prompts() -> None:
    config = miniature_config({"evaluation": {"scripted": 12}})
    drawn = fixed_prompts(world(), config)
    assert drawn == fixed_prompts(world(), config)
    assert {prompt.stream for prompt in drawn} == set(StreamKind) - {StreamKind.STATIC_BENIGN}
    assert drawn != fixed_prompts(world(), config.model_copy(update={"seed": 7}))


def test_each_seed_is_asked_its_own_prompts() -> None:
    config = miniature_config({"evaluation": {"scripted": 12}})
    other = config.model_copy(update={"seed": 7})
    spec = parse_endpoint("openai:m").model_copy(update={"dollars_in": 1.0, "dollars_out": 2.0})
    [one] = estimate_costs(world(), [config], [spec])
    [two] = estimate_costs(world(), [config, other], [spec])
    assert (one.requests, two.requests) == (72, 144)
    assert one.tokens_out == 72 * spec.max_tokens
    assert one.dollars is not None
    assert one.most_dollars is not None
    assert 0 < one.dollars < one.most_dollars
