"""What scoring a user's files takes of an evaluation, without models: guards go by lengths."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tsgb.checkpoint.run import open_run
from tsgb.config import make_config
from tsgb.envs.canary import CanaryEnvironment
from tsgb.eval.calibrated import CalibratedGuard, no_guard
from tsgb.protocols import Scores

MAP = ["prompt=q label=bad group=g slice=kind"]


class LengthGuard:
    """Scores a prompt by its length; has no word on prompts with a question mark."""

    def __init__(self) -> None:
        self.asked = 0

    def score(self, prompts: Sequence[str]) -> Scores:
        self.asked += len(prompts)
        return np.array([np.nan if "?" in text else float(len(text)) for text in prompts])


class WordCounter:
    """A tokenizer of words."""

    def encode(self, text: str) -> list[int]:
        return [0] * len(text.split())


class Registry:
    """A registry of one dtype."""

    def __init__(self, dtype: str = "float32") -> None:
        self.dtype = dtype

    def tokenizer(self) -> WordCounter:
        return WordCounter()

    def free_black_box(self) -> None:
        pass


class DataConfig:
    seed = 4
    evaluation = make_config().evaluation


class StandIn:
    """What `fill_data` takes of an evaluation."""

    directory = "reports/e1"
    config = DataConfig()

    def __init__(
        self,
        place: Path,
        dtype: str = "float32",
        take_usage: Callable[[], list[dict[str, Any]]] = list,
    ) -> None:
        self.take_usage = take_usage
        self.env = CanaryEnvironment(world_seed=0)
        self.run = open_run(str(place / "r1"))
        self.registry = Registry(dtype)
        self.guard = LengthGuard()

    def guards(self) -> list[CalibratedGuard]:
        return [no_guard(), CalibratedGuard("length", self.guard, threshold=12.0)]


def rows(tmp_path: Path, texts: Sequence[str]) -> Path:
    path = tmp_path / "own.jsonl"
    content = [
        {"q": text, "bad": i % 2, "g": i // 2, "kind": "birds"} for i, text in enumerate(texts)
    ]
    path.write_text("\n".join(map(json.dumps, content)))
    return path
