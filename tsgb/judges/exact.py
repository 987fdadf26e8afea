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

    def __init__(self, env: Environment) -> None:
        """Judge by the rules of `env`."""
        self._env = env

    @property
    def facts(self) -> JudgeFacts:
        """See `tsgb.judges.facts.NamedJudge`; right where nobody put another judge into `env`."""
        return JudgeFacts(name=NAME, version=self._env.name, exact=True)

    def judge(self, item: JudgeItem) -> Judgement:
        """See `tsgb.protocols.Judge`."""
        return judge_response(self._env, item.scenario, item.prompt, item.response)
