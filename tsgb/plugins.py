"""A user's own code, named as `module:attribute`: when it may be imported, and how it is loaded."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsgb.errors import UsageError


@dataclass(frozen=True, slots=True)
class Trust:
    """The modules that may be imported although a stored document names them.

    Whoever can write to a store can put any name into a run's configuration, so a name from there
    is imported only if this process's own user named it too.

    Example: `Trust.of("my_world:World")`
    """

    named: frozenset[str] = frozenset()
    """`module:attribute` names from this process's own command line or flow parameters."""
    all: bool = False
    """Whether the user trusts every stored document (`--trust-config`)."""

    @classmethod
    def of(cls, *named: str | None, trust_config: bool = False) -> Trust:
        """Trust these names; None is no name."""
        return cls(frozenset(name for name in named if name), trust_config)

    def allows(self, name: str) -> bool:
        """Return whether the module of `name` may be imported."""
        return self.all or name in self.named


NO_TRUST = Trust()


@dataclass(frozen=True, slots=True)
class Plugin:
    """A loaded attribute of a user's module."""

    path: str
    """`module:attribute`, as the user named it."""
    made: Any
    """The attribute, or an instance of it if it is a class."""

    @property
    def name(self) -> str:
        """Name in tables: the attribute's."""
        return self.path.partition(":")[2]

    @property
    def identity(self) -> Mapping[str, str] | None:
        """The declared name and version, and the hash of the file; None if nothing is declared.

        The code declares it with attributes `name` and `version`, texts or integers. Only then an
        earlier evaluation can stand for a new one.
        """
        found = declared(self.made)
        return None if found is None else {**found, "sha256": self.source_sha256}

    @property
    def source_sha256(self) -> str:
        """The hash of the file that the attribute came from; empty if it has none."""
        file = sys.modules[self.path.partition(":")[0]].__file__
        return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()


def declared(made: object) -> Mapping[str, str] | None:
    """Return the `name` and `version` that an object declares; None unless it declares both."""
    found = {key: getattr(made, key, None) for key in ("name", "version")}
    if not all(isinstance(value, (str, int)) and str(value) for value in found.values()):
        return None
    return {key: str(value) for key, value in found.items()}


def load_attribute(path: str, label: str, error: type[UsageError] = UsageError) -> Any:
    """Import the module of `module:attribute` and return the attribute.

    Args:
        path: The name.
        label: What names it, such as `--target-class`; the message begins with it.
        error: Class of the error.

    Raises:
        UsageError: It is no such name, or the module cannot be imported: also where it raises
            `SystemExit` or `CancelledError`, which would end this process as if all were well.
    """
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise error(f"{label} {path!r} is not module:attribute, as in my_module:MyClass")
    try:
        return getattr(importlib.import_module(module), attribute)
    except KeyboardInterrupt:
        raise
    except BaseException as raised:
        raise error(
            f"{label} {path!r} cannot be loaded: {type(raised).__name__}: {raised}; the module is "
            "looked for in the working directory and among the installed packages"
        ) from raised


def load_plugin(path: str, label: str) -> Plugin:
    """Load `module:attribute`; a class is instantiated without arguments.

    Raises:
        UsageError: It cannot be loaded or instantiated.
    """
    found = load_attribute(path, label)
    if not isinstance(found, type):
        return Plugin(path, found)
    try:
        return Plugin(path, found())
    except KeyboardInterrupt:
        raise
    except BaseException as raised:
        raise UsageError(
            f"{label} {path!r} cannot be instantiated: {type(raised).__name__}: {raised}"
        ) from raised
