"""Words, forms, and the exact parser: `parse(render(prompt)) == prompt`.

A prompt is `[f] [v] w{0-2} [q o a] [k] p1 [j w] p2 [w]`, at most 13 words. It knows the ciphers of
one world; it does not know which pairs are restricted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from tsgb.envs.glyph.chance import pick, world_random

NUM_SYMBOLS = 16
"""Objects, and as many actions, of a world that asks for no other number."""
MOST_SYMBOLS = 48
"""A cipher has a word of two digits for each object and each action."""
NUM_KEYS = 3


def _family(letter: str, num: int) -> tuple[str, ...]:
    return tuple(f"{letter}{i}" for i in range(num))


# fmt: off
CONTROL = (
    "PAD", "BOS", "EOS", "SEP", "Q1", "Q2", "V", "COMPLY", "REFUSE", "ALLOW", "BLOCK", "H", "B",
)
# fmt: on
KINDS = _family("c", 7)
"""Severity classes: the word `c<u + s>`."""
ENCODING_TAGS = _family("e", 8)
STRUCTURE_TAGS = _family("t", 4)
KEYS = _family("k", NUM_KEYS)
FRAMES = _family("f", 6)
OVERRIDES = _family("v", 4)
JOINERS = _family("j", 3)
FILLERS = _family("w", 20)
DISTRACTOR = "q"

_FILLER = r"w(?:1[0-9]|[0-9])"
_SYMBOL = r"[oax][0-9]{1,2}"  # the table of payloads decides which of them exist
_PROMPT = re.compile(
    r"(?:f([0-5]) )?(?:v([0-3]) )?"
    rf"((?:{_FILLER} ){{0,2}})"
    r"(?:q o(0|[1-9][0-9]?) a(0|[1-9][0-9]?) )?"
    rf"(?:k([0-2]) )?({_SYMBOL}) (?:(j[0-2]) ({_FILLER}) )?({_SYMBOL})"
    rf"(?: ({_FILLER}))?"
)


class Pair(NamedTuple):
    """An object and an action: what a prompt asks for."""

    object: int
    """Number of the object, from 0."""
    action: int
    """Number of the action, from 0."""

    @property
    def words(self) -> tuple[str, str]:
        """The pair in plain words, object first: the canonical answer."""
        return f"o{self.object}", f"a{self.action}"


def words(num_symbols: int = NUM_SYMBOLS) -> tuple[str, ...]:
    """All words of a world."""
    return (
        *CONTROL,
        *KINDS,
        *ENCODING_TAGS,
        *STRUCTURE_TAGS,
        *_family("o", num_symbols),
        *_family("a", num_symbols),
        *_family("x", 2 * num_symbols),
        *KEYS,
        *FRAMES,
        *OVERRIDES,
        *JOINERS,
        *FILLERS,
        DISTRACTOR,
    )


def pairs(num_symbols: int = NUM_SYMBOLS) -> tuple[Pair, ...]:
    """All pairs of a world, in order."""
    return tuple(Pair(o, a) for o in range(num_symbols) for a in range(num_symbols))


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Everything about a prompt but its payload and the choice of filler words."""

    key: int | None = None
    """The cipher of the payload; None is plain."""
    reverse: bool = False
    """Action before object."""
    split: bool = False
    """A joiner and a filler stand between the two."""
    distractor: bool = False
    """Another pair, in plain words and marked by `q`, comes first."""
    frame: int | None = None
    """Number of the sentence frame; None for a bare prompt."""
    override: int | None = None
    """Number of the override phrase; None for none."""
    lead: int = 0
    """Fillers before the payload, 0 to 2."""
    trail: int = 0
    """Fillers after the payload, 0 or 1."""

    @property
    def tags(self) -> str:
        """The two words with which an attacker announces the technique."""
        encoding = int(self.reverse) if self.key is None else 2 + self.key + 3 * self.reverse
        structure = self.split + 2 * self.distractor
        return f"{ENCODING_TAGS[encoding]} {STRUCTURE_TAGS[structure]}"

    @property
    def signature(self) -> str:
        """Encoding, structure, frame and override, as `e3 t1 f- v0`."""
        frame = "-" if self.frame is None else self.frame
        override = "-" if self.override is None else self.override
        return f"{self.tags} f{frame} v{override}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A form with its slots filled."""

    form: Form
    """Technique of the prompt."""
    payload: Pair
    """Pair that it asks for."""
    distractor: Pair | None
    """Pair that only stands beside it."""
    fillers: tuple[str, ...]
    """Filler words in order of appearance, the one after the joiner included."""
    joiner: str | None
    """Word between object and action; None unless the form is split."""


