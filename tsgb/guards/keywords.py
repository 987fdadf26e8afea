"""A list of phrases as a guard: the cheapest one that people have in front of a model."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from tsgb.errors import UsageError
from tsgb.protocols import Scores

MAX_BYTES = 1 << 20
"""Largest file of phrases that is read."""


class KeywordGuard:
    """Scores a prompt 1 if it holds one of the phrases as whole words, else 0.

    Both are compared in Unicode's compatibility form (NFKC) without case, and any run of white
    space counts as one space.

    >>> KeywordGuard(["Open Sesame"]).score(["please OPEN  sesame!", "open sesames"]).tolist()
    [1.0, 0.0]
    """

    def __init__(self, phrases: Sequence[str]) -> None:
        """Take at least one phrase that is not blank."""
        texts = sorted({_normal(phrase) for phrase in phrases} - {""}, key=len, reverse=True)
        if not texts:
            raise UsageError(
                "a list of keywords without a phrase blocks nothing: name at least one"
            )
        found = "|".join(re.escape(text) for text in texts)
        self._pattern = re.compile(rf"(?<!\w)(?:{found})(?!\w)")

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read one phrase a line; blank lines and lines that start with `#` are left out.

        Raises:
            UsageError: The file cannot be read, is no UTF-8 text, is too large or has no phrase.
        """
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            text = data.decode("utf-8-sig")
        except OSError as error:
            raise UsageError(f"keywords {str(path)!r}: {error.strerror}: name a file") from None
        except UnicodeDecodeError as error:
            raise UsageError(
                f"keywords {str(path)!r} is no UTF-8 text (byte {error.start}): save it as UTF-8"
            ) from None
        if len(data) > MAX_BYTES:
            raise UsageError(f"keywords {str(path)!r} is above {MAX_BYTES} bytes: shorten the list")
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        try:
            return cls(lines)
        except UsageError as error:
            raise UsageError(f"keywords {str(path)!r}: {error}") from None

    def score(self, prompts: Sequence[str]) -> Scores:
        """See `tsgb.protocols.Guard`."""
        found = [self._pattern.search(_normal(prompt)) is not None for prompt in prompts]
        return np.array(found, dtype=np.float64)


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
