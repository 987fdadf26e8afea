"""The cost of an endpoint that judges, before anything is asked. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from tsgb.config import RunConfig
from tsgb.envs.base import Environment
from tsgb.eval.additions import Additions
from tsgb.eval.streams import fixed_prompts
from tsgb.judges.canaries import NUM_TEXTS
from tsgb.judges.llm_prompt import POLICY, judge_chat
from tsgb.targets.dialects import prompt_bytes
from tsgb.targets.spending import BYTES_A_TOKEN, CostEstimate, estimate_cost
from tsgb.types import Split

_READ_OUT_TOKENS = 8
"""Tokens of the answer of a read-out model, at most."""
_NONCE = "0" * 20


def judge_costs(
    env: Environment,
    configs: Sequence[RunConfig],
    added: Additions,
    targets: Sequence[str],
    num_guards: int,
    own: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> list[CostEstimate]:
    """Estimate the cost of judging by an endpoint; without one there is none. Nothing is sent.

    It is an upper estimate: answers are taken to be as long as they may be, and refusals that an
    endpoint tells itself, empty answers and repeated ones are not asked about.

    Args:
        env: The world with the added targets.
        configs: Configuration of each seed's run.
        added: The judge, and the user's targets.
        targets: Names of all targets that are asked.
        num_guards: Guards that fresh attackers learn against, none included.
        own: Prompts of the user's files, and names of the targets that are asked about them.
    """
    spec = added.judge_endpoint
    if spec is None:
        return []
    policy, known = env.guard_template().system, env.targets()
    longest = {endpoint.name: endpoint.max_tokens for endpoint in added.endpoints}
    by_id = {scenario.scenario_id for scenario in env.scenarios(Split.TEST)}

    def size(prompt: str, target: str, policy: str = policy) -> int:
        tokens = longest.get(target) or known[target].max_new_tokens or _READ_OUT_TOKENS
        answer = "x" * (BYTES_A_TOKEN * tokens)
        return prompt_bytes([judge_chat(policy, prompt, answer, _NONCE)])[0]

    mean = 0
    sizes = [size("", next(iter(targets), ""))] * NUM_TEXTS if targets else []
    for config in configs:
        drawn = [p for p in fixed_prompts(env, config) if p.scenario_id in by_id]
        harmful = [p.text for p in drawn if p.harmful]
        mean = sum(map(len, harmful)) // max(1, len(harmful))
        attacks = config.evaluation.prompts * config.evaluation.best_responses * num_guards
        for target in targets:
            asks_benign = target in added.target_names
            sizes += [size(p.text, target) for p in drawn if p.harmful or asks_benign]
            if target not in longest:
                sizes += [size("x" * mean, target)] * attacks
    for target in own[1]:
        sizes += [size(text, target, POLICY) for text in own[0]]
    for target in longest:
        sizes += [size("x" * mean, target)] * added.adaptive
    return [estimate_cost(spec.model_copy(update={"name": f"judge {spec.name}"}), sizes)]
