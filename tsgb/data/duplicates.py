"""Prompts that occur twice, exactly or nearly, within a file or across files; they share a group.

Exact: equal once normalised. Near: MinHash (Broder 1997) over the sets of three successive words of
the normalised texts, 64 minima, found by locality-sensitive hashing in 16 bands of four. A pair
counts as near from an estimated Jaccard similarity of .8 on; its standard error there is .05. In
scripts that are written without spaces each character is a word. Prompts of less than 20 words are
compared exactly: one word makes another prompt of them. Templates that wrap different requests are
near duplicates, which is right: a guard that has seen one has seen the others.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsgb.data.cells import normalised
from tsgb.data.records import DataPrompt

NEAR = 0.8
"""Estimated similarity from which two prompts are near duplicates."""
SHINGLE = 3
"""Words of a shingle."""
MIN_WORDS = 20
"""Words of the shortest prompt that may have near duplicates."""
MAX_CHARACTERS = 50_000
"""Characters of a normalised text that near duplicates are told by."""
_MINIMA, _BANDS = 64, 16
_ROWS = _MINIMA // _BANDS
_RANDOM = np.random.default_rng(20_260_701)
_FACTORS = _RANDOM.integers(1, 2**63, _MINIMA, dtype=np.uint64) | np.uint64(1)
_SHIFTS = _RANDOM.integers(0, 2**63, _MINIMA, dtype=np.uint64)
_POWERS = np.array(
    [pow(6_364_136_223_846_793_005, i, 2**64) for i in range(SHINGLE)], dtype=np.uint64
)
_WORDS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]"
    r"|[^\W_]+"
)
"""A word, or a character of a script without spaces: Thai, Lao, Burmese, Khmer, Japanese,
Chinese."""
_PIECE = 2048
"""Shingles that are hashed at once, so that a long text takes little memory."""

UInts = NDArray[np.uint64]


class DuplicateCounts(NamedTuple):
    """How many prompts repeat an earlier one."""

    exact_within: int
    """Equal to an earlier prompt of its file."""
    exact_across: int
    """Equal to a prompt of an earlier file, and to none of its own."""
    near_within: int
    """Near to an earlier prompt of its file, and equal to none."""
    near_across: int
    """Near to a prompt of an earlier file; otherwise new."""
    contradicting: int
    """Equal to an earlier prompt of the opposite label."""
    shared_groups: int
    """Groups of the files that were joined with an earlier one."""


class PromptGroups:
    """Groups of prompts, joined where two of them hold duplicates of each other.

    Prompts are added in the order of files and rows. A joined group has the name of its earliest
    one, so that prompts that come later rename nobody.
    """

    def __init__(self) -> None:
        """Start without prompts."""
        self._names: dict[str, int] = {}
        self._ordered: list[str] = []
        self._parents: list[int] = []
        self._groups: list[int] = []
        self._files: list[int] = []
        self._first: dict[bytes, int] = {}
        self._labels: dict[bytes, set[bool]] = {}
        self._digests: list[bytes] = []
        self._repeats: list[int] = []
        self._signed: list[int] = []
        self._signatures = bytearray()
        self._near: dict[int, int] | None = None
        self.contradicting = 0

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self._groups)

    def add(self, prompt: DataPrompt, file: int = 0) -> int:
        """Add a prompt and return its place, from 0.

        Args:
            prompt: the next one.
            file: number of its file, not below that of the prompt before.
        """
        place = len(self._groups)
        group = self._names.setdefault(prompt.group, len(self._names))
        if group == len(self._parents):
            self._parents.append(group)
            self._ordered.append(prompt.group)
        text = normalised(prompt.text)
        digest = _digest(text)
        first = self._first.setdefault(digest, place)
        self._groups.append(group)
        self._files.append(file)
        self._digests.append(digest)
        self._repeats.append(first)
        if first != place:
            self._join(group, self._groups[first])
        if prompt.harmful is not None:
            known = self._labels.setdefault(digest, set())
            self.contradicting += (not prompt.harmful) in known
            known.add(prompt.harmful)
        minima = signature(text) if first == place else None
        if minima is not None:
            self._signed.append(place)
            self._signatures += minima.tobytes()
        self._near = None
        return place

    def digest(self, place: int) -> bytes:
        """Return 16 bytes that equal prompts share."""
        return self._digests[place]

    def is_repeat(self, place: int) -> bool:
        """Tell whether a prompt is equal to an earlier one of any file."""
        return self._repeats[place] != place

    def group(self, place: int) -> str:
        """Return the name of a prompt's group, joined with those of its duplicates."""
        self._find_near()
        return self._ordered[self._root(self._groups[place])]

    def groups(self) -> list[str]:
        """Return the group of every prompt, in order."""
        return [self.group(place) for place in range(len(self))]

    def counts(self) -> DuplicateCounts:
        """Count duplicates."""
        near = self._find_near()
        exact, here = [0, 0], set[tuple[bytes, int]]()
        for place, first in enumerate(self._repeats):
            key = (self._digests[place], self._files[place])
            if first != place:
                exact[key not in here] += 1
            here.add(key)
        across = sum(self._files[a] != self._files[b] for a, b in near.items())
        joined = sum(self._root(group) != group for group in range(len(self._parents)))
        return DuplicateCounts(
            exact[0], exact[1], len(near) - across, across, self.contradicting, joined
        )

    def _find_near(self) -> dict[int, int]:
        """Join groups of near duplicates; return for each such prompt an earlier one."""
        if self._near is None:
            places = self._signed
            minima = np.frombuffer(bytes(self._signatures), dtype=np.uint32)
            self._near = {}
            for earlier, later in near_pairs(minima.reshape(-1, _MINIMA)):
                self._near.setdefault(places[later], places[earlier])
                self._join(self._groups[places[earlier]], self._groups[places[later]])
        return self._near

    def _root(self, group: int) -> int:
        while self._parents[group] != group:
            self._parents[group] = group = self._parents[self._parents[group]]
        return group

    def _join(self, one: int, other: int) -> None:
        first, second = sorted((self._root(one), self._root(other)))
        self._parents[second] = first


