"""Evaluations that are killed: what was answered is not asked again, and the table is the same."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fakes.black_box_server import BlackBoxServer
from tests.fakes.miniature import obedient
from tests.fakes.scripted_part import CONCURRENCY, NUM_PROMPTS
from tsgb.envs.glyph import GlyphEnvironment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
SECONDS = 0.01
"""Time that the black box takes for an answer."""


class Scene:
    """A directory, and a black box that may kill its client when it gets a request."""

    def __init__(self, directory: Path, answer: Callable[[str], str]) -> None:
        self.directory = directory
        self.kill_at = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._started = threading.Event()
        self.server = BlackBoxServer(answer, seconds=SECONDS, on_request=self._request)

    def _request(self, num: int) -> None:
        if num == self.kill_at:
            self._started.wait()
            assert self._process is not None
            self._process.send_signal(signal.SIGKILL)

    def run(self, model: str = "m1", kill_after: int | None = None) -> int:
        """Run a process to its end, or until so many requests came; gives its exit status."""
        self.kill_at = -1 if kill_after is None else len(self.server.asked) + kill_after
        command = [sys.executable, "-m", "tests.fakes.scripted_part"]
        self._started.clear()
        with subprocess.Popen(
            [*command, str(self.directory), self.server.url, model], cwd=ROOT
        ) as self._process:
            self._started.set()
            return self._process.wait()

    @property
    def repeated(self) -> int:
        """Requests for what was requested before."""
        return sum(num - 1 for num in self.asked.values())

    @property
    def asked(self) -> Counter[str]:
        return Counter(self.server.asked)

    @property
    def items(self) -> list[dict[str, Any]]:
        return json.loads((self.directory / "items.json").read_text())


def glyph_answers() -> Callable[[str], str]:
    bot = obedient(GlyphEnvironment(world_seed=0), 0)
    return lambda prompt: bot.answer([[{"role": "user", "content": prompt}]])[0].text


@pytest.mark.parametrize(
    "num_kills", [3, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_a_kill_costs_at_most_the_requests_on_their_way(tmp_path: Path, num_kills: int) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    answer = glyph_answers()
    whole, killed = Scene(tmp_path / "whole", answer), Scene(tmp_path / "killed", answer)
    with whole.server, killed.server:
        assert whole.run() == 0
        draws = len(whole.server.asked)
        assert draws == NUM_PROMPTS
        twice = whole.repeated  # a stream may draw a prompt twice
        rng = Random(12)
        moments = sorted(rng.sample(range(1, draws), num_kills))
        for num, (before, moment) in enumerate(zip([0, *moments], moments, strict=False), start=1):
            assert killed.run(kill_after=moment - before) == -signal.SIGKILL
            assert killed.repeated <= twice + CONCURRENCY * num
        assert killed.run() == 0
        assert len(killed.server.asked) <= draws + CONCURRENCY * num_kills
        assert killed.items == whole.items
        assert any(item["violated"] for item in killed.items)

        before = len(killed.server.asked)
        assert killed.run() == 0
        assert len(killed.server.asked) == before, "all is known"
        assert killed.run(model="m2") == 0
        assert len(killed.server.asked) == before + draws, "another model is asked anew"
        assert killed.items == whole.items
