"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from tsgb.checkpoint.documents import parse_json
from tsgb.errors import UsageError
from tsgb.plugins import NO_TRUST, Trust
from tsgb.run_options import RunOptions, flag_of, read_options, value_schema

if TYPE_CHECKING:
    from tsgb.targets.spending import CostEstimate
    from tsgb.worker.context import WorkerContext

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
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on stdout, all else on stderr."),
]

DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Print what asking endpoints would cost, and ask nothing."),
]

BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="NAME", help="Name or directory of the base that the export lacks."
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:N or mps; auto: a card if any."),
]

R = TypeVar("R")
_TYPES = {"integer": int, "number": float, "string": str, "boolean": bool}


def takes(*names: str, **defaults: Any) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Add the named options of a run to a command, in place of its parameter `options`.

    The command is called with one `RunOptions`, and with the rest of its own parameters.

    Args:
        names: Fields of `RunOptions`.
        defaults: Other defaults than those of `RunOptions`, or values of fields without an option.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        @wraps(function)
        def command(**values: Any) -> R:
            chosen = {name: parse_text(name, values.pop(name)) for name in names}
            return function(options=read_options(**{**defaults, **chosen}), **values)

        own = inspect.signature(function, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for parameter in own.parameters.values():
            if parameter.name == "options":
                parameters += [_parameter(name, defaults) for name in names]
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        attributes: dict[str, Any] = vars(command)
        attributes["__signature__"] = own.replace(parameters=parameters)
        return command

    return decorate


def _parameter(name: str, defaults: Mapping[str, Any]) -> inspect.Parameter:
    """Return the option of the command line for a field of `RunOptions`."""
    field, flag = RunOptions.model_fields[name], flag_of(name)
    schema = value_schema(name)
    default = defaults.get(name, field.default)
    text = (field.description or "").rstrip(".")
    annotation: Any = _TYPES.get(schema.get("type", "string"), str)
    if flag.form in {"repeated", "pairs"}:
        annotation, text = list[str], f"{text}; may be repeated"
    elif flag.form == "commas":
        annotation = str
    option = typer.Option(
        flag.name,
        metavar=flag.metavar,
        min=schema.get("minimum"),
        max=schema.get("maximum"),
        help=f"{text}.",
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[annotation if default is not None else annotation | None, option],
    )


def parse_text(name: str, value: Any) -> Any:
    """Return the value of a text on the command line, which `RunOptions` checks afterwards."""
    flag = flag_of(name)
    if flag.form == "pairs":
        return parse_overrides(value) or None
    if flag.form == "commas":
        return parse_names(value, flag.name)
    return (value or None) if flag.form == "repeated" else value


def parse_names(text: str | None, option: str) -> list[str] | None:
    """Return the names between commas; None without the option.

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
    """Return nested overrides, such as `{"selfplay": {"rounds": 2}}` for `selfplay.rounds=2`.

    A value is JSON, or else text.

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
        return parse_json(text)
    except ValueError:
        return text


def _check_name(text: str, path: Sequence[str]) -> None:
    from pydantic import BaseModel

    from tsgb.config import RunConfig

    same = ("profile", "env", "seed", "world_seed", "train_data")
    options = {"arm": "arms", **{name: name for name in same}}
    if path[0] in options:
        option = flag_of(options[path[0]]).name
        raise UsageError(f"--set {text!r}: use the option {option} instead")
    model: type[BaseModel] | None = RunConfig
    for depth, part in enumerate(path):
        where = ".".join(path[:depth])
        if model is None:
            raise UsageError(f"--set {text!r}: {where} has no parts, it is one value")
        field = model.model_fields.get(part)
        if field is None or part == "schema_version":
            hidden = {"schema_version", *options}
            known = ", ".join(name for name in model.model_fields if name not in hidden)
            raise UsageError(
                f"--set {text!r}: {where or 'the configuration'} has no {part!r}: choose of {known}"
            )
        kind = field.annotation
        model = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    if model is not None:
        inside = ", ".join(f"{'.'.join(path)}.{name}" for name in model.model_fields)
        raise UsageError(f"--set {text!r}: name one of its values: {inside}")


def show_estimate(estimates: Sequence[CostEstimate], *, as_json: bool) -> None:
    """Print what asking the endpoints would cost."""
    from tsgb.cli import output

    if as_json:
        output.print_json({"estimate": [asdict(one) for one in estimates]})
        return
    if not estimates:
        typer.echo("no endpoint is asked: name one with --target KIND:MODEL@URL")
    for one in estimates:
        cost = "price not known"
        if one.dollars is not None and one.most_dollars is not None:
            cost = f"about ${one.dollars:.2f}, at most ${one.most_dollars:.2f}"
        attacks = f" ({one.attacks:,} of fresh attackers at most)" if one.attacks else ""
        typer.echo(
            f"{one.name} at {one.host}: {one.requests:,} requests{attacks}, about "
            f"{one.tokens_in:,} tokens in, at most {one.tokens_out:,} out: {cost}"
        )


def read_context(trust: Trust = NO_TRUST) -> WorkerContext:
    """Return the context of a worker from the environment, with `trust` from the command line."""
    from tsgb.settings import endpoint_key, load_settings
    from tsgb.worker.context import WorkerContext

    settings = load_settings()
    settings.make_cache_dir()
    return WorkerContext(
        store=settings, worker=settings, hub=settings, trust=trust, keys=endpoint_key
    )