def digest_of(text: str) -> bytes:
    """Return 16 bytes that texts share which are equal once normalised."""
    return _digest(normalised(text))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]


def signature(text: str) -> NDArray[np.uint32] | None:
    """Return the minima of 64 hash functions over the shingles of a normalised text, [64].

    None for a text of less than `MIN_WORDS` words.
    """
    words = _WORDS.findall(text[:MAX_CHARACTERS])
    if len(words) < MIN_WORDS:
        return None
    hashes = _shingles(words)
    minima = np.full(_MINIMA, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(hashes), _PIECE):
        piece = hashes[start : start + _PIECE, None] * _FACTORS + _SHIFTS
        np.minimum(minima, piece.min(axis=0), out=minima)
    return (minima >> np.uint64(32)).astype(np.uint32)


def _shingles(words: list[str]) -> UInts:
    """Return a hash of each run of `SHINGLE` words."""
    codes = np.array([zlib.crc32(word.encode()) for word in words], dtype=np.uint64)
    num = len(codes) - SHINGLE + 1
    hashes = np.zeros(num, dtype=np.uint64)
    for offset, power in enumerate(_POWERS):
        hashes += codes[offset : offset + num] * power
    hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes * np.uint64(0xBF58476D1CE4E5B9))


def near_pairs(minima: NDArray[np.uint32]) -> Iterator[tuple[int, int]]:
    """Yield pairs of near duplicates, the earlier one first.

    Args:
        minima: [N, 64] signatures.
    """
    for band in range(_BANDS):
        part = np.ascontiguousarray(minima[:, band * _ROWS : (band + 1) * _ROWS])
        keys = part.view(np.dtype((np.void, part.itemsize * _ROWS))).ravel()
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        begins = np.append(True, ordered[1:] != ordered[:-1])
        heads = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
        for before in (heads, np.roll(order, 1)):
            rows = np.flatnonzero(~begins)
            first, second = before[rows], order[rows]
            alike = (minima[first] == minima[second]).mean(axis=1) >= NEAR
            yield from zip(first[alike].tolist(), second[alike].tolist(), strict=True)
