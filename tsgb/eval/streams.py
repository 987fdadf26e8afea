"""The fixed prompts of an evaluation, and what asking endpoints about them costs. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tsgb.config import RunConfig
from tsgb.envs.base import Environment
from tsgb.targets.dialects import prompt_bytes
from tsgb.targets.endpoint import EndpointSpec
from tsgb.targets.spending import CostEstimate, estimate_cost
from tsgb.types import LabelledPrompt, Split, StreamKind


def fixed_prompts(env: Environment, config: RunConfig) -> list[LabelledPrompt]:
    """Draw the prompts of every stream that is evaluated; equal seeds draw the same ones."""
    rng = Random(f"scripted-{config.seed}")
    drawn: list[LabelledPrompt] = []
    for kind in StreamKind:
        if kind is not StreamKind.STATIC_BENIGN:
            drawn += env.stream(kind, Split.TEST, rng, config.evaluation.scripted)
    return drawn


def estimate_costs(
    env: Environment, configs: Sequence[RunConfig], endpoints: Sequence[EndpointSpec]
) -> list[CostEstimate]:
    """Estimate the cost of asking each endpoint about the prompts of scenarios; sends nothing.

    Args:
        env: The world.
        configs: Configuration of each seed's run; each draws prompts of its own.
        endpoints: Black boxes that are asked.
    """
    by_id = {scenario.scenario_id: scenario for scenario in env.scenarios(Split.TEST)}
    drawn = [prompt for config in configs for prompt in fixed_prompts(env, config)]
    asked = [prompt for prompt in drawn if prompt.scenario_id in by_id]
    return [
        estimate_cost(
            spec,
            prompt_bytes(
                [env.target_messages(spec.name, by_id[p.scenario_id], p.text) for p in asked]
            ),
        )
        for spec in endpoints
    ]