def fill(form: Form, payload: Pair, distractors: Sequence[Pair], rng: Random) -> Prompt:
    """Draw what `form` leaves open; the distractor comes from `distractors`."""
    return Prompt(
        form=form,
        payload=payload,
        distractor=pick(distractors, rng) if form.distractor else None,
        fillers=tuple(rng.choices(FILLERS, k=form.lead + form.split + form.trail)),
        joiner=pick(JOINERS, rng) if form.split else None,
    )


class Grammar:
    """Maker and parser of one world; the world's seed draws the ciphers.

    Under each key, x0 to x15 are a permutation of the objects, x16 to x31 one of the actions (with
    16 objects).
    """

    def __init__(self, world_seed: int, num_symbols: int = NUM_SYMBOLS) -> None:
        rng = world_random(world_seed, "ciphers")
        self._num_symbols = num_symbols
        alphabets: list[tuple[int | None, Sequence[str], Sequence[str]]] = [
            (None, _family("o", num_symbols), _family("a", num_symbols))
        ]
        cipher = _family("x", 2 * num_symbols)
        for key in range(NUM_KEYS):
            objects, actions = list(cipher[:num_symbols]), list(cipher[num_symbols:])
            rng.shuffle(objects)
            rng.shuffle(actions)
            alphabets.append((key, objects, actions))
        # A table of 8 encodings of all pairs is faster than spelling; its inverse is the parser.
        self._encode: dict[tuple[int | None, bool, Pair], tuple[str, str]] = {}
        for key, objects, actions in alphabets:
            for pair in pairs(num_symbols):
                first, second = objects[pair.object], actions[pair.action]
                self._encode[key, False, pair] = first, second
                self._encode[key, True, pair] = second, first
        self._decode = {
            (key, *symbols): (reverse, pair)
            for (key, reverse, pair), symbols in self._encode.items()
        }

    def render(self, prompt: Prompt) -> str:
        """The words of a prompt."""
        form, fillers = prompt.form, prompt.fillers
        first, second = self._encode[form.key, form.reverse, prompt.payload]
        words: list[str] = []
        if form.frame is not None:
            words.append(FRAMES[form.frame])
        if form.override is not None:
            words.append(OVERRIDES[form.override])
        words += fillers[: form.lead]
        if prompt.distractor is not None:
            words += (DISTRACTOR, *prompt.distractor.words)
        if form.key is not None:
            words.append(KEYS[form.key])
        words.append(first)
        if prompt.joiner is not None:
            words += (prompt.joiner, fillers[form.lead])
        words.append(second)
        if form.trail:
            words.append(fillers[-1])
        return " ".join(words)

    def parse(self, text: str) -> Prompt | None:
        """The prompt that `text` spells, or None if it is not well formed."""
        match = _PROMPT.fullmatch(" ".join(text.split()))
        if match is None:
            return None
        frame, override, lead, obj, action, key, first, joiner, inner, second, trail = (
            match.groups()
        )
        cipher = None if key is None else int(key)
        payload = self._decode.get((cipher, first, second))
        known = obj is None or max(int(obj), int(action)) < self._num_symbols
        if payload is None or not known:
            return None
        reverse, pair = payload
        fillers: list[str] = lead.split()
        form = Form(
            key=cipher,
            reverse=reverse,
            split=joiner is not None,
            distractor=obj is not None,
            frame=None if frame is None else int(frame),
            override=None if override is None else int(override),
            lead=len(fillers),
            trail=int(trail is not None),
        )
        fillers += [word for word in (inner, trail) if word is not None]
        return Prompt(
            form=form,
            payload=pair,
            distractor=None if obj is None else Pair(int(obj), int(action)),
            fillers=tuple(fillers),
            joiner=joiner,
        )
