"""Whether a loaded guard is the one that was exported, by the scores of its self-test."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

from tsgb.export.record import Dtype, GuardFile
from tsgb.serve.batching import Assessor

READY_DIFFERENCE: Mapping[Dtype, float] = {"float32": 1e-4, "bfloat16": 0.5}
"""Largest difference of a score of the self-test with which a guard is ready. In bfloat16 machines
differ by so much that nothing smaller can be asked of them (`tsgb/export/README.md`)."""


class ExportedAssessor(Assessor, Protocol):
    """A guard that came from an export; `tsgb.export.loading.LoadedGuard` is one."""

    about: GuardFile
    """Its `guard.json`."""
    dtype: Dtype
    """Dtype that it computes in."""


def reason_not_ready(guard: ExportedAssessor) -> str:
    """Score the prompts of the self-test anew; return why the guard is not ready, or nothing."""
    tests = guard.about.dtypes[guard.dtype].self_test
    if not tests:
        return "the export has no self-test: export the guard again with this version"
    found = guard.assess([test.prompt for test in tests], batch_size=len(tests))
    gaps = [abs(one.score - test.score) for one, test in zip(found, tests, strict=True)]
    worst, allowed = max(gaps), READY_DIFFERENCE[guard.dtype]
    if math.isfinite(worst) and worst <= allowed:
        return ""
    return (
        f"a score of the self-test differs by {worst:.2g} from the exported one, {allowed:g} is "
        "allowed: weights, tokenizer, base or device are not those of the export"
    )
