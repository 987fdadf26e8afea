"""Models are built once, whoever asks, and damaged ones again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from tsgb.models.cache import cache_key, cached_tensors

KEY = cache_key({"name": "base"})


ASK = """
import sys, time
from pathlib import Path
import torch
from torch import Tensor
from tsgb.models.cache import cached_tensors

directory, log, key = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def write(line):
    with log.open("a") as file:
        file.write(line)

def build():
    write("built\\n")
    time.sleep(0.3)
    return {"weight": torch.arange(6.0).view(2, 3).t()}

tensors, _ = cached_tensors(directory, key, build)
write(f"read {tensors['weight'].sum():.0f}\\n")
"""


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    # Processes of their own: a fork of a test runner that has started threads may not come back.
    log = tmp_path / "log"
    command = [sys.executable, "-c", ASK, str(tmp_path / "models"), str(log), KEY]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert sorted(log.read_text().split("\n")) == ["", "built", "read 15", "read 15"]


def test_a_built_model_is_read(tmp_path: Path) -> None:
    first, sha256 = cached_tensors(tmp_path, KEY, lambda: {"weight": torch.ones(2, 3).t()})

    def never() -> dict[str, Tensor]:
        raise AssertionError

    second, again = cached_tensors(tmp_path, KEY, never)
    assert sha256 == again
    assert torch.equal(first["weight"], second["weight"])


def test_a_damaged_model_is_built_again(tmp_path: Path) -> None:
    def build() -> dict[str, Tensor]:
        return {"weight": torch.ones(3)}

    _, sha256 = cached_tensors(tmp_path, KEY, build)
    path = tmp_path / KEY / "model.safetensors"
    for damage in (path.read_bytes()[:-1], b""):
        path.write_bytes(damage)
        tensors, again = cached_tensors(tmp_path, KEY, build)
        assert again == sha256
        assert torch.equal(tensors["weight"], torch.ones(3))
    (tmp_path / KEY / "sha256").unlink()
    assert cached_tensors(tmp_path, KEY, build)[1] == sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([KEY, f"{KEY}.lock"])


def test_keys_tell_recipes_apart() -> None:
    assert cache_key({"a": 1, "b": 2}) == cache_key({"b": 2, "a": 1})
    assert cache_key({"a": 1}) != cache_key({"a": 2})
