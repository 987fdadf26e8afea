"""Models in the exchange: sent once, got back byte for byte, and never believed unread."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.fakes.chat_model import save_chat_model
from tsgb.checkpoint.filesystem import FileSystem, open_filesystem
from tsgb.errors import ConfigError
from tsgb.models.fetch import fetch
from tsgb.models.files import WEIGHTS, identity
from tsgb.models.pushed import PIECE_BYTES, PushedList, PushedModels, short_name
from tsgb.models.source import ModelSource, inspect
from tsgb.setting_groups import HubSettings

SMALL = 100_000
"""Bytes of a piece in these tests."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def exchange(tmp_path: Path) -> FileSystem:
    return open_filesystem(str(tmp_path / "exchange"))


@pytest.fixture
def laptop(tmp_path: Path, exchange: FileSystem) -> PushedModels:
    return PushedModels(tmp_path / "laptop", exchange, piece_bytes=SMALL)


@pytest.fixture
def machine(tmp_path: Path, exchange: FileSystem) -> PushedModels:
    return PushedModels(tmp_path / "machine", exchange)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A directory with weights of two whole pieces and a rest, all different."""
    directory = tmp_path / "large"
    directory.mkdir()
    (directory / WEIGHTS).write_bytes(Random(1).randbytes(2 * SMALL + 5))
    (directory / "config.json").write_text("{}")
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.suffix != ".part"}


def test_a_machine_gets_what_the_laptop_has(
    model: Path, tmp_path: Path, exchange: FileSystem, laptop: PushedModels
) -> None:
    result = laptop.push(model, "tiny")
    name = result.pushed.full_name
    assert ModelSource.parse(name).name == name
    hub = HubSettings(models_url=exchange.url)
    facts = inspect(name, hub, tmp_path / "machine")
    assert (facts.name, facts.family) == (name, "llama")
    assert facts.directory is not None
    assert not (facts.directory / WEIGHTS).exists(), "a look needs no weights"
    found = fetch(name, hub, tmp_path / "machine")
    assert found.identity == identity(model)
    here = {path.name: path.read_bytes() for path in model.iterdir()}
    assert (
        contents(found.directory).items()
        >= {name: data for name, data in here.items() if name in result.pushed.files}.items()
    )
    # The laptop itself asks nobody, and keeps nothing twice.
    kept = fetch(name, HubSettings(), tmp_path / "laptop").directory / WEIGHTS
    assert kept.resolve() == (model / WEIGHTS).resolve()


def test_each_content_is_sent_once(large: Path, laptop: PushedModels, tmp_path: Path) -> None:
    first = laptop.push(large, "one")
    assert first.sent_bytes == first.pushed.size
    assert laptop.push(large, "one").sent_bytes == 0
    other = Path(shutil.copytree(large, tmp_path / "two"))
    (other / "config.json").write_text('{"a":1}')
    assert laptop.push(other, "two").sent_bytes == len('{"a":1}')
    assert [one.name for one in laptop.listed()] == ["one", "two"]
    assert laptop.delete(first.pushed.pin) == len("{}")  # the weights belong to the other one too
    assert [one.name for one in laptop.listed()] == ["two"]


def test_a_transfer_that_was_cut_off_goes_on(
    large: Path, laptop: PushedModels, machine: PushedModels
) -> None:
    def kill(done: int, _total: int) -> None:
        if done >= SMALL:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        laptop.push(large, "large", kill)
    assert laptop.listed() == []
    result = laptop.push(large, "large")
    assert 0 < result.sent_bytes < result.pushed.size
    name = result.pushed.name, result.pushed.pin
    with pytest.raises(KeyboardInterrupt):
        machine.fetch(*name, kill)
    seen: list[int] = []
    directory = machine.fetch(*name, lambda done, _: seen.append(done))
    assert min(seen) > SMALL, "the first piece was there"
    assert (directory / WEIGHTS).read_bytes() == (large / WEIGHTS).read_bytes()


def spoil(change: Callable[[bytes], bytes | None]) -> Callable[[FileSystem, PushedList], None]:
    def spoiled(exchange: FileSystem, pushed: PushedList) -> None:
        path = f"pieces/{pushed.files[WEIGHTS].pieces[0]}"
        data = change(exchange.read(path))
        if data is None:
            exchange.delete(path)
        else:
            exchange.write(path, data)

    return spoiled


def lie(exchange: FileSystem, pushed: PushedList) -> None:
    """Write another list under the pin."""
    document = json.loads(pushed.content)
    other = hashlib.sha256(b"other").hexdigest()
    exchange.write(f"pieces/{other}", b"other")
    document["files"][WEIGHTS] = {"size": 5, "sha256": other, "pieces": [other]}
    exchange.write(f"lists/{pushed.pin}.json", json.dumps(document).encode())


def grow(exchange: FileSystem, pushed: PushedList) -> None:
    exchange.write(f"lists/{pushed.pin}.json", b"[" * (2**20 + 1))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (spoil(lambda data: b"x" + data[1:]), "has another content than its name says"),
        (spoil(lambda data: data[:-1]), "has another content"),
        (spoil(lambda data: data + bytes(PIECE_BYTES)), "is too large"),
        (spoil(lambda _: None), "is missing"),
        (lie, "has another hash"),
        (grow, "too large"),
    ],
)
def test_what_a_host_changed_is_not_loaded(
    harm: Callable[[FileSystem, PushedList], None],
    message: str,
    model: Path,
    laptop: PushedModels,
    machine: PushedModels,
    exchange: FileSystem,
) -> None:
    pushed = laptop.push(model, "tiny").pushed
    harm(exchange, pushed)
    with pytest.raises(ConfigError, match=rf"{message}.*again with `tsgb models push --again`"):
        machine.fetch(pushed.name, pushed.pin)
    laptop.push(model, "tiny", again=True)
    assert machine.fetch(pushed.name, pushed.pin).is_dir()


@pytest.mark.parametrize("name", ["../../evil.safetensors", "a/b.safetensors", "evil.py", ""])
def test_a_list_names_files_of_a_model_alone(name: str) -> None:
    with pytest.raises(ValueError, match="is no file of a model"):
        PushedList.model_validate(
            {"name": "n", "files": {name: {"size": 0, "sha256": "0" * 64, "pieces": []}}}
        )


def test_what_is_not_whole_is_found_before_anything_is_rented(
    model: Path, laptop: PushedModels, exchange: FileSystem
) -> None:
    pushed = laptop.push(model, "tiny").pushed
    laptop.check_there(pushed.name, pushed.pin)
    spoil(lambda data: data[:-1])(exchange, pushed)
    with pytest.raises(ConfigError, match=r"1 of .* pieces are missing or cut short"):
        laptop.check_there(pushed.name, pushed.pin)
    laptop.push(model, "tiny")
    laptop.check_there(pushed.name, pushed.pin)
    with pytest.raises(ConfigError, match="push it with `tsgb models push`"):
        laptop.check_there("tiny", "0" * 40)


def test_a_model_that_changed_here_is_not_used(
    model: Path, tmp_path: Path, laptop: PushedModels
) -> None:
    own = Path(shutil.copytree(model, tmp_path / "own"))
    pushed = laptop.push(own, "own").pushed
    (own / WEIGHTS).write_bytes(b"other")
    alone = PushedModels(laptop.cache_dir)
    with pytest.raises(ConfigError, match=f"`tsgb models pull {pushed.full_name}`"):
        alone.fetch(pushed.name, pushed.pin)
    directory = laptop.fetch(pushed.name, pushed.pin)
    assert (directory / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()
    assert (own / WEIGHTS).read_bytes() == b"other", "a link is replaced, and not what it names"


@pytest.mark.parametrize("name", ["pushed:", "pushed:x", "pushed:x@main", f"pushed:a/b@{'0' * 40}"])
def test_a_name_that_is_none_says_where_names_are(name: str) -> None:
    with pytest.raises(ConfigError, match="copy it from `tsgb models list`"):
        ModelSource.parse(name)


@pytest.mark.parametrize(
    ("given", "name"),
    [("Qwen/Qwen2.5-0.5B", "Qwen2.5-0.5B"), ("/a/my model/", "my-model"), ("/", "model")],
)
def test_short_names(given: str, name: str) -> None:
    assert short_name(given) == name
