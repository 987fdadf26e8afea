"""Conditions on figures, for a build that is to fail when a guard became worse.

    adaptive_asr<=0.1                   every guard but `none`, on every target
    selfplay.adaptive_asr[T_s]<=0.1     one guard on one target
    selfplay.fpr<=0.02                  a figure that depends on no target

The end of the 95 % interval must hold, the upper one for `<=` and the lower one for `>=`: a small
sample fails a gate that a large one passes. A figure of attackers that did not converge is a lower
bound, and keeps no upper one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from tsgb.errors import UsageError
from tsgb.eval.evidence import ADAPTIVE, GUARD_METRICS
from tsgb.eval.records import Rate, Summary
from tsgb.eval.wording import UNCONVERGED, percent

ON_TARGETS = ("adaptive_asr", "adaptive_trained", "adaptive_mean", "asr")
METRICS = (*ON_TARGETS, *GUARD_METRICS)
"""Figures that a gate may name; fields of `Result`."""
_FORM = re.compile(r"(?:(\S+?)\.)?([a-z_]+)(?:\[(\S+)\])?\s*(<=|>=)\s*(\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One condition.

    Example: `Gate.parse("selfplay.fpr<=0.02")`
    """

    text: str
    """The condition as the user wrote it."""
    metric: str
    """Name of the figure."""
    relation: Literal["<=", ">="]
    """Relation that must hold."""
    bound: float
    """Bound, in the units of the figure."""
    guard: str | None = None
    """Guard; None for all but `none`."""
    target: str | None = None
    """Target; None for all."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a condition.

        Raises:
            UsageError: It is none.
        """
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise UsageError(
                f"--gate {text!r} is no condition: write FIGURE<=NUMBER or "
                "GUARD.FIGURE[TARGET]<=NUMBER, as in selfplay.adaptive_asr[T_s]<=0.1"
            )
        guard, metric, target, relation, number = found.groups()
        if metric not in METRICS:
            raise UsageError(
                f"--gate {text!r}: there is no figure {metric!r}: choose of {', '.join(METRICS)}"
            )
        try:
            bound = float(number)
        except ValueError:
            bound = float("nan")
        if not 0 <= bound <= 1:
            raise UsageError(f"--gate {text!r}: {number!r} is no number from 0 to 1")
        return cls(
            text=text.strip(),
            metric=metric,
            relation="<=" if relation == "<=" else ">=",
            bound=bound,
            guard=guard,
            target=target,
        )

    def holds(self, rate: Rate) -> bool:
        """Whether the end of the interval that matters keeps the bound."""
        return rate.high <= self.bound if self.relation == "<=" else rate.low >= self.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOutcome:
    """What one figure says of a gate."""

    gate: Gate
    """The condition."""
    guard: str
    """Guard in tables."""
    target: str | None
    """Target in tables; None for a figure that depends on none."""
    rate: Rate | None
    """The figure; None if it was not measured, which fails the gate."""
    bounded: bool = False
    """Whether its attackers did not converge: a lower bound keeps no upper one."""

    @property
    def passed(self) -> bool:
        """Whether it holds."""
        if self.rate is None or (self.bounded and self.gate.relation == "<="):
            return False
        return self.gate.holds(self.rate)

    @property
    def name(self) -> str:
        """Example: `"selfplay.adaptive_asr[T_s] <= 0.1"`."""
        where = "" if self.target is None else f"[{self.target}]"
        return f"{self.guard}.{self.gate.metric}{where} {self.gate.relation} {self.gate.bound:g}"

    def __str__(self) -> str:
        """Return the outcome in one line."""
        if self.rate is None:
            return f"failed: {self.name}: not measured"
        ends = f"{percent(self.rate.value)}, 95 % interval {percent(self.rate.low)} to"
        told = f"{ends} {percent(self.rate.high)}, n {self.rate.n}"
        told += f", a lower bound: {UNCONVERGED}" if self.bounded else ""
        return f"{'passed' if self.passed else 'failed'}: {self.name}: {told}"


def check_gates(summary: Summary, gates: Sequence[Gate]) -> list[GateOutcome]:
    """Return what the figures over all seeds say of each gate.

    Raises:
        UsageError: A gate names a guard or a target that the evaluation lacks.
    """
    names = [target.name for target in summary.targets]
    rows = {(r.guard, r.target): r for r in summary.results if r.seed is None}
    bounds = {(found.guard, found.target) for found in summary.unconverged}
    out: list[GateOutcome] = []
    for gate in gates:
        for kind, name, known in (
            ("guard", gate.guard, summary.guards),
            ("target", gate.target, names),
        ):
            if name is not None and name not in known:
                raise UsageError(
                    f"--gate {gate.text!r}: the evaluation has no {kind} {name!r}: choose of "
                    f"{', '.join(known)}"
                )
        guards = [g for g in summary.guards if g != "none"] if gate.guard is None else [gate.guard]
        depends = gate.metric in ON_TARGETS
        targets = (names if gate.target is None else [gate.target]) if depends else names[:1]
        out += [
            GateOutcome(
                gate=gate,
                guard=guard,
                target=target if depends else None,
                rate=getattr(rows[guard, target], gate.metric),
                bounded=gate.metric in ADAPTIVE and (guard, target) in bounds,
            )
            for guard in guards
            for target in targets
        ]
    return out
