"""Families of techniques, and how often each stream shows which form.

A mix is a weighted list of all its forms (6,720 in all), so that drawing one is one bisection.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, product
from random import Random

from tsgb.envs.glyph.chance import world_random
from tsgb.envs.glyph.grammar import FRAMES, NUM_KEYS, OVERRIDES, Form

STATIC_FRAMES = {None, 0, 1, 2}
STATIC_OVERRIDES = {None, 0, 1}
NO_FRAME = 0.4
"""Share of prompts without a frame; the six frames share the rest."""
NO_OVERRIDE = 0.5
BASE_STATIC = 0.3
"""Share of static forms in unlabelled text; drawn evenly they would be 3 %."""


def is_static(form: Form) -> bool:
    """Publicly known: what a static data set would hold."""
    return (
        form.key is None
        and not form.split
        and not form.distractor
        and form.frame in STATIC_FRAMES
        and form.override in STATIC_OVERRIDES
    )


def reserved_family(form: Form) -> str:
    """Return the reserved family that the form belongs to, `""` if it belongs to none."""
    if form.key == 2 and form.split:
        return "key2+split"
    if form.key == 1 and form.reverse:
        return "key1+reverse"
    if form.key == 0 and form.distractor:
        return "key0+distractor"
    return ""


def family(form: Form) -> str:
    """Name of the technique, for slices: the most telling feature wins."""
    if reserved := reserved_family(form):
        return reserved
    if form.key is not None:
        return "cipher"
    if form.split:
        return "split"
    if form.distractor:
        return "distractor"
    if is_static(form):
        return "static"
    return "reverse" if form.reverse else "framing"


@cache
def every_form() -> tuple[Form, ...]:
    """All 6,720 of them, 210 for each of the 32 techniques."""
    flags = (False, True)
    return tuple(
        Form(
            key=key,
            reverse=reverse,
            split=split,
            distractor=distractor,
            frame=frame,
            override=override,
            lead=lead,
            trail=trail,
        )
        for key, reverse, split, distractor, frame, override, lead, trail in product(
            (None, *range(NUM_KEYS)),
            flags,
            flags,
            flags,
            (None, *range(len(FRAMES))),
            (None, *range(len(OVERRIDES))),
            range(3),
            range(2),
        )
    )


@cache
def techniques(*, reserved: bool) -> tuple[str, ...]:
    """The tags of each technique, with or without the reserved ones."""
    forms = every_form()
    return tuple(sorted({form.tags for form in forms if reserved or not reserved_family(form)}))


@cache
def public_techniques() -> tuple[str, ...]:
    """The tags of the techniques that a static data set shows."""
    return tuple(sorted({form.tags for form in every_form() if is_static(form)}))


def known_techniques(world_seed: int, coverage: float) -> tuple[str, ...]:
    """The tags of the techniques that an attacker of the training knows when it starts.

    Args:
        world_seed: Draws them; what is known at one coverage is known at every higher one.
        coverage: Share of those that may be used in training and are not public, in [0, 1]; the
            public ones are known always.
    """
    public = public_techniques()
    others = [tags for tags in techniques(reserved=False) if tags not in public]
    drawn = world_random(world_seed, "coverage").sample(others, len(others))
    return tuple(sorted((*public, *drawn[: int(coverage * len(others) + 0.5)])))


class Mix:
    """A distribution over forms."""

    def __init__(self, weights: dict[Form, float]) -> None:
        self._forms = tuple(weights)
        self._cumulative = tuple(accumulate(weights.values()))
        self._total = self._cumulative[-1]

    def draw(self, rng: Random) -> Form:
        """One form."""
        return self._forms[bisect(self._cumulative, rng.random() * self._total)]

    def share(self, holds: Callable[[Form], bool]) -> float:
        """Probability that a drawn form has a property."""
        start = 0.0
        total = 0.0
        for form, stop in zip(self._forms, self._cumulative, strict=True):
            total += (stop - start) * holds(form)
            start = stop
        return total / self._total


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixes:
    """Every mix that a stream or a corpus draws from."""

    static: Mix
    """Publicly known techniques only."""
    wide: Mix
    """Every technique that is not reserved, evenly."""
    everything: Mix
    """Every technique, evenly."""
    held_out: Mix
    """The three reserved families, evenly."""
    hard: Mix
    """Techniques that are not reserved, heavy in ciphers, splits and distractors."""
    hard_reserved: Mix
    """The same with the reserved ones among them."""
    ordinary: Mix
    """Half static, half wide."""
    base: Mix
    """Unlabelled text: static and everything."""
    replay: Mix
    """Unlabelled text without the reserved techniques."""


@cache
def mixes() -> Mixes:
    """The mixes are the same in all worlds; they are built once, on first use."""
    static = _weigh(is_static)
    wide = _weigh(lambda form: not reserved_family(form))
    everything = _weigh(lambda _: 1.0)
    return Mixes(
        static=Mix(static),
        wide=Mix(wide),
        everything=Mix(everything),
        held_out=Mix(_weigh(lambda form: bool(reserved_family(form)))),
        hard=Mix(_weigh(lambda form: 0 if reserved_family(form) else _hardness(form))),
        hard_reserved=Mix(_weigh(_hardness)),
        ordinary=Mix(_blend(static, 0.5, wide)),
        base=Mix(_blend(static, BASE_STATIC, everything)),
        replay=Mix(_blend(static, BASE_STATIC, wide)),
    )


@cache
def mix_of(known: tuple[str, ...]) -> Mix:
    """Half static forms, half all forms of the techniques with these tags."""
    return Mix(_blend(_weigh(is_static), 0.5, _weigh(lambda form: form.tags in known)))


def _weigh(weight: Callable[[Form], float]) -> dict[Form, float]:
    weights = {form: weight(form) * _prior(form) for form in every_form()}
    total = sum(weights.values())
    return {form: share / total for form, share in weights.items() if share > 0}


def _prior(form: Form) -> float:
    frame = NO_FRAME if form.frame is None else (1 - NO_FRAME) / len(FRAMES)
    override = NO_OVERRIDE if form.override is None else (1 - NO_OVERRIDE) / len(OVERRIDES)
    return frame * override


def _hardness(form: Form) -> float:
    return 2 * (form.key is not None) + form.split + form.distractor


def _blend(first: dict[Form, float], share: float, second: dict[Form, float]) -> dict[Form, float]:
    return {
        form: share * first.get(form, 0.0) + (1 - share) * second.get(form, 0.0)
        for form in first | second
    }
