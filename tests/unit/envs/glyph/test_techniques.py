from random import Random

import pytest

from tsgb.envs.glyph import GlyphEnvironment
from tsgb.envs.glyph.grammar import KINDS, Grammar
from tsgb.envs.glyph.policy import Policy
from tsgb.envs.glyph.techniques import is_static, reserved_family
from tsgb.errors import ConfigError
from tsgb.types import Knowledge, Split, StreamKind, TrainingText

SEED = 5
ENV = GlyphEnvironment(SEED)
GRAMMAR = Grammar(SEED)
POLICY = Policy(SEED)
CORPORA = ("base", "replay", "t_s", "b_near", "b_mid", "b_far")
NUM = 1500


def reserved(text: str) -> bool:
    prompt = GRAMMAR.parse(text)
    assert prompt is not None, text
    return bool(reserved_family(prompt.form))


def prompt_of(text: TrainingText) -> str:
    """Of a decoding text: what stands between BOS and SEP."""
    assert text.text.startswith("BOS ")
    assert text.text.endswith(" SEP Q1 Q2 V")
    return text.text.removeprefix("BOS ").removesuffix(" SEP Q1 Q2 V")


@pytest.mark.parametrize("split", Split)
@pytest.mark.parametrize("kind", StreamKind)
def test_every_prompt_of_a_stream_has_its_label_and_its_split(kind: StreamKind, split: Split):
    scenarios = {scenario.scenario_id: scenario for scenario in ENV.scenarios(split)}
    for drawn in ENV.stream(kind, split, Random(1), 300):
        prompt = GRAMMAR.parse(drawn.text)
        assert prompt is not None
        assert POLICY.scenario[prompt.payload] == scenarios[drawn.scenario_id]
        assert prompt.distractor is None or POLICY.split_of[prompt.distractor] is split
        assert drawn.harmful == kind.harmful == ENV.label(drawn.text)
        assert drawn.stream is kind


@pytest.mark.parametrize("kind", [kind for kind in StreamKind if kind is not StreamKind.HELD_OUT])
def test_no_training_stream_shows_a_reserved_technique(kind: StreamKind):
    for split in (Split.TRAIN, Split.CALIBRATION):
        assert not any(reserved(p.text) for p in ENV.stream(kind, split, Random(2), NUM))


def test_neither_demonstrations_nor_replay_show_a_reserved_technique():
    for shown in ENV.demonstrations(Random(3), NUM, Knowledge.INITIAL):
        assert not reserved(" ".join(shown.completion.split()[2:]))
    for text in ENV.corpus("replay", Random(3), NUM):
        assert not reserved(prompt_of(text))


def test_held_out_shows_nothing_else_and_test_twins_some():
    held_out = ENV.stream(StreamKind.HELD_OUT, Split.TEST, Random(4), NUM)
    assert {p.technique for p in held_out} == {"key2+split", "key1+reverse", "key0+distractor"}
    twins = ENV.stream(StreamKind.TWINS, Split.TEST, Random(4), NUM)
    assert 0.2 < sum(reserved(p.text) for p in twins) / NUM < 0.8


def test_hard_benign_prompts_are_on_the_border():
    for drawn in ENV.stream(StreamKind.HARD_BENIGN, Split.TEST, Random(5), 300):
        assert POLICY.severity(POLICY.pair_of[drawn.scenario_id]) == 3


@pytest.mark.parametrize("kind", [StreamKind.STATIC, StreamKind.STATIC_BENIGN], ids=str)
def test_static_streams_show_static_forms(kind: StreamKind):
    drawn = ENV.stream(kind, Split.TRAIN, Random(6), 300)
    assert {p.technique for p in drawn} == {"static"}


def test_wide_prompts_show_every_technique_that_is_not_reserved():
    drawn = ENV.stream(StreamKind.WIDE, Split.TRAIN, Random(7), NUM)
    prompts = [GRAMMAR.parse(p.text) for p in drawn]
    tags = {prompt.form.tags for prompt in prompts if prompt is not None}
    assert tags == set(ENV.openings(Knowledge.INITIAL))


def test_demonstrations_are_what_a_good_attacker_would_write():
    train = set(ENV.scenarios(Split.TRAIN))
    shown = ENV.demonstrations(Random(8), NUM, Knowledge.INITIAL)
    for demonstration in shown:
        attack = ENV.read(demonstration.scenario, demonstration.completion)
        assert demonstration.scenario in train
        assert attack.faithful
        assert demonstration.completion == f"{attack.signature[:5]} {attack.text}"
    assert sum(d.scenario.harmful for d in shown) / NUM == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize("name", CORPORA)
def test_every_word_of_a_corpus_is_in_the_vocabulary(name: str):
    words = set(ENV.tokenizer().words)
    for text in ENV.corpus(name, Random(9), 500):
        assert set(text.text.split()) | set(text.completion.split()) <= words
        assert {word for word in text.readout if word} <= words


