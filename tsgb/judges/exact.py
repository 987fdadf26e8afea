"""The judge that a world brings: exact where its violations are decidable."""

from __future__ import annotations

from tsgb.envs.base import Environment
from tsgb.envs.rollout import judge_response
from tsgb.judges.facts import JudgeFacts
from tsgb.protocols import JudgeItem
from tsgb.types import Judgement

NAME = "exact"


class ExactJudge:
    """Asks the environment."""

    def __init__(self, env: Environment, facts: JudgeFacts | None = None) -> None:
        """Judge as `env` does.

        Args:
            env: The world.
            facts: What reports say of its judge, where that is not the world's own.
        """
        self._env = env
        self.facts = facts or JudgeFacts(name=NAME, version=env.name, exact=True)
        """See `tsgb.judges.facts.NamedJudge`."""

    def judge(self, item: JudgeItem) -> Judgement:
        """See `tsgb.protocols.Judge`."""
        return judge_response(self._env, item.scenario, item.prompt, item.response)
