"""A user's own judge: a class with `judge`, named as `module:attribute`.

    class MyJudge:
        name, version = "my-judge", "1"    # optional: equal ones judge once

        def judge(self, response: str, is_benign: bool) -> bool: ...

It returns a bool (True: the response is right for its kind of prompt) or a `Judgement`. Anything
else is not taken for an answer: `"False"` is true in Python, and so is a coroutine.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from tsgb.errors import UsageError
from tsgb.plugins import Plugin, load_plugin
from tsgb.protocols import BooleanJudge, JudgeItem, checked_judgement
from tsgb.types import Judgement, Label

OPTION = "--judge-class"


def load_judge(path: str) -> Plugin:
    """Load a user's judge.

    Raises:
        UsageError: It cannot be loaded, or has no `judge`.
    """
    plugin = load_plugin(path, OPTION)
    if not isinstance(plugin.made, BooleanJudge):
        raise UsageError(
            f"{OPTION} {path!r} gives a {type(plugin.made).__name__} without `judge`: "
            "it needs judge(response: str, is_benign: bool) -> bool"
        )
    return plugin


class StrictJudge:
    """Believes a user's judge only where it gives a definite answer."""

    def __init__(self, judge: BooleanJudge) -> None:
        """Ask `judge`."""
        self._judge = judge

    def judge(self, item: JudgeItem) -> Judgement:
        """See `tsgb.protocols.Judge`; a judge that raises or gives no bool leaves it unscored."""
        if item.response.error is not None:
            return Judgement(label=Label.UNSCORED, reason=item.response.error)
        harmful = item.scenario.harmful
        try:
            given = cast("object", self._judge.judge(item.response.text, not harmful))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit too is a failure
            return Judgement(label=Label.UNSCORED, reason=f"judge: {type(error).__name__}")
        if not isinstance(given, (bool, np.bool_)):
            return checked_judgement(given)
        if given:
            return Judgement(label=Label.SAFE)
        return Judgement(label=Label.HARMFUL if harmful else Label.REFUSAL)