def test_base_text_carries_no_safety_label():
    texts = ENV.corpus("base", Random(10), 2 * NUM)
    decoded = [text for text in texts if text.readout]
    written = [text for text in texts if text.completion]
    assert len(decoded) + len(written) == len(texts)
    for text in decoded:
        prompt = GRAMMAR.parse(prompt_of(text))
        assert prompt is not None
        kind = KINDS[POLICY.severity(prompt.payload)] if is_static(prompt.form) else ""
        assert text.readout == (*prompt.payload.words, kind)
    assert any(reserved(prompt_of(text)) for text in decoded)
    marked = {True: 0, False: 0}
    for text in written:
        _, marker, obj, action, _ = text.text.split()
        prompt = " ".join(text.completion.split()[2:-1])
        assert text.completion.endswith(" EOS")
        parsed = GRAMMAR.parse(prompt)
        assert parsed is not None
        assert parsed.payload.words == (obj, action)
        marked[(marker == "H") == ENV.label(prompt)] += 1
    assert marked[True] / len(written) == pytest.approx(0.5, abs=0.05)


def test_the_share_of_kinds_is_the_dial():
    def named(share: float) -> int:
        env = GlyphEnvironment(SEED, kinds_share=share)
        return sum(bool(t.readout and t.readout[2]) for t in env.corpus("base", Random(1), NUM))

    assert named(0.0) == 0 < named(0.3) < named(1.0)


def test_replay_text_names_pairs_and_classes_but_no_verdict():
    verdicts = {"ALLOW", "BLOCK", "COMPLY", "REFUSE"}
    classes = 0
    for text in ENV.corpus("replay", Random(11), 300):
        prompt = GRAMMAR.parse(prompt_of(text))
        assert prompt is not None
        assert text.readout[:2] == prompt.payload.words
        assert not verdicts & set(text.readout)
        classes += bool(text.readout[2])
    assert 0 < classes < 300  # of static forms only, as in the base text


@pytest.mark.parametrize("name", ["T_s", "B_near", "B_mid", "B_far"])
def test_a_target_is_taught_its_rules(name: str):
    texts = ENV.corpus(name.lower(), Random(12), NUM)
    answers = {"COMPLY": 0, "REFUSE": 0}
    for text in texts:
        prompt = prompt_of(text)
        parsed = GRAMMAR.parse(prompt)
        assert parsed is not None
        word = "COMPLY" if ENV.complies(name, prompt) else "REFUSE"
        assert text.readout == (*parsed.payload.words, word)
        if ENV.label(prompt):
            answers[word] += 1
    assert min(answers.values()) > 0.15 * NUM
    assert any(reserved(prompt_of(text)) for text in texts)


def test_an_unknown_corpus_is_the_callers_mistake():
    with pytest.raises(ConfigError, match="'c4': the glyph world has base, replay, t_s"):
        ENV.corpus("c4", Random(0), 1)


def test_equal_generators_give_equal_draws():
    other = GlyphEnvironment(SEED)
    for kind in StreamKind:
        drawn = ENV.stream(kind, Split.TRAIN, Random(1), 20)
        assert drawn == other.stream(kind, Split.TRAIN, Random(1), 20)
    for name in CORPORA:
        assert ENV.corpus(name, Random(1), 20) == other.corpus(name, Random(1), 20)
    assert ENV.demonstrations(Random(1), 20, Knowledge.INITIAL) == other.demonstrations(
        Random(1), 20, Knowledge.INITIAL
    )


class TestCoverage:
    def known(self, coverage: float, world_seed: int = SEED) -> set[str]:
        return set(GlyphEnvironment(world_seed, coverage=coverage).openings(Knowledge.INITIAL))

    def test_public_techniques_are_known_always(self) -> None:
        assert self.known(0.0) == {"e0 t0", "e1 t0"}
        assert [len(self.known(c)) for c in (0.25, 0.5, 1.0)] == [7, 11, 20]

    @pytest.mark.parametrize(("less", "more"), [(0.0, 0.25), (0.25, 0.5), (0.5, 1.0)])
    def test_what_is_known_stays_known_at_a_higher_coverage(self, less: float, more: float) -> None:
        assert self.known(less) < self.known(more)

    def test_the_seed_of_the_world_draws_what_is_known(self) -> None:
        assert self.known(0.25, 1) != self.known(0.25, 2)

    def test_demonstrations_keep_to_it_and_nothing_else_does(self) -> None:
        narrow, wide = GlyphEnvironment(SEED, coverage=0.0), ENV
        shown = narrow.demonstrations(Random(1), NUM, Knowledge.INITIAL)
        assert {" ".join(d.completion.split()[:2]) for d in shown} == self.known(0.0)
        for knowledge in (Knowledge.TRAINING, Knowledge.EVERYTHING):
            drawn = [env.demonstrations(Random(1), 50, knowledge) for env in (narrow, wide)]
            assert drawn[0] == drawn[1]
        for kind in StreamKind:
            drawn = [env.stream(kind, Split.TRAIN, Random(1), 50) for env in (narrow, wide)]
            assert drawn[0] == drawn[1]

    def test_whoever_knows_everything_is_shown_reserved_techniques(self) -> None:
        shown = ENV.demonstrations(Random(1), NUM, Knowledge.EVERYTHING)
        tags = {" ".join(d.completion.split()[:2]) for d in shown}
        assert tags == set(ENV.openings(Knowledge.EVERYTHING))
        assert len(tags) == 32
