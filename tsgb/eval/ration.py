"""What fresh attackers may ask of an endpoint: the questions of `--adaptive N`, shared out.

A question is one attack that is sent. Half of the questions of an attacker are for learning, in
whole updates, and the rest are for the attacks that are measured; what one half does not need is
the other's. While an attacker learns without questions, the surrogate answers in the endpoint's
place. Torch-free, so that the cost is known before anything starts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tsgb.config import VARIANTS, Arm, RunConfig
from tsgb.errors import UsageError

OPTION = "--adaptive"
NOT_FOUGHT = frozenset({"none", "oracle", *(arm.value for arm in VARIANTS)})
"""Guards that no attacker learns against on an endpoint: ablations are a matter of the surrogate,
and attacks without a guard serve for the other two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ration:
    """What one fresh attacker asks of an endpoint.

    Example: `Ration(attempts=64, warmup_steps=1, attack_steps=2)`
    """

    attempts: int
    """Attacks that are measured, without a guard and against each guard."""
    warmup_steps: int
    """Last updates of the warm-up, in which the endpoint answers itself."""
    attack_steps: int
    """Last updates against each guard, in which it answers itself."""

    def questions(self, config: RunConfig, num_guards: int) -> int:
        """Return the most questions that this takes of an attacker."""
        updates = self.warmup_steps + num_guards * self.attack_steps
        return updates * _an_update(config) + self.attempts * (1 + num_guards)


def fought(guards: Iterable[str]) -> list[str]:
    """Return the guards, by name, that attackers of an endpoint learn against."""
    return [name for name in guards if name not in NOT_FOUGHT]


def guards_before(arms: Iterable[Arm], own_guards: int) -> int:
    """Return how many guards attackers will learn against; a world may lack one of the baselines.

    Args:
        arms: Trained arms.
        own_guards: Number of the user's guards that are attacked.
    """
    return len(fought(["tfidf", "untrained", *(arm.value for arm in arms)])) + own_guards


def share_of_run(config: RunConfig, questions: int, num_guards: int, runs: int = 1) -> int:
    """Return the questions of each of the runs that share the option's number.

    Args:
        config: Configuration of a run.
        questions: The option's number; 0 makes no attacks.
        num_guards: Guards that attackers learn against.
        runs: Number of runs, one a seed.

    Raises:
        UsageError: They are too few for an attempt of each attacker at each guard.
    """
    attackers = config.evaluation.best_responses
    least = attackers * (1 + num_guards)
    if 0 < questions < least * runs:
        raise UsageError(
            f"{OPTION} {questions}: the fewest are {least * runs}, an attack of each of "
            f"{attackers} attacker(s) without a guard and at each of {num_guards} guards"
            + (f", for each of {runs} seeds" if runs > 1 else "")
        )
    return questions // runs


def ration(config: RunConfig, questions: int, num_guards: int) -> Ration:
    """Share out the questions of a run among its attackers.

    Args:
        config: Sizes of the evaluation.
        questions: Questions that all attackers of a run may ask of one endpoint.
        num_guards: Guards that they learn against.

    Raises:
        UsageError: They are too few for an attempt at each guard.
    """
    share_of_run(config, max(1, questions), num_guards)
    sizes, groups = config.evaluation, 1 + num_guards
    own = questions // sizes.best_responses
    learning = _learning(config, min(own // 2, own - groups), num_guards)
    used = learning.questions(config, num_guards)
    attempts = min(sizes.prompts, (own - used) // groups)
    if attempts == sizes.prompts:
        learning = _learning(config, own - attempts * groups, num_guards)
    return Ration(
        attempts=attempts,
        warmup_steps=learning.warmup_steps,
        attack_steps=learning.attack_steps,
    )


def _learning(config: RunConfig, questions: int, num_guards: int) -> Ration:
    """Return the updates that so many questions pay, in one proportion of each phase."""
    sizes = config.evaluation
    needed = (sizes.warmup_steps + num_guards * sizes.attack_steps) * _an_update(config)
    share = min(1.0, questions / needed) if needed else 0.0
    return Ration(
        attempts=0,
        warmup_steps=int(share * sizes.warmup_steps),
        attack_steps=int(share * sizes.attack_steps),
    )


def _an_update(config: RunConfig) -> int:
    return config.attacker.scenarios_per_step * config.attacker.group_size
