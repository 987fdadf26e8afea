"""The fixed prompts of an evaluation, and what asking endpoints about them costs. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tsgb.config import SHORT_SCRIPTED, RunConfig
from tsgb.envs.base import Environment
from tsgb.eval.ration import ration, share_of_run
from tsgb.targets.dialects import prompt_bytes
from tsgb.targets.endpoint import EndpointSpec
from tsgb.targets.spending import CostEstimate, estimate_cost
from tsgb.types import LabelledPrompt, Messages, Split, StreamKind


def fixed_prompts(env: Environment, config: RunConfig) -> list[LabelledPrompt]:
    """Draw the prompts of every stream that is evaluated; equal seeds draw the same ones."""
    rng = Random(f"scripted-{config.seed}")
    drawn: list[LabelledPrompt] = []
    for kind in StreamKind:
        if kind is not StreamKind.STATIC_BENIGN:
            drawn += env.stream(kind, Split.TEST, rng, config.evaluation.scripted)
    return drawn


def evaluated_prompts(env: Environment, config: RunConfig) -> list[str]:
    """Return the texts that evaluations of a run ask: the whole one, and the short `eval-local`."""
    whole = config.evaluation.scripted
    return [
        prompt.text
        for num in {whole, min(whole, SHORT_SCRIPTED)}
        for prompt in fixed_prompts(
            env,
            config.model_copy(
                update={"evaluation": config.evaluation.model_copy(update={"scripted": num})}
            ),
        )
    ]


def estimate_costs(
    env: Environment,
    configs: Sequence[RunConfig],
    endpoints: Sequence[EndpointSpec],
    *,
    adaptive: int = 0,
    num_guards: int = 0,
    own_chats: Sequence[Messages] = (),
) -> list[CostEstimate]:
    """Estimate the cost of asking each endpoint about the prompts of scenarios; sends nothing.

    What fresh attackers will write is not known: each of their attacks counts as long as the
    longest fixed prompt.

    Args:
        env: The world.
        configs: Configuration of each seed's run; each draws prompts of its own.
        endpoints: Black boxes that are asked.
        adaptive: Attacks that fresh attackers may send to each, of all seeds together.
        num_guards: Guards that these learn against.
        own_chats: Chats of the user's files that each endpoint is asked too.

    Raises:
        UsageError: Those are too few for a figure.
    """
    by_id = {scenario.scenario_id: scenario for scenario in env.scenarios(Split.TEST)}
    drawn = [prompt for config in configs for prompt in fixed_prompts(env, config)]
    asked = [prompt for prompt in drawn if prompt.scenario_id in by_id]
    attacks = sum(_attacks(config, adaptive, num_guards, len(configs)) for config in configs)
    found: list[CostEstimate] = []
    for spec in endpoints:
        sizes = prompt_bytes(
            [env.target_messages(spec.name, by_id[p.scenario_id], p.text) for p in asked]
        )
        sizes += [max(sizes)] * attacks + prompt_bytes(own_chats)
        found.append(estimate_cost(spec, sizes, attacks))
    return found


def _attacks(config: RunConfig, adaptive: int, num_guards: int, runs: int) -> int:
    """Return the attacks that the fresh attackers of a run will send to an endpoint at most."""
    questions = share_of_run(config, adaptive, num_guards, runs)
    if not questions:
        return 0
    one = ration(config, questions, num_guards).questions(config, num_guards)
    return config.evaluation.best_responses * one
