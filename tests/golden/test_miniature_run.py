"""Twenty updates of self-play in miniature, number by number.

Any change of what training computes shows here first. Changing the numbers is a decision: say in
the commit why they moved. To write them anew:

    python tests/golden/test_miniature_run.py

The configuration is kept with the numbers, so that tuning a default moves nothing.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.miniature import make_trainer, miniature_config
from tsgb.config import RunConfig, parse_config

GOLDEN = Path(__file__).with_name("miniature_run.json")
SIZES = {"selfplay": {"attacker_steps": 3, "guard_steps": 4}}
DIGITS = 5
# Other processors add up in another order. Hardly one sampled token in 100,000 lies so close to its
# neighbour that it becomes another one; a run has 800, and one that flips changes all that follows.
TOLERANCE = {"rel": 2e-3, "abs": 2e-4}


def play(config: RunConfig) -> dict[str, Any]:
    """The numbers of one run."""
    trainer = make_trainer(config)
    metrics: list[dict[str, Any]] = []
    while not trainer.done:
        metrics.append(trainer.step())
    state = trainer.state
    return {
        "metrics": metrics,
        "attackers": {member.name: len(member.attacks) for member in state.pool},
        "guards": dict(zip(state.guards, state.thresholds, strict=True)),
        "payoff": state.payoff,
        "selected": state.guards[state.best_guard],
        "successes": sum(state.successes.values()),
    }


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        # Of significant digits, and no negative zero.
        return float(f"{value:.{DIGITS}g}") + 0.0
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value


def differences(found: Any, wanted: Any, where: str = "") -> list[str]:
    """Every place in which they differ by more than the tolerance."""
    if isinstance(wanted, dict) and isinstance(found, dict) and found.keys() == wanted.keys():
        pairs = [(f".{name}", found[name], wanted[name]) for name in wanted]
        return [d for name, a, b in pairs for d in differences(a, b, where + name)]
    if isinstance(wanted, list) and isinstance(found, list) and len(found) == len(wanted):
        pairs = [(f"[{i}]", *pair) for i, pair in enumerate(zip(found, wanted, strict=True))]
        return [d for name, a, b in pairs for d in differences(a, b, where + name)]
    if isinstance(wanted, float) and isinstance(found, float):
        same = math.isclose(found, wanted, rel_tol=TOLERANCE["rel"], abs_tol=TOLERANCE["abs"])
        return [] if same else [f"{where}: {found} was {wanted}"]
    return [] if found == wanted else [f"{where}: {found!r} was {wanted!r}"]


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


def test_the_numbers_are_those_that_were_decided_on(golden: dict[str, Any]) -> None:
    found = play(parse_config(json.dumps(golden["config"]), GOLDEN.name))
    assert differences(rounded(found), golden["run"]) == []


def test_the_run_is_worth_watching(golden: dict[str, Any]) -> None:
    run = golden["run"]
    assert {m["phase"] for m in run["metrics"]} == {
        "sft_attacker",
        "warmup",
        "sft_guard",
        "attacker",
        "guard",
    }
    assert len(run["metrics"]) == 20
    assert run["successes"] > 0
    assert any(rate > 0 for row in run["payoff"] for rate in row)


def test_a_difference_is_found_and_named() -> None:
    wanted = {"a": [1.0, 2.0], "b": "x"}
    assert differences({"a": [1.0001, 2.1], "b": "y"}, wanted) == [
        ".a[1]: 2.1 was 2.0",
        ".b: 'y' was 'x'",
    ]


if __name__ == "__main__":
    chosen = miniature_config(SIZES)
    content = {"config": chosen.model_dump(mode="json"), "run": rounded(play(chosen))}
    GOLDEN.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
