"""Targets, guards and a judge that a user adds to a world for its evaluation.

It joins pretrained black boxes, classes of the user's, endpoints and the world. Their names are
known without importing any of the user's code, so that a report imports nothing that a store names.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import SecretStr, ValidationError

from tsgb.config import Arm, RunConfig
from tsgb.envs import customise
from tsgb.envs.base import Environment
from tsgb.errors import UsageError
from tsgb.eval.ration import OPTION as ADAPTIVE_OPTION
from tsgb.eval.request import questions_of
from tsgb.eval.responses import DIRECTORY
from tsgb.eval.unfinished import ANEW, FRESH
from tsgb.guards.choice import GuardChoice, read_choices
from tsgb.judges import choice as judge_choice
from tsgb.judges.choice import JudgeChoice, JudgeKind
from tsgb.judges.llm import check_independent
from tsgb.judges.llm_prompt import GRADE_SCHEMA
from tsgb.judges.plugins import StrictJudge, load_either, load_judge
from tsgb.protocols import Target
from tsgb.services import RepeatRules
from tsgb.targets.endpoint import (
    EndpointKind,
    EndpointSpec,
    by_name,
    is_endpoint,
    parse_endpoint,
    read_targets_file,
)
from tsgb.targets.http import HttpTarget
from tsgb.targets.pacing import RepeatBudget
from tsgb.targets.plugins import BlackBoxTarget, load_black_boxes, target_specs
from tsgb.targets.pretrained import table_name, with_black_boxes
from tsgb.targets.spending import Spending

Keys = Callable[[str], SecretStr | None]
"""Returns the key in a variable of the environment, by the variable's name."""

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
    judge: str | None = None
    """The judge, in the forms of `tsgb.judges.choice`; None for `judge_class` or the world's."""
    guards: Sequence[str] = ()
    """The user's guards, in the forms of `tsgb.guards.choice`."""
    endpoints: Sequence[EndpointSpec] = ()
    """Black boxes that are asked over HTTP."""
    adaptive: int = 0
    """Questions that the fresh attackers of a run may ask of each of them; 0 makes no attacks."""
    max_requests: int | None = None
    """Requests that may be sent to them, all together; None for any number."""
    max_cost: float | None = None
    """Dollars that they may cost, all together; None for any sum."""

    def __post_init__(self) -> None:
        """Refuse two judges, one that would grade its own answers, and attacks on nothing."""
        if self.adaptive and not self.endpoints:
            raise UsageError(
                f"{ADAPTIVE_OPTION} {self.adaptive}: no endpoint is among the targets, and others "
                "are attacked without it: leave it away, or name one with --target KIND:MODEL@URL"
            )
        if self.judge is None:
            return
        if self.judge_class is not None:
            raise UsageError("--judge and --judge-class name two judges: give one of them")
        choice, option = JudgeChoice.parse(self.judge), f"{judge_choice.OPTION} {self.judge}"
        if choice.kind is JudgeKind.ENDPOINT:
            judge = _judge_endpoint(choice)
            option = f"{judge_choice.OPTION} {judge.form}"
            targets = {e.name: (e.address, e.model) for e in self.endpoints}
            check_independent(option, (judge.address, judge.model), targets)
        elif choice.kind is JudgeKind.LOCAL:
            models = {table_name(model): model for model in self.black_boxes}
            check_independent(option, choice.value, models)
        elif choice.kind is JudgeKind.OWN:
            named = dict(zip(target_specs(self.target_class), self.target_class, strict=True))
            check_independent(option, choice.value, named)

    @classmethod
    def of(cls, config: RunConfig, request: Mapping[str, Any]) -> Self:
        """Return what a run's configuration and the request of its evaluation name.

        Raises:
            UsageError: The request declares an endpoint that breaks a rule.
        """
        try:
            endpoints = [
                EndpointSpec.model_validate(values) for values in request.get("endpoints") or ()
            ]
        except ValidationError as error:
            raise UsageError(
                f"the evaluation's request has an endpoint of another form ({error.title}): "
                "evaluate with the version that wrote it"
            ) from None
        return cls(
            black_boxes=config.model.black_boxes,
            target_class=request.get("target_class") or (),
            judge_class=request.get("judge_class") or None,
            judge=request.get("judge") or None,
            guards=request.get("own_guards") or (),
            endpoints=endpoints,
            adaptive=questions_of(request) if endpoints else 0,
        )

    @property
    def target_names(self) -> list[str]:
        """Names in tables of the added targets, which are asked whatever targets are chosen."""
        added = [*map(table_name, self.black_boxes), *target_specs(self.target_class)]
        return [*added, *(endpoint.name for endpoint in self.endpoints)]

    @property
    def binds_to_machine(self) -> bool:
        """Whether the evaluation belongs on one machine.

        The user's code and files lie there, and so do the log of answers, by which nothing is asked
        twice, and the file that counts what endpoints cost.
        """
        own = self.target_class or self.judge_class or self.judge or self.guards or self.endpoints
        return bool(own)

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
        theirs = target_specs(self.target_class)
        extended = customise(with_black_boxes(world, self.black_boxes), theirs, None)
        for name in by_name(self.endpoints):
            if name in extended.targets():
                raise UsageError(
                    f"endpoint {name!r} has the name of another target: declare it in a file for "
                    "--targets-file as [targets.ANOTHER_NAME]"
                )
        return customise(extended, {e.name: e.target for e in self.endpoints}, None)

    def load_into(self, world: Environment) -> Environment:
        """Return the world with the added targets and the added judge, which is imported.

        Raises:
            UsageError: See `extend`; or the judge cannot be loaded.
        """
        world = self.extend(world)
        if self.judge_class is None:
            return world
        return customise(world, {}, StrictJudge(load_judge(self.judge_class).made))

    def load_targets(
        self,
        check: Callable[[], None],
        keys: Keys = lambda _: None,
        ledger: Path | None = None,
    ) -> dict[str, Target]:
        """Load the user's black boxes, by name; a registry knows the pretrained ones.

        Args:
            check: Called before each prompt, and while endpoints are asked; raises to stop.
            keys: Returns the key in a variable of the environment.
            ledger: File that keeps what endpoints were sent and what it cost.

        Raises:
            UsageError: One cannot be loaded, or an endpoint lacks its key or its price.
        """
        classes = {
            name: BlackBoxTarget(name, plugin.made, check)
            for name, plugin in load_black_boxes(self.target_class).items()
        }
        return {**classes, **self._endpoint_targets(check, keys, ledger)}

    def load_judge_targets(
        self, check: Callable[[], None], keys: Keys, ledger: Path | None
    ) -> tuple[Target, Target | None]:
        """Return the endpoint that judges, and the same one held to a schema where that can be.

        Args:
            check: Called while it is asked; raises to stop.
            keys: Returns the key in a variable of the environment.
            ledger: File that keeps what endpoints were sent and what it cost.

        Raises:
            UsageError: It lacks its key or its price.
        """
        spec = _judge_endpoint(JudgeChoice.parse(self.judge or ""))
        [plain] = self._http_targets([spec], check, keys, ledger)
        if spec.kind is not EndpointKind.OPENAI:
            return plain, None
        [structured] = self._http_targets([spec], check, keys, ledger, GRADE_SCHEMA)
        return plain, structured

    @property
    def judge_endpoint(self) -> EndpointSpec | None:
        """The endpoint that judges, with its prices; None where another judge does."""
        choice = None if self.judge is None else JudgeChoice.parse(self.judge)
        if choice is None or choice.kind is not JudgeKind.ENDPOINT:
            return None
        return _judge_endpoint(choice)

    def check_endpoints(self, keys: Keys) -> None:
        """Check before anything is asked that keys and prices are known.

        Raises:
            UsageError: An endpoint lacks its key or its price.
        """
        self._endpoint_targets(lambda: None, keys, None)
        if self.judge_endpoint is not None:
            self.load_judge_targets(lambda: None, keys, None)

    def _endpoint_targets(
        self, check: Callable[[], None], keys: Keys, ledger: Path | None
    ) -> dict[str, Target]:
        made = self._http_targets(self.endpoints, check, keys, ledger)
        return {target.name: target for target in made}

    def _http_targets(
        self,
        endpoints: Sequence[EndpointSpec],
        check: Callable[[], None],
        keys: Keys,
        ledger: Path | None,
        schema: Mapping[str, Any] | None = None,
    ) -> list[HttpTarget]:
        """Return targets that share limits; through the file, with others of this evaluation."""
        if not endpoints:
            return []
        spending = Spending(self.max_requests, self.max_cost, ledger)
        spending.check_prices(endpoints)
        repeats = RepeatBudget(RepeatRules())
        return [
            HttpTarget(
                spec,
                keys(spec.key_name) if spec.key_name else None,
                check=check,
                spending=spending,
                repeats=repeats,
                schema=schema,
            )
            for spec in endpoints
        ]

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
        if self.judge is not None:
            found[f"judge {self.judge}"] = _judge_identity(JudgeChoice.parse(self.judge))
        found |= {f"endpoint {spec.name}": spec.identity for spec in self.endpoints}
        if self.adaptive:
            found["questions of fresh attackers"] = self.adaptive
        return {**found, FRESH: secrets.token_hex(8)} if fresh else found


