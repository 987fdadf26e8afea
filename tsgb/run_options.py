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
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^(?!(latest|checkpoints)$)[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$(?!\n)",
        }
    ),
]
"""Name of a run: a directory of the store."""
Text = Annotated[str, Field(min_length=1)]
"""A name, path or address: never empty."""
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""A seed from which every generator can derive its own: they take 64 bits."""


class RunOptions(BaseModel):
    """All that a user may choose about a run.

    The order is that of the form in Prefect's UI: what a run is and where it trains, then details
    of the training, then those of the evaluation.

    Example: `RunOptions(run="r1", profile=Profile.SMOKE)`
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    profile: Annotated[Profile, Flag("--profile", "|".join(Profile))] = Profile.DEMO
    """The size of the run: smoke takes about a minute and shows that every step works, demo takes
    minutes and shows an effect on one seed, paper takes hours, and so does study: as an experiment
    it asks in several worlds when self-play pays, and as one run it has the sizes of its parts."""
    env: Annotated[Text, Flag("--env", "NAME")] = "glyph"
    """The world that attacker and guard play in: glyph, canary, or code of yours as
    module:attribute."""
    run: Annotated[RunId | None, Flag("--run-id", "ID")] = None
    """The name of the run, as in first-try. A run that exists is resumed; without a name, a new one
    is made."""
    seed: Annotated[Seed, Flag("--seed")] = 0
    """The seed of all that happens in the world, as in 7. The same seed repeats the same run."""
    model: Annotated[Text | None, Flag("--model", "NAME")] = None
    """The pretrained base of both players, as in org/name@revision, a directory, gguf:FILE or
    smollm2. Without it, the world brings a small model of its own."""
    targets: Annotated[list[Text] | None, Flag("--target", "NAME", form="repeated")] = None
    """The targets that the guards are evaluated on: names of the world's, or endpoints such as
    openai:MODEL@URL. Without it, those of the profile are asked, or all of the world's where it
    names none, and all of the targets file."""
    machine: Annotated[MachineKind, Flag("--machine")] = MachineKind.LOCAL
    """The machine that trains: local is the one that the flow runs on, rented is one rented
    instance at a time."""
    budget: Annotated[
        Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, Flag("--budget")
    ] = None
    """The dollars that all seeds together may cost on rented machines, as in 20. Without it, the
    setting TSGB_BUDGET counts."""
    max_price: Annotated[Annotated[float, Field(ge=0.001, le=128)] | None, Flag("--max-price")] = (
        None
    )
    """The dollars an hour that one rented machine may cost, storage included, as in 0.4. Without
    it, the setting TSGB_MAX_PRICE counts."""
    machines: Annotated[Annotated[int, Field(ge=1, le=100)], Flag("--machines", "N")] = 1
    """The most machines that are rented at once: one for each seed, and where there are more than
    seeds, one for each arm of each seed."""
    store: Annotated[Text | None, Flag("--store", "URL")] = None
    """The place of all runs, as a path or an fsspec URL. Without it, the settings TSGB_STORE and
    RCLONE_WEBDAV_URL count, or else the directory ./runs."""
    service_url: Annotated[Text | None, Flag("--vast-url", "URL")] = None
    """The address of the service that rents machines, or of a simulator of it. Without it, the
    setting TSGB_VAST_URL counts."""
    arms: Annotated[
        Annotated[
            list[Arm],
            AfterValidator(_with_selfplay),
            Field(json_schema_extra={"contains": {"const": Arm.SELFPLAY.value}}),
        ]
        | None,
        Flag("--arms", "A,B,...", form="commas"),
    ] = None
    """The arms to train, selfplay among them, since all are measured against it. Without it, those
    of the profile are trained."""
    seeds: Annotated[Annotated[int, Field(ge=1, le=100)] | None, Flag("--seeds", "N")] = None
    """The number of training seeds, counted from the seed on, that one report pools. They share
    the budget. Without it, paper and study train five and the others train one."""
    world_seed: Annotated[Seed, Flag("--world-seed")] = 0
    """The seed that the world itself is drawn from: its policy, its weaknesses, its models."""
    target_model: Annotated[Text | None, Flag("--target-model", "NAME")] = None
    """The pretrained model of the world's targets, named as the base is. Without it, they have the
    base."""
    black_boxes: Annotated[list[Text] | None, Flag("--black-box", "NAME", form="repeated")] = None
    """Further pretrained models that the guards are evaluated on as they are, named as the base
    is."""
    train_data: Annotated[list[Text] | None, Flag("--train-data", "FILE", form="repeated")] = None
    """Files with labelled prompts of yours; the guard learns from their train split. The store gets
    a copy."""
    train_map: Annotated[list[Text] | None, Flag("--map", "KEY=COLUMN", form="repeated")] = None
    """The columns of the training files, as in prompt=COL, label=COL=VALUE or group=COL."""
    overrides: Annotated[dict[str, Any] | None, Flag("--set", "NAME=VALUE", form="pairs")] = None
    """Changes to the configuration: selfplay.rounds=2 on the command line is, as a parameter,
    {"selfplay": {"rounds": 2}}."""
    targets_file: Annotated[Text | None, Flag("--targets-file", "FILE")] = None
    """A TOML file that declares endpoints as [targets.NAME]. They are evaluated on like the world's
    targets."""
    adaptive: Annotated[int, Field(ge=0), Flag("--adaptive", "N")] = 0
    """The number of attacks that fresh attackers may send to each endpoint, of all seeds together.
    With 0, none are sent."""
    max_requests: Annotated[Annotated[int, Field(ge=0)] | None, Flag("--max-requests", "N")] = None
    """The number of requests that the evaluation may send to endpoints, repeated ones included.
    Without it, there is no limit."""
    max_cost: Annotated[
        Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, Flag("--max-cost")
    ] = None
    """The dollars that the evaluation may spend on endpoints, by the prices of the targets file.
    Without it, there is no limit."""
    target_class: Annotated[
        list[Text] | None, Flag("--target-class", "MODULE:CLASS", form="repeated")
    ] = None
    """Black boxes of yours, as in mine:MyBox, with generate(prompt) -> str. They are evaluated on
    beside the targets."""
    judge: Annotated[Text | None, Flag("--judge", "FORM")] = None
    """A judge that replaces the world's, as in exact, openai:MODEL@URL, local:NAME or
    classifier:NAME."""
    judge_class: Annotated[Text | None, Flag("--judge-class", "MODULE:CLASS")] = None
    """A judge of yours, as in mine:MyJudge, with judge(response, is_benign) -> bool. It replaces
    the world's."""
    human_labels: Annotated[Text | None, Flag("--human-labels", "FILE")] = None
    """A file of labels that people gave to answers, in JSON lines or CSV. The rates are corrected
    by them for the judge's errors."""
    guards: Annotated[list[Text] | None, Flag("--guard", "FORM", form="repeated")] = None
    """Guards of yours that are measured beside those of the run, as in keywords:FILE or
    export:DIR."""
    fresh: Annotated[bool, Flag("--fresh")] = False
    """Evaluates again what was evaluated already."""
    evaluate: Annotated[bool, Flag("--evaluate/--no-evaluate")] = True
    """Evaluates on this machine (stage 2) after the training."""

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
