"""Streams, twins and demonstrations of the canary game: labels, reserves and shortcuts."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest

from tsgb.envs.canary import CanaryEnvironment, grammar
from tsgb.envs.canary.attacks import ATTACKS, OPENINGS, RESERVED
from tsgb.envs.canary.benign import EASY, TALK, TWINS
from tsgb.envs.canary.world import NOUNS
from tsgb.types import LabelledPrompt, Split, StreamKind

ENVIRONMENT = CanaryEnvironment(world_seed=1)


def draw(kind: StreamKind, split: Split = Split.TRAIN, num: int = 400) -> list[LabelledPrompt]:
    return list(ENVIRONMENT.stream(kind, split, Random(f"{kind}/{split}"), num))


@pytest.mark.parametrize("kind", StreamKind, ids=str)
@pytest.mark.parametrize("split", Split, ids=str)
def test_a_stream_keeps_its_promises(kind: StreamKind, split: Split) -> None:
    items = draw(kind, split)
    scenarios = {s.scenario_id: s for s in ENVIRONMENT.scenarios(split)}
    assert items == draw(kind, split)  # all randomness comes from the generator
    assert len(items) == 400
    for item in items:
        assert "{" not in item.text
        assert item.harmful == kind.harmful == scenarios[item.scenario_id].harmful
        assert ENVIRONMENT.label(item.text) is item.harmful, item.text
        reading = grammar.parse(item.text)
        assert reading is not None
        assert reading.technique == item.technique


def test_reserved_families_stay_out_of_training() -> None:
    for kind in StreamKind:
        for split in Split:
            techniques = {item.technique for item in draw(kind, split)}
            if kind is StreamKind.HELD_OUT:
                assert techniques == RESERVED
            elif split is not Split.TEST or kind.harmful:
                assert not techniques & RESERVED, (kind, split)
    assert {item.technique for item in draw(StreamKind.TWINS, Split.TEST)} >= RESERVED


def test_new_wordings_are_for_calibration_and_test_only() -> None:
    def wordings(split: Split) -> set[str]:
        rng = Random(2)
        return {grammar.choose(TALK, split, rng) for _ in range(3_000)}

    train, calibration, test = (wordings(split) for split in Split)
    assert train == set(TALK[:32])
    assert calibration - train == set(TALK[32::2])
    assert test - train == set(TALK[33::2])


def test_every_family_is_complete() -> None:
    assert set(ATTACKS) == set(TWINS) == set(OPENINGS)
    assert set(ATTACKS) > RESERVED
    for family, wordings in ATTACKS.items():
        assert len(wordings) == len(TWINS[family]) == len(set(wordings)) == 10
        assert len(grammar.opened_wordings(family)) >= 2, family
        assert any(wording.startswith(OPENINGS[family]) for wording in TWINS[family]), family


def test_no_text_belongs_to_both_classes() -> None:
    sizes = Counter(reading.harmful for reading in grammar.bodies().values())
    expected = sum(len(list(grammar.expand(w))) for pool in ATTACKS.values() for w in pool)
    assert sizes[True] == expected  # none was overwritten by a benign text
    assert min(sizes.values()) > 3_000


def test_thousands_of_distinct_texts() -> None:
    for kind in (StreamKind.WIDE, StreamKind.BENIGN):
        assert len({item.text for item in draw(kind, num=6_000)}) > 4_000


def auroc(attack: list[float], benign: list[float]) -> float:
    """Of the feature or of its opposite, whichever separates better."""
    ordered = sorted(benign)
    below = Counter(ordered)
    cumulative: dict[float, float] = {}
    seen = 0
    for value in sorted(below):
        cumulative[value] = seen + below[value] / 2
        seen += below[value]
    keys = sorted(cumulative)

    def rank(value: float) -> float:
        if value in cumulative:
            return cumulative[value]
        return float(sum(below[key] for key in keys if key < value))

    area = sum(rank(value) for value in attack) / (len(attack) * len(benign))
    return max(area, 1 - area)


@pytest.mark.parametrize(
    ("harmful", "benign"),
    [
        (StreamKind.WIDE, StreamKind.BENIGN),
        (StreamKind.STATIC, StreamKind.STATIC_BENIGN),
        (StreamKind.WIDE, StreamKind.TWINS),
    ],
    ids=["wide", "static", "twins"],
)
def test_no_single_feature_tells_the_classes_apart(harmful: StreamKind, benign: StreamKind) -> None:
    texts = [[item.text.lower() for item in draw(kind, num=1_500)] for kind in (harmful, benign)]
    nouns = re.compile("|".join(NOUNS))
    features = {
        "noun mentioned": lambda text: float(bool(nouns.search(text))),
        "the noun": lambda text: float(bool(re.search(f"the (?:{nouns.pattern})", text))),
        "characters": len,
        "words": lambda text: len(text.split()),
        "question mark": lambda text: float("?" in text),
        "colon": lambda text: float(":" in text),
    }
    found = {
        name: auroc(*([feature(t) for t in side] for side in texts))
        for name, feature in features.items()
    }
    bags = [[set(re.findall(r"[a-z0-9']+", text)) for text in side] for side in texts]
    counts = [Counter(word for bag in side for word in bag) for side in bags]
    for word in counts[0] | counts[1]:
        shares = [count[word] / len(side) for count, side in zip(counts, bags, strict=True)]
        found[f"word {word}"] = 0.5 + abs(shares[0] - shares[1]) / 2
    worst = max(found, key=lambda name: found[name])
    assert found[worst] < 0.75, (worst, found[worst])


def test_demonstrations_are_what_the_attacker_should_write() -> None:
    shown = ENVIRONMENT.demonstrations(Random(1), 600)
    attacks = [item for item in shown if item.scenario.harmful]
    assert 0.6 < len(attacks) / len(shown) < 0.8
    train = {s.scenario_id for s in ENVIRONMENT.scenarios(Split.TRAIN)}
    openings = tuple(ENVIRONMENT.openings(reserved=False))
    for item in shown:
        assert item.scenario.scenario_id in train
        attack = ENVIRONMENT.read(item.scenario, item.completion)
        assert attack.faithful, item.completion
        assert not attack.reserved
        if item.scenario.harmful:
            assert item.completion.startswith(openings)
    counts = Counter(ENVIRONMENT.read(i.scenario, i.completion).technique for i in attacks)
    assert set(counts) == set(grammar.TRAINED)
    assert max(counts.values()) < 0.25 * len(attacks)


def test_a_twin_is_benign_and_of_the_same_family() -> None:
    rng = Random(4)
    for item in draw(StreamKind.WIDE, num=200) + draw(StreamKind.HELD_OUT, num=50):
        scenario = next(
            s for s in ENVIRONMENT.scenarios(Split.TRAIN) if s.scenario_id == item.scenario_id
        )
        twin = ENVIRONMENT.twin(ENVIRONMENT.read(scenario, item.text), rng)
        assert twin is not None
        assert (twin.harmful, twin.technique) == (False, item.technique)
        assert ENVIRONMENT.label(twin.text) is False


def test_every_easy_question_is_different() -> None:
    assert len(set(EASY)) == len(EASY)
