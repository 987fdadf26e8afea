"""What a rented machine installs: the files of `infra/requirements/`, against what is required."""

from __future__ import annotations

import re
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
GROUPS = ("base", "torch", "smollm2", "quantization")
PYTHONS = ("3.11", "3.12")
CONTROL_PLANE = {"prefect", "fastapi", "sqlalchemy"}
LINE = re.compile(
    r"[a-z0-9-]+==\S+( ; python_version == \"3\.1[12]\")?(\s+--hash=sha256:[0-9a-f]{64})+"
)
WAY = "run `uv run poe requirements`"


def lines(group: str) -> list[str]:
    text = (ROOT / "infra" / "requirements" / f"{group}.txt").read_text()
    return text.replace("\\\n", " ").splitlines()


def pins(python: str, *groups: str) -> dict[str, str]:
    """Version of each package that a machine with this Python installs."""
    found: dict[str, str] = {}
    for one in (Requirement(line.partition(" --hash")[0]) for g in groups for line in lines(g)):
        if one.marker is None or one.marker.evaluate({"python_version": python}):
            [pinned] = one.specifier
            assert found.setdefault(one.name, pinned.version) == pinned.version
    return found


def environment(python: str, extra: str = "") -> dict[str, str]:
    return {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "platform_system": "Linux",
        "extra": extra,
    }


def required(name: str, python: str, extras: set[str]) -> list[Requirement]:
    found = map(Requirement, requires(name) or [])
    known = [environment(python, extra) for extra in ("", *extras)]
    return [one for one in found if not one.marker or any(map(one.marker.evaluate, known))]


@pytest.mark.parametrize("group", GROUPS)
def test_each_line_has_a_version_and_hashes_and_no_host(group: str) -> None:
    found = lines(group)
    assert [line for line in found if not LINE.fullmatch(line)] == []


@pytest.mark.parametrize("python", PYTHONS)
def test_the_versions_are_what_the_project_requires(python: str) -> None:
    extras = {"smollm2", "quantization"}
    found = pins(python, *GROUPS)
    wanted = [one for one in required("tsgb", python, extras) if one.name not in CONTROL_PLANE]
    assert len(wanted) > 20
    for one in wanted:
        assert found.get(one.name, "none") in one.specifier, f"{one}: {WAY}"
    assert not CONTROL_PLANE & found.keys()
    assert "torch" not in pins(python, "base"), "an image that has it keeps it"


@pytest.mark.parametrize("python", PYTHONS)
def test_no_package_lacks_what_it_requires(python: str) -> None:
    """They are installed without dependencies, so the list must be whole; torch's own is apart.

    As the packages of this environment say, where they have the versions of the list.
    """
    found = pins(python, "base", "torch")
    seen: set[tuple[str, str]] = set()
    compared = 0
    todo = [one for one in required("tsgb", python, set()) if one.name not in CONTROL_PLANE]
    while todo:
        one = todo.pop()
        name = str(canonicalize_name(one.name))
        assert name in found, f"{one}: {WAY}"
        assert found[name] in one.specifier, f"{one}: {WAY}"
        for extra in ("", *one.extras):
            if (name, extra) in seen or name == "torch" or version(name) != found[name]:
                continue
            seen.add((name, extra))
            compared += 1
            more = map(Requirement, requires(name) or [])
            known = environment(python, extra)
            todo += [r for r in more if not r.marker or r.marker.evaluate(known)]
    assert compared > 40
