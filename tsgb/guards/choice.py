"""Guards that a user puts beside those of a run, by name.

    always-block                        blocks everything
    keywords:FILE                       phrases, one a line
    export:DIR                          what `tsgb export-guard` wrote
    classifier:NAME[#LABEL]             a transformers model with a head for sequence classification
    llama-guard:NAME                    a chat model, asked as Llama Guard is
    moderation:URL[#MODEL]              an endpoint POST /v1/moderations

`NAME` is a repository of the Hugging Face Hub or a directory. Each form takes `TITLE=` in front:
its name in tables. This module reads small files only and imports neither torch nor transformers,
so that a name is refused before anything starts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from tsgb.errors import UsageError
from tsgb.guards.keywords import KeywordGuard
from tsgb.guards.moderation import checked_url
from tsgb.models.files import identity, sha256_of
from tsgb.models.sequence_labels import pinned_classifier
from tsgb.models.source import inspect
from tsgb.setting_groups import HubSettings

OPTION = "--guard"
FORMS = (
    "always-block, keywords:FILE, export:DIR, classifier:NAME[#LABEL], llama-guard:NAME or "
    "moderation:URL[#MODEL]"
)
_TITLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_EXPORT = "guard.json"


class GuardKind(StrEnum):
    """The kind of a guard of the user's."""

    ALWAYS_BLOCK = "always-block"
    """Blocks everything."""
    KEYWORDS = "keywords"
    """A list of phrases."""
    EXPORT = "export"
    """A guard that `tsgb export-guard` wrote."""
    CLASSIFIER = "classifier"
    """A transformers model with a head for sequence classification."""
    LLAMA_GUARD = "llama-guard"
    """A chat model, asked as Llama Guard is."""
    MODERATION = "moderation"
    """An endpoint for moderation."""

    @property
    def is_calibrated(self) -> bool:
        """Whether its scores are put to the run's budget; otherwise it decides itself."""
        return self not in {GuardKind.ALWAYS_BLOCK, GuardKind.KEYWORDS}

    @property
    def is_remote(self) -> bool:
        """Whether somebody else's service answers, which thousands of attacks would burden."""
        return self is GuardKind.MODERATION


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardChoice:
    """A guard of the user's.

    Example: `GuardChoice.parse("mine=keywords:words.txt")`
    """

    name: str
    """Name in tables."""
    kind: GuardKind
    """Its kind."""
    value: str = ""
    """File, directory, model or address; empty for `always-block`."""
    detail: str = ""
    """Label or model behind the `#`; empty if there is none."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a guard as a user names it; nothing is opened.

        Raises:
            UsageError: It has none of the forms.
        """
        title, equals, rest = text.partition("=")
        if not equals or not _TITLE.fullmatch(title):
            title, rest = "", text
        word, _, value = rest.partition(":")
        try:
            kind = GuardKind(word)
        except ValueError:
            raise UsageError(f"{OPTION} {text!r} is not known: give {FORMS}") from None
        if bool(value) == (kind is GuardKind.ALWAYS_BLOCK):
            raise UsageError(f"{OPTION} {text!r} has another form than {FORMS}")
        detail = ""
        if kind in {GuardKind.CLASSIFIER, GuardKind.MODERATION}:
            value, _, detail = value.partition("#")
        found = cls(name=title or word, kind=kind, value=value, detail=detail)
        return found if title else replace(found, name=found._usual_name())

    def _usual_name(self) -> str:
        match self.kind:
            case GuardKind.ALWAYS_BLOCK | GuardKind.KEYWORDS:
                return self.kind.value
            case GuardKind.MODERATION:
                name = urlsplit(self.value).hostname or self.kind.value
            case _:
                name = Path(self.value.partition("@")[0]).name
        return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-")[:100] or self.kind.value

    @property
    def host(self) -> str:
        """The host of the service that reads the prompts; empty for a guard of this machine."""
        return (urlsplit(self.value).hostname or "") if self.kind.is_remote else ""

    @property
    def text(self) -> str:
        """The form that `parse` reads as this."""
        value = f":{self.value}" if self.value else ""
        return f"{self.name}={self.kind}{value}{f'#{self.detail}' if self.detail else ''}"

    def checked(self, hub: HubSettings, cache_dir: Path) -> GuardChoice:
        """Return the choice with a full path or a pinned commit, once it is sure that it exists.

        Raises:
            UsageError: There is no such file, directory, model or label; one line says it.
        """
        match self.kind:
            case GuardKind.ALWAYS_BLOCK:
                return self
            case GuardKind.KEYWORDS:
                KeywordGuard.from_file(Path(self.value))
                return replace(self, value=str(Path(self.value).absolute()))
            case GuardKind.EXPORT:
                path = Path(self.value).absolute()
                if not (path / _EXPORT).is_file():
                    raise UsageError(
                        f"{OPTION} {self.text!r}: {path} holds no {_EXPORT}: name a directory that "
                        "`tsgb export-guard` wrote"
                    )
                return replace(self, value=str(path))
            case GuardKind.CLASSIFIER:
                asked = f"{OPTION} {self.text!r}"
                pinned = pinned_classifier(self.value, self.detail, hub, asked)
                return replace(self, value=pinned)
            case GuardKind.LLAMA_GUARD:
                return replace(self, value=inspect(self.value, hub, cache_dir).name)
            case GuardKind.MODERATION:
                checked_url(self.value)
                return self

    def content_hash(self, hash_file: Callable[[Path], str] = sha256_of) -> str:
        """Return a hash of the files that the name does not tell the content of, else nothing.

        Raises:
            UsageError: A file cannot be read.
        """
        path = Path(self.value)
        if not path.is_absolute():
            return ""
        try:
            if path.is_file():
                return hash_file(path)
            if self.kind is GuardKind.EXPORT:
                return hash_file(path / _EXPORT)
            return identity(path, hash_file).sha256
        except OSError as error:
            raise UsageError(f"{OPTION} {self.text!r} cannot be read ({error})") from None


def read_choices(texts: Sequence[str], taken: Collection[str]) -> list[GuardChoice]:
    """Read all guards of the user's.

    Args:
        texts: What `--guard` was given.
        taken: Names in tables that the evaluation uses itself.

    Raises:
        UsageError: One has none of the forms, or two have one name.
    """
    found: dict[str, GuardChoice] = {}
    for text in texts:
        choice = GuardChoice.parse(text)
        if choice.name in found or choice.name in taken:
            other = found[choice.name].text if choice.name in found else "a guard of the evaluation"
            raise UsageError(
                f"{OPTION} {text!r} is called {choice.name!r} in tables, as is {other}: give it "
                f"another name, as in {OPTION} mine={text.partition('=')[2] or text}"
            )
        found[choice.name] = choice
    return list(found.values())


def checked_guards(texts: Sequence[str], hub: HubSettings, cache_dir: Path) -> list[str]:
    """Return the user's guards in forms that stay the same: full paths, pinned commits.

    Args:
        texts: Guards as the user names them.
        hub: Settings of the hub.
        cache_dir: Directory of converted models.

    Raises:
        UsageError: One has none of the forms, or does not exist.
    """
    return [GuardChoice.parse(text).checked(hub, cache_dir).text for text in texts]
