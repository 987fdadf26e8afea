"""Parameters of a flow, taken from the options of a run.

Prefect reads a flow's signature and docstring: its form and its checks follow from them.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from tsgb.run_options import RunOptions, value_schema

R = TypeVar("R")


def takes(names: Iterable[str]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a function the named options of a run as keyword parameters, in the order of the run's.

    The function declares them as one `**options`. Further parameters of its own come first.
    """
    chosen = set(names)
    fields = {name: field for name, field in RunOptions.model_fields.items() if name in chosen}

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        shared = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=field.rebuild_annotation(),
            )
            for name, field in fields.items()
        ]
        described = [f"    {name}: {description_of(name)}" for name in fields]
        attributes: dict[str, Any] = vars(function)
        attributes["__signature__"] = signature.replace(parameters=[*own, *shared])
        function.__doc__ = _with_arguments(inspect.getdoc(function) or "", described)
        return function

    return decorate


def description_of(name: str) -> str:
    """Return the help of an option in one line, with its bounds, which the form does not show."""
    schema = value_schema(name)
    named = {"minimum": "at least", "maximum": "at most"}
    bounds = [f"{text} {schema[bound]:,}" for bound, text in named.items() if bound in schema]
    text = " ".join((RunOptions.model_fields[name].description or "").split())
    return f"{text} It is {' and '.join(bounds)}." if bounds else text


def _with_arguments(docstring: str, lines: Iterable[str]) -> str:
    """Return the docstring, with these lines in its section `Args`."""
    described = "\n".join(lines)
    before, heading, after = docstring.partition("\nArgs:\n")
    if heading:
        own, _, rest = after.partition("\n\n")
        return f"{before}{heading}{own}\n{described}\n\n{rest}"
    return f"{docstring}\n\nArgs:\n{described}\n"
