"""What flows use of Prefect's inside exists in the installed version: its guides promise none.

`poe prefect-oldest` runs this on the oldest version of the range, the default run on the newest.
"""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from importlib import import_module
from pathlib import Path

import prefect.settings
import pytest

from flows import embedded

INSIDE = {
    "prefect.client.base.ServerType": ("CLOUD", []),
    "prefect.events.worker.EventsWorker": ("drain_all", ["timeout"]),
    "prefect.logging.handlers.APILogWorker": ("drain_all", ["timeout"]),
    "prefect.logging.handlers.PrefectConsoleHandler": ("setLevel", ["level"]),
    "prefect.server.api.server.create_app": (None, ["ephemeral"]),
    "prefect.utilities.callables.parameter_schema": (None, ["fn"]),
}
"""What is imported from there, with the member that is used and the parameters that it is given."""
MODULES = ("base", "handlers", "server", "utilities", "worker")
"""Names of Prefect's modules for its own use; those that begin with `_` are not for us at all."""
FLOWS = Path(embedded.__file__).parent


def imported() -> set[str]:
    """Names that `flows` imports from Prefect's inside."""
    found: set[str] = set()
    for path in FLOWS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prefect."):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                parts = str(node.module).split(".")
                if {*parts} & {*MODULES} or any(part.startswith("_") for part in parts):
                    found |= {*names}
    return found


def test_all_that_is_used_is_listed() -> None:
    assert imported() == {*INSIDE}


@pytest.mark.parametrize("name", INSIDE)
def test_it_is_there_with_its_parameters(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    member, parameters = INSIDE[name]
    used = getattr(import_module(module), attribute)
    used = used if member is None else getattr(used, member)
    if parameters:
        signature = inspect.signature(used).parameters.values()
        takes_all = any(one.kind is one.VAR_KEYWORD for one in signature)
        assert takes_all or {*parameters} <= {one.name for one in signature}


def test_prefect_knows_each_setting_of_the_server(tmp_path: Path) -> None:
    """It ignores a variable that it does not know, and what should be off would stay on."""
    names = {*embedded.server_settings(tmp_path, migrated=True)} - {"DO_NOT_TRACK"}
    assert {name for name in names if not hasattr(prefect.settings, name)} == set()


def test_the_oldest_version_of_the_range_is_the_one_that_is_tested() -> None:
    project = tomllib.loads((FLOWS.parent / "pyproject.toml").read_text())
    (needed,) = (one for one in project["project"]["dependencies"] if one.startswith("prefect"))
    oldest = re.search(r">=([\d.]+)", needed)
    assert oldest is not None
    assert f"prefect=={oldest[1]}" in str(project["tool"]["poe"]["tasks"]["prefect-oldest"])
