"""The card, and models on it. Without a card every test here is skipped, and says so.

uv run pytest tests/gpu -rPs
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from tests.fakes.families import save_family
from tsgb.models.chat_tokenizer import ChatTokenizer
from tsgb.models.general.general_engine import GeneralEngine
from tsgb.models.general.loading import load_module


@pytest.fixture(scope="session")
def card() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA card here: run tests/gpu on a machine that has one")
    transformers.utils.logging.disable_progress_bar()
    return torch.device("cuda")


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model with its tokenizer, as transformers saves it."""
    return save_family(tmp_path_factory.mktemp("models") / "qwen2", "qwen2")


def load(directory: Path, device: torch.device, dtype: torch.dtype) -> GeneralEngine:
    module, tokenizer = load_module(directory, device, dtype), ChatTokenizer(directory)
    return GeneralEngine(
        module,
        tokenizer,
        name="tiny",
        sha256="0" * 64,
        directory=directory,
        micro_batch_tokens=512,
    )
