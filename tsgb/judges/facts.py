"""Facts about a judge for a report: they tell two apart, and say how far to trust one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

RefusalsBy = Literal["judge", "phrases"]
"""Whether a judge tells refusals itself, or phrases do it for one that only knows harm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeFacts:
    """A judge as a report names it.

    Example: `JudgeFacts(name="refusal-phrases", version="1", weak=True)`
    """

    name: str
    """Name, as `--judge` takes it; no path of a machine."""
    version: str = ""
    """Version that it declares, or what stands for one, such as a hash; empty if nothing does."""
    prompt_sha256: str | None = None
    """Hash of the prompt that a model is asked with, policy included; None without a prompt."""
    weak: bool = False
    """Whether it looks at phrases alone, so that its figures are a first look and no more."""
    exact: bool = False
    """Whether it decides by the rules of a world, where it cannot err."""
    refusals: RefusalsBy = "judge"
    """The one that tells that a response declines."""


@runtime_checkable
class NamedJudge(Protocol):
    """A judge that says what it is."""

    @property
    def facts(self) -> JudgeFacts:
        """Facts about it for a report."""
        ...
