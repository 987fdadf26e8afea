"""Texts of the answers that people are asked to label: the prompts, and what targets answered.

Items hold digests. A scripted prompt is drawn again from the world, since equal seeds draw equal
prompts. An answer is looked up in the response logs of this machine. A text counts only if its
digest is that of the item, so that a world of another version, or a log of a target that has the
same name, shows nothing wrong. It asks nobody and imports no code of a target's. Torch-free.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tsgb.config import RunConfig
from tsgb.envs.base import Environment
from tsgb.eval.records import Item, ItemSource, digest_of
from tsgb.eval.responses import ResponseLog, logs_of, questions
from tsgb.eval.streams import fixed_prompts
from tsgb.types import LabelledPrompt, Response, Split

EMPTY, REFUSED = "<no text>", "<refused by the service, without a text>"
"""What stands for an answer that is known and has no text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTexts:
    """Texts of one row.

    Example: `RowTexts(prompt="o1 c3", answer=None)`
    """

    prompt: str | None
    """The prompt; None if the world does not draw it any more."""
    answer: str | None
    """The answer; None if no log of this machine holds it."""


class LabelTexts:
    """Finds the texts of an evaluation's scripted items, and counts what it does not find.

    Example: `with LabelTexts(env, config, items, cache_dir / "responses") as texts: ...`
    """

    def __init__(
        self, env: Environment, config: RunConfig, items: Iterable[Item], directory: Path
    ) -> None:
        """Draw and open nothing yet.

        Args:
            env: The world of the run.
            config: The run's configuration; seed and number of prompts are those of the items.
            items: All items of the evaluation.
            directory: Where response logs lie.
        """
        self._env = env
        self._config = config
        self._directory = directory
        self._sizes = _prompts_of_a_stream(items)
        self._scenarios = {s.scenario_id: s for s in env.scenarios(Split.TEST)}
        self._drawn: dict[int, list[LabelledPrompt]] = {}
        self._by_digest: dict[int, Mapping[str, str]] = {}
        self._keys: dict[tuple[int, str], Mapping[str, Sequence[str]]] = {}
        self._logs: dict[str, list[ResponseLog]] = {}
        self._open = ExitStack()
        self._without_prompt = 0
        self._without_answer: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def of(self, item: Item) -> RowTexts:
        """Return the texts of a scripted item.

        Raises:
            StoreError: A response log cannot be read.
        """
        prompt = self._texts(item.seed).get(item.item_id)
        if prompt is None:
            self._without_prompt += 1
            return RowTexts(prompt=None, answer=None)
        found = self._answer(item, str(item.target))
        if found is None:
            self._without_answer[str(item.target)] += 1
            return RowTexts(prompt=prompt, answer=None)
        return RowTexts(prompt=prompt, answer=found.text or (REFUSED if found.refusal else EMPTY))

    def told(self) -> list[str]:
        """Return a line for each reason for which texts of the rows so far were not found."""
        lines: list[str] = []
        if self._without_answer:
            each = ", ".join(f"{name} {num}" for name, num in sorted(self._without_answer.items()))
            lines.append(
                f"{self._without_answer.total()} answers are blank ({each}): no response log in "
                f"{self._directory} holds them; models on a machine of yours keep none, and what "
                "endpoints and classes answered lies where they were asked"
            )
        if self._without_prompt:
            lines.append(
                f"{self._without_prompt} prompts are blank, and their answers: this version of the "
                f"world {self._env.name!r} does not draw them; use the version that evaluated"
            )
        return lines

    def _prompts(self, seed: int) -> list[LabelledPrompt]:
        """Return the harmful prompts of a training seed, in the order in which they are asked."""
        if seed not in self._drawn:
            sizes = self._config.evaluation.model_copy(update={"scripted": self._sizes[seed]})
            config = self._config.model_copy(update={"seed": seed, "evaluation": sizes})
            self._drawn[seed] = [p for p in fixed_prompts(self._env, config) if p.harmful]
        return self._drawn[seed]

    def _texts(self, seed: int) -> Mapping[str, str]:
        """Return the same prompts by their digests."""
        if seed not in self._by_digest:
            self._by_digest[seed] = {digest_of(p.text): p.text for p in self._prompts(seed)}
        return self._by_digest[seed]

    def _questions(self, seed: int, target: str) -> Mapping[str, Sequence[str]]:
        """Return the keys under which a log has the answers to each prompt, by its digest."""
        if (seed, target) not in self._keys:
            asked = [p for p in self._prompts(seed) if p.scenario_id in self._scenarios]
            keys = questions(
                [
                    self._env.target_messages(target, self._scenarios[p.scenario_id], p.text)
                    for p in asked
                ]
            )
            found: dict[str, list[str]] = defaultdict(list)
            for prompt, key in zip(asked, keys, strict=True):
                found[digest_of(prompt.text)].append(key)
            self._keys[seed, target] = found
        return self._keys[seed, target]

    def _answer(self, item: Item, target: str) -> Response | None:
        logs = self._opened(target)
        keys = self._questions(item.seed, target).get(item.item_id, ()) if logs else ()
        for log in logs:
            for stored in map(log.find, keys):
                if stored is None or stored.response.error is not None:
                    continue
                if digest_of(stored.response.text) == item.answer:
                    return stored.response
        return None

    def _opened(self, target: str) -> list[ResponseLog]:
        """Open the logs of every identity that a target of this name had."""
        if target not in self._logs:
            self._logs[target] = [
                self._open.enter_context(ResponseLog(path, target, {}))
                for path in logs_of(self._directory, target)
            ]
        return self._logs[target]


def _prompts_of_a_stream(items: Iterable[Item]) -> dict[int, int]:
    """Return how many prompts of a stream each training seed drew.

    `eval-local` draws fewer than the run's configuration says, and another number draws others.
    """
    counted = Counter(
        (item.seed, item.stream, item.target)
        for item in items
        if item.source is ItemSource.SCRIPTED and item.target
    )
    sizes: dict[int, int] = {}
    for (seed, _, _), num in counted.items():
        sizes[seed] = max(num, sizes.get(seed, 0))
    return sizes
