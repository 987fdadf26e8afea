"""The time and money that an evaluation's answers took: counted where it asks, pooled in a report.

An answer counts with what asking it took, also where an earlier evaluation asked it and the log
answers now. It knows responses, not who asks for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tsgb.eval.usage_records import Milliseconds, UsageRecord
from tsgb.types import Response

Role = Literal["target", "judge"]
NUM_QUANTILES = 101
"""Most latencies that a cell keeps of one target: quantiles at equal steps."""


class Meter:
    """Counts what the answers of one target took.

    Example: `Meter("gpt").count(Response(text="no", tokens_in=9, tokens_out=2))`
    """

    def __init__(self, name: str, role: Role = "target") -> None:
        """Count nothing yet."""
        self._name = name
        self._role: Role = role
        self._start()

    def _start(self) -> None:
        self._latencies: list[float] = []
        self._counts = dict.fromkeys(
            ("answers", "errors", "calls", "untold", "tokens_in", "tokens_out", "billed_unknown"), 0
        )

    def count(self, response: Response) -> None:
        """Count a question that was asked, with or without success."""
        counts = self._counts
        counts["calls"] += response.attempts
        counts["billed_unknown"] += response.billed_unknown
        if response.error is not None:
            counts["errors"] += 1
            return
        counts["answers"] += 1
        if response.latency_seconds > 0:
            self._latencies.append(1000 * response.latency_seconds)
        if response.tokens_in is None or response.tokens_out is None:
            counts["untold"] += 1
        else:
            counts["tokens_in"] += response.tokens_in
            counts["tokens_out"] += response.tokens_out

    def take(self) -> dict[str, Any] | None:
        """Return what was counted, as a cell keeps it, and begin anew; None if nothing was."""
        counts, latencies = self._counts, self._latencies
        self._start()
        if not any(counts.values()):
            return None
        return {"name": self._name, "role": self._role, **counts, "latency": spread(latencies)}


def spread(milliseconds: Sequence[float]) -> dict[str, Any]:
    """Return a sample in brief: its size, and at most `NUM_QUANTILES` of its quantiles."""
    found = np.sort(np.asarray(milliseconds, dtype=np.float64))
    if found.size > NUM_QUANTILES:
        found = np.quantile(found, np.linspace(0, 1, NUM_QUANTILES))
    return {"n": len(milliseconds), "quantiles": [round(float(x), 2) for x in found]}


def pooled_usage(
    counted: Iterable[Mapping[str, Any]],
    prices: Mapping[tuple[Role, str], tuple[float, float] | None],
) -> list[UsageRecord]:
    """Return what all cells of all seeds took, for each target and judge.

    Args:
        counted: What `Meter.take` returned.
        prices: Dollars of a million tokens in and out, by role and name; None where they are
            not known.

    Raises:
        KeyError: A count is missing.
        TypeError: One is of another type.
        ValueError: One breaks a rule.
    """
    groups: dict[tuple[Role, str], list[Mapping[str, Any]]] = {}
    for one in counted:
        groups.setdefault((one["role"], one["name"]), []).append(one)
    records: list[UsageRecord] = []
    for (role, name), group in groups.items():
        total = {
            key: sum(int(one[key]) for one in group)
            for key in group[0]
            if key not in {"name", "role", "latency"}
        }
        price = prices.get((role, name))
        cost = None
        if price is not None and not total["untold"]:
            cost = (total["tokens_in"] * price[0] + total["tokens_out"] * price[1]) / 1e6
        records.append(
            UsageRecord(
                name=name,
                role=role,
                latency=pooled_spread([one["latency"] for one in group]),
                dollars=cost,
                **total,
            )
        )
    return records


def pooled_spread(samples: Sequence[Mapping[str, Any]]) -> Milliseconds | None:
    """Return the median and the 95th percentile of several samples that `spread` shortened."""
    known = [s for s in samples if s["quantiles"]]
    if not known:
        return None
    values = np.concatenate([np.asarray(s["quantiles"], dtype=np.float64) for s in known])
    weights = np.concatenate(
        [np.full(len(s["quantiles"]), s["n"] / len(s["quantiles"])) for s in known]
    )
    median, p95 = np.quantile(values, (0.5, 0.95), weights=weights, method="inverted_cdf")
    return Milliseconds(n=sum(int(s["n"]) for s in known), median=float(median), p95=float(p95))
