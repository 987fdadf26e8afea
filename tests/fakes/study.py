"""A made-up study of coverage: evaluations whose guards' true rates are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tests.fakes import evaluation as fake
from tsgb.eval.records import (
    Discovery,
    DiscoveryRound,
    Item,
    Setup,
    Summary,
    TargetRecord,
    VerdictRecord,
)
from tsgb.eval.study import StudyInput, study_of
from tsgb.eval.study_records import StudySummary

SEEDS = (1, 2, 3, 4, 5)
WORLDS = (11, 12)
TARGETS = (fake.TARGETS[0], fake.TARGETS[3])
BEST = fake.Arm(0.10, 4.0, 4.5, -0.4)
"""A guard that knows every technique."""
MIDDLE = fake.Arm(0.30, 3.2, 4.5, -0.4)
WORST = fake.Arm(0.55, 2.6, 4.5, -0.4)
"""A guard that knows what is public."""
FALLING: Mapping[float, Mapping[str, fake.Arm]] = {
    0.0: {"none": fake.ARMS["none"], "frozen": WORST, "selfplay": BEST},
    0.5: {"none": fake.ARMS["none"], "frozen": MIDDLE, "selfplay": BEST},
    1.0: {"none": fake.ARMS["none"], "frozen": BEST, "selfplay": BEST},
}
"""What self-play gains falls with coverage, to nothing."""
NEVER: Mapping[float, Mapping[str, fake.Arm]] = {
    level: {"none": fake.ARMS["none"], "frozen": arm, "selfplay": arm}
    for level, arm in ((0.0, WORST), (0.5, MIDDLE), (1.0, BEST))
}
"""Self-play gains nothing at any level."""


DRAWS = 300


@cache
def falling_inputs() -> tuple[StudyInput, ...]:
    """Evaluations of `FALLING`, made once in a process."""
    return tuple(study_inputs(FALLING))


@cache
def falling() -> StudySummary:
    """The study of `FALLING`, made once in a process."""
    return study_of(falling_inputs(), num_draws=DRAWS)


def study_inputs(
    arms: Mapping[float, Mapping[str, fake.Arm]],
    worlds: Sequence[int] = WORLDS,
    seeds: Sequence[int] = SEEDS,
    *,
    targets: Sequence[TargetRecord] = TARGETS,
    discovered: int = 2,
    matched: bool = True,
) -> list[StudyInput]:
    """One evaluation for each world and level."""
    return [
        _input(dict(arms[level]), world, level, seeds, targets, discovered, matched=matched)
        for world in worlds
        for level in arms
    ]


def store_study(directory: Path, inputs: Sequence[StudyInput]) -> list[str]:
    """Write each evaluation as it lies in a store; returns their directories."""
    found: list[str] = []
    for one in inputs:
        place = directory / one.summary.eval_id
        place.mkdir(parents=True)
        (place / "summary.json").write_text(one.summary.model_dump_json())
        lines = [item.model_dump_json(exclude_none=True) for item in one.items()]
        (place / "results.jsonl").write_text("\n".join(lines) + "\n")
        found.append(str(place))
    return found


def _input(
    arms: dict[str, fake.Arm],
    world: int,
    level: float,
    seeds: Sequence[int],
    targets: Sequence[TargetRecord],
    discovered: int,
    *,
    matched: bool,
) -> StudyInput:
    items = fake.items(
        arms,
        seeds,
        num_prompts=48,
        num_attacks=32,
        targets=targets,
        draw=1000 * world + round(100 * level),
    )
    update = {
        "eval_id": f"eval-{world}-{level:g}",
        "world_seed": world,
        "coverage": level,
        "matched": matched,
        "payoff": [],
        "curves": [],
        "discovery": [
            discovery(seed, arm, level, discovered)
            for seed in seeds
            for arm in arms
            if arm in {"frozen", "selfplay"}
        ],
    }
    setup = fake.setup(arms, seeds, targets=targets).model_copy(update=update)
    return StudyInput(_summary(setup), lambda: _copy(items))


def discovery(seed: int, arm: str, level: float, num: int) -> Discovery:
    """The warm-up finds "w"; each of `num` rounds finds one technique, which is then blocked."""
    names = [f"e{index} t0" for index in range(4)]
    known = ["p", *names] if level == 1 else ["p"]
    rounds = [DiscoveryRound(attacker="warm", attacks=96, violated={"p": 40, "w": 6, "rare": 4})]
    guards = ["sft"]
    blocked = {name: [4] for name in (*names, "w", "rare")}
    for index in range(3):
        here = f"round-{index + 1}"
        guards.append(here)
        finds = arm == "selfplay" and index < num
        if arm == "selfplay":
            violated = {"p": 20} | ({names[index]: 8} if finds else {})
            rounds.append(DiscoveryRound(attacker=here, attacks=96, violated=violated))
        for name, row in blocked.items():
            gained = 14 + seed if finds and name == names[index] else 1
            row.append(min(40, row[-1] + gained))
    return Discovery(
        seed=seed,
        arm=arm,
        known=known,
        rounds=rounds,
        guards=guards,
        prompts=dict.fromkeys(blocked, 40),
        blocked=blocked,
    )


def _summary(setup: Setup) -> Summary:
    """A summary of which a study reads the facts only."""
    facts = {name: getattr(setup, name) for name in Setup.model_fields}
    verdict = VerdictRecord(shown=False, sentence="Not shown.", reasons=[], conditions=[])
    return Summary(
        **facts, results=[], comparisons=[], claims=[], verdict=verdict, slices=[], roc=[]
    )


def _copy(items: Sequence[Item]) -> list[Item]:
    return list(items)
