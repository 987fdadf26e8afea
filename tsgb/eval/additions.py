"""Targets, guards and a judge that a user adds to a world for its evaluation.

It joins pretrained black boxes, classes of the user's and the world. Their names are known without
importing any of the user's code, so that a report imports nothing that a store names.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from tsgb.config import Arm, RunConfig
from tsgb.envs import customise
from tsgb.envs.base import Environment
from tsgb.errors import UsageError
from tsgb.eval.unfinished import ANEW, FRESH
from tsgb.guards.choice import GuardChoice, read_choices
from tsgb.judges.plugins import StrictJudge, load_judge
from tsgb.protocols import Target
from tsgb.targets.plugins import BlackBoxTarget, load_black_boxes, target_specs
from tsgb.targets.pretrained import table_name, with_black_boxes

OWN_NAMES = frozenset({"none", "tfidf", "untrained", "oracle", *(arm.value for arm in Arm)})
"""Names in tables of the guards that an evaluation has itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Additions:
    """Black boxes and a judge beside those of a world.

    Example: `Additions(black_boxes=config.model.black_boxes, target_class=["mine:Bot"])`
    """

    black_boxes: Sequence[str] = ()
    """Names of pretrained models, as a configuration stores them."""
    target_class: Sequence[str] = ()
    """The user's black boxes, as `module:attribute`."""
    judge_class: str | None = None
    """The user's judge, as `module:attribute`; None keeps the world's."""
    guards: Sequence[str] = ()
    """The user's guards, in the forms of `tsgb.guards.choice`."""

    @classmethod
    def of(cls, config: RunConfig, request: Mapping[str, Any]) -> Self:
        """Return what a run's configuration and the request of its evaluation name."""
        return cls(
            black_boxes=config.model.black_boxes,
            target_class=request.get("target_class") or (),
            judge_class=request.get("judge_class") or None,
            guards=request.get("own_guards") or (),
        )

    @property
    def target_names(self) -> list[str]:
        """Names in tables of the added targets, which are asked whatever targets are chosen."""
        return [*map(table_name, self.black_boxes), *target_specs(self.target_class)]

    @property
    def guard_choices(self) -> list[GuardChoice]:
        """The user's guards.

        Raises:
            UsageError: One has no such form, or the name of another one in tables.
        """
        return read_choices(self.guards, OWN_NAMES)

    def extend(self, world: Environment) -> Environment:
        """Return the world with the added targets and its own judge; imports nothing.

        Raises:
            UsageError: Two targets have one name in tables, or the world takes no such model.
        """
        return customise(
            with_black_boxes(world, self.black_boxes), target_specs(self.target_class), None
        )

    def load_into(self, world: Environment) -> Environment:
        """Return the world with the added targets and the added judge, which is imported.

        Raises:
            UsageError: See `extend`; or the judge cannot be loaded.
        """
        world = self.extend(world)
        if self.judge_class is None:
            return world
        return customise(world, {}, StrictJudge(load_judge(self.judge_class).made))

    def load_targets(self, check: Callable[[], None]) -> dict[str, Target]:
        """Load the user's black boxes, by name; a registry knows the pretrained ones.

        Args:
            check: Called before each prompt; raises to stop.

        Raises:
            UsageError: One cannot be loaded.
        """
        return {
            name: BlackBoxTarget(name, plugin.made, check)
            for name, plugin in load_black_boxes(self.target_class).items()
        }

    def identities(self, *, fresh: bool) -> dict[str, Any]:
        """Load the user's classes, and return what tells their answers from others.

        A class that declares no `name` and `version` gets a random identity, so that it is asked
        anew: the name of its model or the address of its server may have changed since. So does
        everything if `fresh` is set.

        Raises:
            UsageError: One cannot be loaded or read, or two have one name.
        """
        plugins = {f"target {p.path}": p for p in load_black_boxes(self.target_class).values()}
        if self.judge_class is not None:
            plugins[f"judge {self.judge_class}"] = load_judge(self.judge_class)
        found: dict[str, Any] = {
            label: plugin.identity or {ANEW: secrets.token_hex(8), "sha256": plugin.source_sha256}
            for label, plugin in plugins.items()
        }
        for choice in self.guard_choices:
            found[f"guard {choice.text}"] = choice.content_hash()
        return {**found, FRESH: secrets.token_hex(8)} if fresh else found


def choose_targets(world: Environment, named: Sequence[str] | None) -> list[str]:
    """Return the names of the chosen targets of a world in table order; all without a choice.

    Raises:
        UsageError: The world has no target of a name.
    """
    known = world.targets()
    for name in named or ():
        if name not in known:
            raise UsageError(
                f"target {name!r} is not in the world {world.name!r}: choose of {', '.join(known)}"
            )
    return [name for name in known if not named or name in named]
