"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsgb.errors import UsageError
from tsgb.plugins import NO_TRUST, Trust

if TYPE_CHECKING:
    from tsgb.config import Profile
    from tsgb.worker.context import WorkerContext

ProfileOption = Annotated[
    str, typer.Option("--profile", metavar="smoke|demo|paper", help="How much is spent.")
]
EnvOption = Annotated[
    str, typer.Option("--env", metavar="NAME", help="World: glyph, canary, or module:attribute.")
]
OwnEnvOption = Annotated[
    str | None,
    typer.Option(
        "--env",
        metavar="MODULE:NAME",
        help="A world of yours that the run's configuration names: its module may be imported.",
    ),
]
TrustOption = Annotated[
    bool,
    typer.Option("--trust-config", help="Import any module that the run's configuration names."),
]
TargetClassOption = Annotated[
    list[str] | None,
    typer.Option(
        "--target-class",
        metavar="MODULE:CLASS",
        help="A black box of yours, with generate(prompt) -> str; may be repeated.",
    ),
]
JudgeClassOption = Annotated[
    str | None,
    typer.Option(
        "--judge-class",
        metavar="MODULE:CLASS",
        help="A judge of yours, with judge(response, is_benign) -> bool.",
    ),
]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Evaluate again what was evaluated already.")
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, help="Draws everything that happens in the world.")
]
WorldSeedOption = Annotated[
    int, typer.Option("--world-seed", min=0, help="Draws the world: policy, weaknesses, models.")
]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="Where runs are kept: a path or any fsspec URL."),
]
RunIdOption = Annotated[
    str | None, typer.Option("--run-id", metavar="ID", help="Names the run; the same one resumes.")
]
TargetOption = Annotated[
    list[str] | None,
    typer.Option("--target", metavar="NAME", help="Evaluate on this target only; may be repeated."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Override the run's configuration, as in selfplay.rounds=2; may be repeated.",
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on stdout, all else on stderr."),
]

OWN_OPTIONS = {
    "profile": "--profile",
    "env": "--env",
    "seed": "--seed",
    "world_seed": "--world-seed",
    "arm": "--arms",
}
"""Fields of `RunConfig` that are options themselves."""


def parse_profile(text: str) -> Profile:
    """A profile by name.

    Raises:
        UsageError: There is none of that name.
    """
    from tsgb.config import Profile

    try:
        return Profile(text)
    except ValueError:
        known = ", ".join(profile.value for profile in Profile)
        raise UsageError(f"--profile {text!r} is not known: choose one of {known}") from None


def parse_names(text: str | None, option: str) -> list[str] | None:
    """Names between commas; None without the option.

    Raises:
        UsageError: A name is empty.
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(f"{option} {text!r} holds an empty name: write names between commas")
    return names


def parse_overrides(given: Sequence[str] | None) -> dict[str, Any]:
    """`["selfplay.rounds=2"]` to `{"selfplay": {"rounds": 2}}`; values are JSON, else text.

    Raises:
        UsageError: One is not NAME=VALUE, or the configuration has no such name.
    """
    overrides: dict[str, Any] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {text!r} is not NAME=VALUE, as in selfplay.rounds=2")
        path = name.split(".")
        _check_name(text, path)
        inner = overrides
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = _value(value)
    return overrides


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _check_name(text: str, path: Sequence[str]) -> None:
    from pydantic import BaseModel

    from tsgb.config import RunConfig

    if path[0] in OWN_OPTIONS:
        raise UsageError(f"--set {text!r}: use the option {OWN_OPTIONS[path[0]]} instead")
    model: type[BaseModel] | None = RunConfig
    for depth, part in enumerate(path):
        where = ".".join(path[:depth])
        if model is None:
            raise UsageError(f"--set {text!r}: {where} has no parts, it is one value")
        field = model.model_fields.get(part)
        if field is None or part == "schema_version":
            hidden = {"schema_version", *OWN_OPTIONS}
            known = ", ".join(name for name in model.model_fields if name not in hidden)
            raise UsageError(
                f"--set {text!r}: {where or 'the configuration'} has no {part!r}: choose of {known}"
            )
        kind = field.annotation
        model = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    if model is not None:
        inside = ", ".join(f"{'.'.join(path)}.{name}" for name in model.model_fields)
        raise UsageError(f"--set {text!r}: name one of its values: {inside}")


def read_context(trust: Trust = NO_TRUST) -> WorkerContext:
    """Return the context of a worker, from the environment; `trust` is from the command line."""
    from tsgb.settings import load_settings
    from tsgb.worker.context import WorkerContext

    settings = load_settings()
    settings.make_cache_dir()
    return WorkerContext(store=settings, worker=settings, trust=trust)
