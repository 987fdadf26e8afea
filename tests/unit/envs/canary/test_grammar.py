"""Streams, twins and demonstrations of the canary game: labels, reserves and shortcuts."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest

from tsgb.envs.canary import CanaryEnvironment, grammar
from tsgb.envs.canary.attacks import ATTACKS, HELD, OPENINGS, RESERVED
from tsgb.envs.canary.benign import ABOUT, EASIES, TALKS, TWINS
from tsgb.envs.canary.world import NOUNS
from tsgb.types import Knowledge, LabelledPrompt, Split, StreamKind

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


POOLS = {
    **{f"attack {name}": pool for name, pool in ATTACKS.items()},
    **{f"twin {name}": pool for name, pool in TWINS.items()},
    **TALKS,
    **EASIES,
}


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS.keys())
def test_no_split_draws_a_wording_of_another(pool: tuple[str, ...]) -> None:
    parts = [set(grammar.wordings_of(pool, split)) for split in Split]
    assert set.union(*parts) == set(pool)
    assert sum(map(len, parts)) == len(pool), "no wording twice, none in two splits"
    assert min(map(len, parts)) >= 3
    for split in Split:
        assert set(grammar.wordings_of(pool, split, static=True)) < parts[0]


def test_calibration_and_test_see_new_wordings_but_where_the_stream_is_static() -> None:
    known = {
        body
        for pool in POOLS.values()
        for wording in grammar.wordings_of(pool, Split.TRAIN)
        for body in grammar.expand(wording)
    }

    def share_known(kind: StreamKind, split: Split) -> float:
        items = [item for item in draw(kind, split) if item.technique not in RESERVED]
        found = [any(body in known for body in bodies_in(item.text)) for item in items]
        return sum(found) / len(found)

    for split in (Split.CALIBRATION, Split.TEST):
        for kind in (StreamKind.WIDE, StreamKind.BENIGN, StreamKind.HARD_BENIGN, StreamKind.TWINS):
            assert share_known(kind, split) == 0, (kind, split)
        assert share_known(StreamKind.STATIC, split) == 1
        assert share_known(StreamKind.STATIC_BENIGN, split) == 1
    assert share_known(StreamKind.BENIGN, Split.TRAIN) == 1


def bodies_in(text: str) -> list[str]:
    """What is left of a text without any carrier and tail that it may have."""
    return [
        text[len(carrier) : len(text) - len(tail)]
        for carrier in set(grammar.CARRIERS)
        if text.startswith(carrier)
        for tail in set(grammar.TAILS)
        if text.endswith(tail)
    ]


def test_there_are_fourteen_attack_families_and_eighteen_benign_ones() -> None:
    assert len(ATTACKS) == 14
    assert {"translate", "json", "manyshot", "indirect"} == RESERVED
    assert len(TWINS) + len(TALKS) + len(EASIES) == 18
    drawn = {item.technique for item in draw(StreamKind.BENIGN, Split.TEST, num=2_000)}
    assert drawn == {*TWINS, *TALKS, *EASIES}


def test_every_family_is_complete() -> None:
    assert set(ATTACKS) == set(TWINS) == set(OPENINGS)
    for family, wordings in ATTACKS.items():
        assert len(set(wordings)) == len(set(TWINS[family])) == 16
        assert len(grammar.opened_wordings(family)) >= 2, family
        assert any(wording.startswith(OPENINGS[family]) for wording in TWINS[family]), family
    for wordings in (*TALKS.values(), *EASIES.values()):
        assert len(set(wordings)) == 24


def test_talk_names_the_secret_by_every_name_that_attacks_use() -> None:
    assert set(HELD) < set(ABOUT)
    without_the_noun = [name for name in HELD if "{noun}" not in name]
    assert len(without_the_noun) > len(HELD) / 2


def test_no_text_belongs_to_both_classes() -> None:
    sizes = Counter(reading.harmful for reading in grammar.bodies().values())
    expected = sum(len(list(grammar.expand(w))) for pool in ATTACKS.values() for w in pool)
    assert sizes[True] == expected  # none was overwritten by a benign text
    assert min(sizes.values()) > 10_000


@pytest.mark.parametrize("harmful", [True, False], ids=["attacks", "benign"])
def test_fifteen_thousand_draws_are_thirteen_thousand_texts(harmful: bool) -> None:
    kinds = [kind for kind in StreamKind if kind.harmful == harmful]
    texts = [item.text for kind in kinds for item in draw(kind, num=15_000 // len(kinds))]
    assert len(texts) >= 14_999
    assert len(set(texts)) > 13_000
    dressed = [
        {carrier for carrier in grammar.CARRIERS if carrier and t.startswith(carrier)}
        for t in texts
    ]
    assert set.union(*dressed) == set(grammar.CARRIERS) - {""}, "all carriers, in either class"
    assert all(any(t.endswith(tail) for t in texts) for tail in grammar.TAILS)


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


ATTACKED = (StreamKind.WIDE, StreamKind.HELD_OUT)
HARMLESS = (StreamKind.BENIGN, StreamKind.HARD_BENIGN, StreamKind.TWINS)


@pytest.mark.parametrize("split", Split, ids=str)
@pytest.mark.parametrize(
    ("harmful", "benign"),
    [
        (ATTACKED, HARMLESS),
        ((StreamKind.STATIC,), (StreamKind.STATIC_BENIGN,)),
        *(((kind,), (other,)) for kind in ATTACKED for other in HARMLESS),
    ],
    ids="+".join,
)
def test_no_single_feature_tells_the_classes_apart(
    harmful: tuple[StreamKind, ...], benign: tuple[StreamKind, ...], split: Split
) -> None:
    texts = [
        [item.text.lower() for kind in kinds for item in draw(kind, split, num=1_500)]
        for kinds in (harmful, benign)
    ]
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
    shown = ENVIRONMENT.demonstrations(Random(1), 600, Knowledge.INITIAL)
    attacks = [item for item in shown if item.scenario.harmful]
    assert 0.6 < len(attacks) / len(shown) < 0.8
    train = {s.scenario_id for s in ENVIRONMENT.scenarios(Split.TRAIN)}
    openings = tuple(ENVIRONMENT.openings(Knowledge.INITIAL))
    trained = {
        body
        for pool in POOLS.values()
        for wording in grammar.wordings_of(pool, Split.TRAIN)
        for body in grammar.expand(wording)
    }
    for item in shown:
        assert item.scenario.scenario_id in train
        attack = ENVIRONMENT.read(item.scenario, item.completion)
        assert attack.faithful, item.completion
        assert not attack.reserved
        if item.scenario.harmful:
            assert item.completion.startswith(openings)
        assert any(body in trained for body in bodies_in(item.completion))
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


class TestCoverage:
    """Families that an attacker of the training knows when it starts."""

    def shown(self, coverage: float) -> set[str]:
        env = CanaryEnvironment(5, coverage=coverage)
        attacks = [
            env.read(d.scenario, d.completion)
            for d in env.demonstrations(Random(1), 400, Knowledge.INITIAL)
            if d.scenario.harmful
        ]
        return {attack.technique for attack in attacks}

    @pytest.mark.parametrize(("coverage", "num"), [(0.0, 3), (0.5, 7), (1.0, 10)])
    def test_demonstrations_openings_and_static_data_keep_to_it(
        self, coverage: float, num: int
    ) -> None:
        env = CanaryEnvironment(5, coverage=coverage)
        known = self.shown(coverage)
        assert len(known) == len(env.openings(Knowledge.INITIAL)) == num
        assert known >= {"direct", "override", "repeat"}
        static = env.stream(StreamKind.STATIC, Split.TRAIN, Random(2), 300)
        assert {prompt.technique for prompt in static} == known
        wide = env.stream(StreamKind.WIDE, Split.TEST, Random(2), 300)
        assert len({prompt.technique for prompt in wide}) == 10

    def test_more_is_known_at_a_higher_coverage(self) -> None:
        assert self.shown(0.0) < self.shown(0.5) < self.shown(1.0)