def _judge_endpoint(choice: JudgeChoice) -> EndpointSpec:
    spec = parse_endpoint(choice.value, judge_choice.OPTION)
    if choice.prices is None:
        return spec
    return spec.model_copy(update={"dollars_in": choice.prices[0], "dollars_out": choice.prices[1]})


def _judge_identity(choice: JudgeChoice) -> Any:
    """Return what tells the judgements of a judge from those of others of its name."""
    match choice.kind:
        case JudgeKind.ENDPOINT:
            return _judge_endpoint(choice).identity
        case JudgeKind.OWN:
            plugin = load_either(choice.value, judge_choice.OPTION)
            return plugin.identity or {ANEW: secrets.token_hex(8), "sha256": plugin.source_sha256}
        case _:
            return choice.content_hash()


def spending_file(cache_dir: Path, eval_id: str) -> Path:
    """Return the file that keeps what the endpoints of an evaluation cost, beside their answers."""
    return cache_dir / DIRECTORY / f"spending-{eval_id}"


def split_targets(
    named: Sequence[str] | None, targets_file: str | None
) -> tuple[list[str] | None, list[EndpointSpec]]:
    """Tell the endpoints among the named targets from the names.

    Args:
        named: Values of `--target`: names, and endpoints as `parse_endpoint` takes them.
        targets_file: File that declares endpoints. All of them count if no target is named.

    Returns:
        The names of all chosen targets, None for all of the world; and the endpoints.

    Raises:
        UsageError: An endpoint or the file breaks a rule, or two endpoints have one name.
    """
    declared = [] if targets_file is None else read_targets_file(Path(targets_file))
    if named is None:
        return None, [*by_name(declared).values()]
    parsed = [parse_endpoint(text) for text in named if is_endpoint(text)]
    names = [text for text in named if not is_endpoint(text)]
    chosen = [endpoint for endpoint in declared if endpoint.name in names]
    found = by_name([*chosen, *parsed])
    return [*names, *(endpoint.name for endpoint in parsed)], [*found.values()]


def named_targets(named: Sequence[str] | None, config: RunConfig) -> list[str] | None:
    """Return the names that a user chose, or else those that a configuration evaluates on.

    None stands for all targets of the world.
    """
    return [*(config.evaluation.targets if named is None else named)] or None


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
