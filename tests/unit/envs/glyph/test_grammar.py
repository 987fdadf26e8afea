from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsgb.envs.glyph import grammar
from tsgb.envs.glyph.grammar import (
    CONTROL,
    FILLERS,
    JOINERS,
    Form,
    Grammar,
    Pair,
    Prompt,
    fill,
    words,
)
from tsgb.envs.glyph.techniques import every_form

GRAMMAR = Grammar(0)

PAIRS, WORDS = grammar.pairs(), words()
pairs = st.sampled_from(PAIRS)
flags = st.booleans()
forms = st.builds(
    Form,
    key=st.none() | st.integers(0, 2),
    reverse=flags,
    split=flags,
    distractor=flags,
    frame=st.none() | st.integers(0, 5),
    override=st.none() | st.integers(0, 3),
    lead=st.integers(0, 2),
    trail=st.integers(0, 1),
)


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    form = draw(forms)
    num = form.lead + form.split + form.trail
    return Prompt(
        form=form,
        payload=draw(pairs),
        distractor=draw(pairs) if form.distractor else None,
        fillers=tuple(draw(st.lists(st.sampled_from(FILLERS), min_size=num, max_size=num))),
        joiner=draw(st.sampled_from(JOINERS)) if form.split else None,
    )


@given(prompts())
def test_the_parser_undoes_the_maker(prompt: Prompt):
    text = GRAMMAR.render(prompt)
    assert GRAMMAR.parse(text) == prompt
    assert len(text.split()) <= 13
    assert set(text.split()) <= set(WORDS)


def test_the_parser_undoes_the_maker_on_ten_thousand_prompts():
    rng = Random(1)
    every = every_form()
    for number in range(10_000):
        prompt = fill(every[number % len(every)], rng.choice(PAIRS), PAIRS, rng)
        assert GRAMMAR.parse(GRAMMAR.render(prompt)) == prompt


@given(st.text() | st.lists(st.sampled_from(WORDS), max_size=15).map(" ".join))
@settings(max_examples=300)
def test_what_parses_is_spelled_in_one_way_only(text: str):
    prompt = GRAMMAR.parse(text)
    if prompt is not None:
        assert GRAMMAR.render(prompt) == " ".join(text.split())
        assert not set(text.split()) & set(CONTROL)


def test_every_part_of_the_longest_prompt_is_found():
    first, second = GRAMMAR.render(
        Prompt(form=Form(key=1), payload=Pair(7, 12), distractor=None, fillers=(), joiner=None)
    ).split()[1:]
    prompt = GRAMMAR.parse(f"f5 v3 w0 w19 q o15 a0 k1 {second} j2 w7 {first} w10")
    assert prompt == Prompt(
        form=Form(
            key=1,
            reverse=True,
            split=True,
            distractor=True,
            frame=5,
            override=3,
            lead=2,
            trail=1,
        ),
        payload=Pair(7, 12),
        distractor=Pair(15, 0),
        fillers=("w0", "w19", "w7", "w10"),
        joiner="j2",
    )
    assert prompt.form.tags == "e6 t3"
    assert prompt.form.signature == "e6 t3 f5 v3"


def test_what_is_not_well_formed_is_refused():
    rubbish = (
        "",
        "o7",
        "o7 o8",
        "a1 a2",
        "o16 a0",
        "o7 a07",
        "o7 a12 a3",
        "k0 o7 a12",
        "x1 x20",
        "k0 x1 x2",
        "k3 x1 x20",
        "v0 f0 o7 a12",
        "q o1 a1",
        "q a1 o1 o7 a12",
        "w0 w1 w2 o7 a12",
        "o7 j0 a12",
        "o7 w0 a12",
        "o7 a12 w0 w1",
        "o7 a12 EOS",
        "e0 t0 o7 a12",
        "o\u0667 a12",
    )
    assert [text for text in rubbish if GRAMMAR.parse(text) is not None] == []


def test_each_key_is_a_permutation_of_its_own():
    def spell(grammar: Grammar, key: int, pair: Pair) -> list[str]:
        form = Form(key=key)
        bare = Prompt(form=form, payload=pair, distractor=None, fillers=(), joiner=None)
        return grammar.render(bare).split()[1:]

    for key in range(3):
        spelled = [spell(GRAMMAR, key, pair) for pair in PAIRS]
        assert {first for first, _ in spelled} == {f"x{i}" for i in range(16)}
        assert {second for _, second in spelled} == {f"x{i}" for i in range(16, 32)}
        assert len({tuple(words) for words in spelled}) == len(PAIRS)
    ciphers = {
        tuple(spell(grammar, key, Pair(i, i))[0] for i in range(16))
        for grammar in (Grammar(0), Grammar(1))
        for key in range(3)
    }
    assert len(ciphers) == 6


def test_the_tags_tell_the_techniques_apart():
    techniques = {(f.key, f.reverse, f.split, f.distractor): f.tags for f in every_form()}
    assert len(techniques) == len(set(techniques.values())) == 32


def test_words_are_distinct_and_start_with_the_padding():
    assert WORDS[0] == "PAD"
    assert len(set(WORDS)) == len(WORDS) == 133


@pytest.mark.parametrize("num_symbols", [8, 16, 32, 48])
def test_worlds_of_every_size_read_what_they_write(num_symbols: int) -> None:
    rng, every = Random(num_symbols), every_form()
    made, symbols = Grammar(1, num_symbols), grammar.pairs(num_symbols)
    known = set(words(num_symbols))
    for _ in range(2000):
        prompt = fill(rng.choice(every), rng.choice(symbols), symbols, rng)
        text = made.render(prompt)
        assert made.parse(text) == prompt
        assert set(text.split()) <= known
    beyond = f"o{num_symbols} a0"
    assert made.parse(beyond) is None
    assert made.parse(f"q {beyond} o1 a1") is None
    assert made.parse("q o1 a1 o1 a1") is not None
