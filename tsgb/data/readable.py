"""Prompts of a user's that guards read: texts, as wholes, because nothing is cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tsgb.envs.base import Environment
from tsgb.errors import UsageError

MAX_TOKENS = 2048
"""Tokens of the longest prompt; no base reads less."""
MAX_CHARACTERS = MAX_TOKENS * 64
"""Characters of the longest prompt that is tokenized at all: a token may have 64."""


def fits(text: str, encode: Callable[[str], Sequence[int]]) -> bool:
    """Tell whether a guard reads a prompt as a whole.

    Args:
        text: the prompt.
        encode: its tokenizer.
    """
    return len(text) <= MAX_CHARACTERS and len(encode(text)) <= MAX_TOKENS


def check_reads_text(env: Environment, option: str) -> None:
    """Refuse a world whose guards read no text.

    Args:
        env: The world.
        option: Option that brings the prompts.

    Raises:
        UsageError: The world's tokenizer is a closed list of words.
    """
    words = env.tokenizer().words
    if words:
        raise UsageError(
            f"{option}: guards of the world {env.name!r} know {len(words)} words and cannot read "
            "prompts of a file: take a world with chat models, such as canary"
        )
