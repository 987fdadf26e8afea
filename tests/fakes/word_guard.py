"""A guard that counts words: its score is the number of `bad` ones; no weights, no template.

    WordGuard(window=8, delay=0.05).assess(["so bad"], batch_size=1)[0].verdict == "unsafe"

`hangs` is a lock that whoever scores has to get first: a test that holds it stops the guard.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tsgb.export.loading import Assessment, TokenCount
from tsgb.export.record import (
    Base,
    Calibration,
    Checkpoint,
    Dtype,
    DtypeCalibration,
    GuardFile,
    OperatingPoint,
    SelfTest,
    Template,
    Verdict,
)

SHA = "0123456789ab" + "0" * 52


def guard_file(
    self_test: Sequence[SelfTest] = (SelfTest(prompt="bad", score=1, tolerance=0.01),),
) -> GuardFile:
    """The `guard.json` of such a guard, as far as anybody reads it."""
    point = OperatingPoint(value=0.5, alpha=0.01, order=1, fpr_upper=0.02)
    return GuardFile(
        adapter="full",
        template=Template(input="{prompt}", before_ids=[], after_ids=[], words=None),
        unsafe=Verdict(token="bad", id=1),  # noqa: S106
        safe=Verdict(token="good", id=2),  # noqa: S106
        omitted={},
        dtype="float32",
        dtypes={
            "float32": DtypeCalibration(
                thresholds={"run": point}, temperature=1.0, self_test=list(self_test)
            )
        },
        calibration=Calibration(
            alpha=0.01,
            delta=0.05,
            n=300,
            order=1,
            fpr_upper=0.02,
            stream="words",
            prompts_sha256=SHA,
        ),
        base=Base(name="words", sha256=SHA, source="words", directory=None, file_sha256=None),
        checkpoint=Checkpoint(
            run_id="r1", name="step-1", step=1, total_steps=1, sha256=SHA, column="guard-1"
        ),
        env="words",
        world_seed=0,
        seed=0,
        profile="smoke",
        arm="selfplay",
        config_sha256=SHA,
        versions={},
    )


@dataclass
class WordGuard:
    about: GuardFile = field(default_factory=guard_file)
    dtype: Dtype = "float32"
    window: int | None = None
    hangs: threading.Lock = field(default_factory=threading.Lock)
    batches: list[list[str]] = field(default_factory=list)
    """What was scored at once, batch after batch."""
    count_seconds: float = 0.0
    """Seconds that counting words takes."""
    begun: int = 0
    """Calls that asked for verdicts, those that wait for the lock included."""
    threads: set[int] = field(default_factory=set)

    def assess(self, prompts: Sequence[str], *, batch_size: int) -> list[Assessment]:
        assert len(prompts) <= batch_size
        self.threads.add(threading.get_ident())
        self.begun += 1
        with self.hangs:
            self.batches.append(list(prompts))
            if any("raise" in prompt for prompt in prompts):
                raise ValueError(f"a text that must not be repeated: {prompts}")
            return [self._one(prompt) for prompt in prompts]

    def count(self, prompts: Sequence[str]) -> list[TokenCount]:
        self.threads.add(threading.get_ident())
        time.sleep(self.count_seconds)
        return [TokenCount(len(p.split()), p.split().count("xyzzy")) for p in prompts]

    def _one(self, prompt: str) -> Assessment:
        if self.window is not None:
            assert len(prompt.split()) <= self.window
        score = float(prompt.split().count("bad"))
        return Assessment(score, min(1.0, score / 2), "unsafe" if score > 0.5 else "safe")
