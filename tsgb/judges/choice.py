"""The judge of an evaluation, by name.

    exact                               the world's own judge
    refusal-phrases                     phrases of refusal alone: weak
    simple                              `SimpleJudge` of the first README: weak
    classifier:NAME[#LABEL]             a transformers model with a head for sequence classification
    openai:MODEL[@URL][#IN/OUT]         a language model behind an endpoint; also anthropic:, and
                                        huggingface:; dollars of a million tokens in and out
    local:NAME                          a chat model on this machine, asked in the same words
    MODULE:ATTRIBUTE[#THRESHOLD]        a class or a function of yours

`NAME` is a repository of the Hugging Face Hub or a directory. This module reads small files only
and imports neither torch nor transformers, so that a name is refused before anything starts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Self

from tsgb.errors import UsageError
from tsgb.judges.plugins import THRESHOLD
from tsgb.models.files import identity, sha256_of
from tsgb.models.sequence_labels import pinned_classifier
from tsgb.models.source import inspect
from tsgb.setting_groups import HubSettings

OPTION = "--judge"
FORMS = (
    "exact, refusal-phrases, simple, classifier:NAME[#LABEL], local:NAME, "
    "openai:MODEL@URL[#IN/OUT], or "
    "MODULE:CLASS[#THRESHOLD]"
)
ENDPOINTS = ("openai", "anthropic", "huggingface")
"""Kinds of endpoints, as `tsgb.targets.endpoint` has them; no module of the user's is named so."""
MOST_DOLLARS = 1e6
"""Highest price of a million tokens."""
_PRICES = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)/(\d{1,9}(?:\.\d{1,9})?)")
_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class JudgeKind(StrEnum):
    """The kind of a judge."""

    EXACT = "exact"
    """The world's own."""
    REFUSAL_PHRASES = "refusal-phrases"
    """Phrases of refusal."""
    SIMPLE = "simple"
    """`tsgb.SimpleJudge`."""
    CLASSIFIER = "classifier"
    """A transformers model with a head for sequence classification."""
    ENDPOINT = "endpoint"
    """A language model behind an endpoint."""
    LOCAL = "local"
    """A chat model on this machine."""
    OWN = "own"
    """A class or a function of the user's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeChoice:
    """The judge of an evaluation.

    Example: `JudgeChoice.parse("classifier:org/model#toxic")`
    """

    kind: JudgeKind
    """Its kind."""
    value: str = ""
    """Model, endpoint or `module:attribute`; empty for a judge without parameters."""
    label: str = ""
    """Label of harmful texts of a classifier; empty for a usual one."""
    threshold: float = THRESHOLD
    """Probability from which a user's judge calls a response a violation."""
    prices: tuple[float, float] | None = None
    """Dollars of a million tokens in and out of an endpoint; None where they are not known."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a judge as a user names it; nothing is opened.

        Raises:
            UsageError: It has none of the forms. An endpoint's address is not repeated.
        """
        word, colon, value = text.partition(":")
        if word in ENDPOINTS and colon:
            return cls._endpoint(text)
        try:
            kind = JudgeKind(word)
        except ValueError:
            return cls._own(text)
        if kind is JudgeKind.CLASSIFIER and value:
            name, _, label = value.partition("#")
            return cls(kind=kind, value=name, label=label)
        if kind is JudgeKind.LOCAL and value:
            return cls(kind=kind, value=value)
        if (
            kind in {JudgeKind.LOCAL, JudgeKind.CLASSIFIER, JudgeKind.ENDPOINT, JudgeKind.OWN}
            or colon
        ):
            raise UsageError(f"{OPTION} {_shown(text)} has another form than {FORMS}")
        return cls(kind=kind)

    @classmethod
    def _endpoint(cls, text: str) -> Self:
        form, mark, given = text.rpartition("#")
        if not mark:
            return cls(kind=JudgeKind.ENDPOINT, value=text)
        found = _PRICES.fullmatch(given)
        if found is None or max(map(float, found.groups())) > MOST_DOLLARS:
            raise UsageError(
                f"{OPTION} {_shown(text)}: after # stand the dollars of a million tokens in and "
                "out, as in openai:MODEL#2.5/10"
            )
        prices = float(found[1]), float(found[2])
        return cls(kind=JudgeKind.ENDPOINT, value=form, prices=prices)

    @classmethod
    def _own(cls, text: str) -> Self:
        path, mark, number = text.partition("#")
        if not _OWN.fullmatch(path):
            raise UsageError(f"{OPTION} {_shown(text)} is not known: give {FORMS}")
        if not mark:
            return cls(kind=JudgeKind.OWN, value=path)
        try:
            threshold = float(number)
        except ValueError:
            threshold = -1.0
        if not 0 < threshold <= 1:
            raise UsageError(
                f"{OPTION} {path}#{number[:20]}: the threshold is no number above 0 and up to 1: "
                f"write {path}#0.5"
            )
        return cls(kind=JudgeKind.OWN, value=path, threshold=threshold)

    @property
    def text(self) -> str:
        """The form that `parse` reads as this."""
        match self.kind:
            case JudgeKind.CLASSIFIER:
                return f"{self.kind}:{self.value}{f'#{self.label}' if self.label else ''}"
            case JudgeKind.LOCAL:
                return f"{self.kind}:{self.value}"
            case JudgeKind.ENDPOINT:
                prices = "" if self.prices is None else f"#{self.prices[0]:g}/{self.prices[1]:g}"
                return f"{self.value}{prices}"
            case JudgeKind.OWN:
                return self.value + (f"#{self.threshold:g}" if self.threshold != THRESHOLD else "")
            case _:
                return self.kind.value

    @property
    def name(self) -> str:
        """Name in reports: no path of this machine, and no price."""
        if self.kind is JudgeKind.ENDPOINT:
            return self.value
        if self.kind not in _MODELS:
            return self.text
        is_path = Path(self.value).is_absolute()
        return f"{self.kind}:{Path(self.value).name if is_path else self.value}"

    def checked(self, hub: HubSettings, cache_dir: Path) -> JudgeChoice:
        """Return the choice with a full path or a pinned commit, once it is sure that it exists.

        Raises:
            UsageError: There is no such directory, model or label; one line says it.
        """
        if self.kind is JudgeKind.LOCAL:
            return replace(self, value=inspect(self.value, hub, cache_dir).name)
        if self.kind is not JudgeKind.CLASSIFIER:
            return self
        asked = f"{OPTION} {self.text!r}"
        return replace(self, value=pinned_classifier(self.value, self.label, hub, asked))

    def content_hash(self, hash_file: Callable[[Path], str] = sha256_of) -> str:
        """Return a hash of the files that the name does not tell the content of, else nothing.

        Raises:
            UsageError: A file cannot be read.
        """
        if self.kind not in _MODELS or not Path(self.value).is_absolute():
            return ""
        try:
            return identity(Path(self.value), hash_file).sha256
        except OSError as error:
            raise UsageError(f"{OPTION} {self.text!r} cannot be read ({error})") from None


_MODELS = frozenset({JudgeKind.CLASSIFIER, JudgeKind.LOCAL})
"""Judges that are a model in files of this machine or a pinned repository."""


def _shown(text: str) -> str:
    """Return the word in front alone where an address may follow, which may hold a password."""
    return repr(text[:60] if "@" not in text and "//" not in text else text.partition(":")[0][:40])


def checked_judge(text: str | None, hub: HubSettings, cache_dir: Path) -> str | None:
    """Return the user's judge in a form that stays the same; None without one.

    Args:
        text: Judge as the user names it.
        hub: Settings of the hub.
        cache_dir: Directory of converted models.

    Raises:
        UsageError: It has none of the forms, or does not exist.
    """
    return None if text is None else JudgeChoice.parse(text).checked(hub, cache_dir).text
