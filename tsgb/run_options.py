"""The options of a run, declared once: command line, flows and deployments take theirs from here.

It knows names, bounds and help texts. It reads no environment and starts nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)

from tsgb.checkpoint.urls import check_run_id
from tsgb.config import SEEDS, Arm, Profile, default_arms
from tsgb.errors import UsageError
from tsgb.setting_groups import CloudSettings

S = TypeVar("S", bound=CloudSettings)
NOT_OF_A_RUN = {"seeds", "machines", "evaluate"}
"""Options that say what happens around a run: the flow stage 1, which trains one, has none."""


class MachineKind(StrEnum):
    """The kind of machine that trains."""

    LOCAL = "local"
    RENTED = "rented"


@dataclass(frozen=True, slots=True)
class Flag:
    """Spelling of an option on the command line.

    Example: `Flag("--target", "NAME", form="repeated")`
    """

    name: str
    """The option with its dashes; a switch names both of its states."""
    metavar: str | None = None
    """Stands for the value in the help."""
    form: Literal["value", "commas", "repeated", "pairs"] = "value"
    """Text of a value: itself, names between commas, one of several, or NAME=VALUE."""


def _with_selfplay(arms: list[Arm]) -> list[Arm]:
    if Arm.SELFPLAY not in arms:
        raise UsageError(f"arms {', '.join(arms)} lack 'selfplay', which all are measured against")
    return arms


RunId = Annotated[
    str,
    AfterValidator(check_run_id),
    WithJsonSchema({"type": "string", "pattern": r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$"}),
]
"""Name of a run: a directory of the store."""


class RunOptions(BaseModel):
    """All that a user may choose about a run.

    Example: `RunOptions(run="r1", profile=Profile.SMOKE)`
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    run: Annotated[RunId | None, Flag("--run-id", "ID")] = None
    """Name of the run; an existing one resumes. Without it a new name is made."""
    profile: Annotated[Profile, Flag("--profile", "|".join(Profile))] = Profile.DEMO
    """Size of the run: smoke takes a minute, demo minutes, paper hours."""
    env: Annotated[str, Field(min_length=1), Flag("--env", "NAME")] = "glyph"
    """World: glyph, canary, or module:attribute."""
    model: Annotated[Annotated[str, Field(min_length=1)] | None, Flag("--model", "NAME")] = None
    """Pretrained base in place of the world's: org/name@revision, directory, gguf:FILE, smollm2."""
    target_model: Annotated[
        Annotated[str, Field(min_length=1)] | None, Flag("--target-model", "NAME")
    ] = None
    """Pretrained model of the targets, named as for --model; without it the base."""
    black_boxes: Annotated[
        list[Annotated[str, Field(min_length=1)]] | None,
        Flag("--black-box", "NAME", form="repeated"),
    ] = None
    """Pretrained models to evaluate on as they are, named as for --model, on top of the targets."""
    seed: Annotated[int, Field(ge=0), Flag("--seed")] = 0
    """Seed of everything that happens in the world."""
    seeds: Annotated[Annotated[int, Field(ge=1, le=100)] | None, Flag("--seeds", "N")] = None
    """Number of training seeds, from --seed on, that one report pools; without it paper trains five
    and the others one. They share --budget."""
    world_seed: Annotated[int, Field(ge=0), Flag("--world-seed")] = 0
    """Seed of the world itself: policy, weaknesses, models."""
    arms: Annotated[
        Annotated[list[Arm], AfterValidator(_with_selfplay)] | None,
        Flag("--arms", "A,B,...", form="commas"),
    ] = None
    """Arms to train, selfplay among them; without it those of the profile."""
    targets: Annotated[list[str] | None, Flag("--target", "NAME", form="repeated")] = None
    """Targets to evaluate on, endpoints as openai:MODEL@URL too; without it all of the world."""
    targets_file: Annotated[
        Annotated[str, Field(min_length=1)] | None, Flag("--targets-file", "FILE")
    ] = None
    """TOML file that declares endpoints as [targets.NAME], which are asked like the world's."""
    adaptive: Annotated[int, Field(ge=0), Flag("--adaptive", "N")] = 0
    """Attacks that fresh attackers may send to each endpoint, all seeds together; 0 sends none."""
    max_requests: Annotated[Annotated[int, Field(ge=0)] | None, Flag("--max-requests", "N")] = None
    """Requests that the evaluation may send to endpoints, repeated ones included."""
    max_cost: Annotated[
        Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, Flag("--max-cost")
    ] = None
    """Dollars that endpoints may cost in the evaluation, by the prices of the targets file."""
    target_class: Annotated[
        list[str] | None, Flag("--target-class", "MODULE:CLASS", form="repeated")
    ] = None
    """Black boxes of yours, with generate(prompt) -> str, on top of the targets."""
    judge_class: Annotated[str | None, Flag("--judge-class", "MODULE:CLASS")] = None
    """Judge of yours, with judge(response, is_benign) -> bool, in place of the world's."""
    judge: Annotated[Annotated[str, Field(min_length=1)] | None, Flag("--judge", "FORM")] = None
    """Judge in place of the world's, as in openai:MODEL@URL, local:NAME or classifier:NAME."""
    human_labels: Annotated[
        Annotated[str, Field(min_length=1)] | None, Flag("--human-labels", "FILE")
    ] = None
    """Labels that people gave to answers (JSON lines or CSV), by which rates are corrected."""
    guards: Annotated[list[str] | None, Flag("--guard", "FORM", form="repeated")] = None
    """Guards of yours beside those of the run, as in keywords:FILE or export:DIR."""
    fresh: Annotated[bool, Flag("--fresh")] = False
    """Evaluate again what was evaluated already."""
    overrides: Annotated[dict[str, Any] | None, Flag("--set", "NAME=VALUE", form="pairs")] = None
    """Changes to the run's configuration, such as selfplay.rounds=2."""
    train_data: Annotated[
        list[Annotated[str, Field(min_length=1)]] | None,
        Flag("--train-data", "FILE", form="repeated"),
    ] = None
    """Labelled prompts of yours whose train split the guard learns from; the store gets a copy."""
    train_map: Annotated[list[str] | None, Flag("--map", "KEY=COLUMN", form="repeated")] = None
    """A column of these files, as for `tsgb data check`: prompt=COL, label=COL=VALUE, group=COL."""
    store: Annotated[str | None, Flag("--store", "URL")] = None
    """Path or fsspec URL of all runs; without it TSGB_STORE, RCLONE_WEBDAV_URL or ./runs."""
    machine: Annotated[MachineKind, Flag("--machine")] = MachineKind.LOCAL
    """Machine that trains: processes here, or one rented instance at a time."""
    machines: Annotated[Annotated[int, Field(ge=1, le=100)], Flag("--machines", "N")] = 1
    """Most rented machines at once, one for each of --seeds."""
    budget: Annotated[
        Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, Flag("--budget")
    ] = None
    """Dollars that all seeds together may cost on rented machines; without it TSGB_BUDGET."""
    max_price: Annotated[Annotated[float, Field(ge=0.001, le=128)] | None, Flag("--max-price")] = (
        None
    )
    """Dollars an hour that one machine may cost, storage included; without it TSGB_MAX_PRICE."""
    service_url: Annotated[str | None, Flag("--vast-url", "URL")] = None
    """Address of the service that rents machines, or of a simulator; without it TSGB_VAST_URL."""
    evaluate: Annotated[bool, Flag("--evaluate/--no-evaluate")] = True
    """Evaluate on this machine (stage 2) after the training."""

    @property
    def trained_arms(self) -> tuple[Arm, ...]:
        """The arms to train, self-play first: the others are measured against it."""
        if self.arms is None:
            return default_arms(self.profile)
        return tuple(arm for arm in Arm if arm in self.arms)

    @property
    def training_seeds(self) -> range:
        """The seeds to train, each in a run of its own."""
        num = SEEDS[self.profile] if self.seeds is None else self.seeds
        return range(self.seed, self.seed + num)

    def model_overrides(self) -> dict[str, Any]:
        """Changes to the configuration by which the options name models."""
        named = {
            "pretrained": self.model,
            "target": self.target_model,
            "black_boxes": self.black_boxes,
        }
        chosen = {name: value for name, value in named.items() if value is not None}
        return {"model": chosen} if chosen else {}

    def parameters(self) -> dict[str, Any]:
        """The options as parameters of the flow stage 1: JSON values, none of them null."""
        return self.model_dump(mode="json", exclude_none=True, exclude=NOT_OF_A_RUN)

    def applied_to(self, settings: S) -> S:
        """Return the settings, with the rental's options in place of theirs where one is given."""
        given = {
            "budget": self.budget,
            "max_price": self.max_price,
            "vast_url": self.service_url,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        return settings.model_copy(update=changes)


def flag_of(name: str) -> Flag:
    """The spelling of a field of `RunOptions` on the command line."""
    metadata = RunOptions.model_fields[name].metadata
    return next(item for item in metadata if isinstance(item, Flag))


@cache
def _schemas() -> Mapping[str, Mapping[str, Any]]:
    """Make the JSON schemas of all fields once: a command line asks for each several times."""
    return RunOptions.model_json_schema()["properties"]


def value_schema(name: str) -> Mapping[str, Any]:
    """Return the JSON schema of a field's value, with its type and bounds.

    For a field that may be None, it is the schema of the value that it has otherwise.
    """
    schema = _schemas()[name]
    [value, *_] = schema.get("anyOf", [schema])
    return value


def read_options(**values: Any) -> RunOptions:
    """Validate the options of a run.

    Raises:
        UsageError: A value breaks its rule; the message names the option.
    """
    try:
        return RunOptions(**values)
    except ValidationError as error:
        raise UsageError(_complaint(error)) from None


def _complaint(error: ValidationError) -> str:
    first = error.errors()[0]
    context = first.get("ctx", {})
    if "error" in context:
        return str(context["error"])
    name = str(first["loc"][0])
    if name not in RunOptions.model_fields:
        return f"a run has no option {name!r}: choose of {', '.join(RunOptions.model_fields)}"
    option = f"{flag_of(name).name} {first['input']!r}"
    if first["type"] == "enum":
        known = context["expected"].replace(" or ", ", ").replace("'", "")
        return f"{option} is not known: choose from {known}"
    return f"{option}: {first['msg'][0].lower()}{first['msg'][1:]}"
