"""A user's files in an evaluation: which prompts the guards score, and the cell that holds it.

The guards read the prompts of the test split, each text once a file; no target is asked. The cell
`data` holds ids, hashes and scores. It is made by one process after the other cells, and a cell
that is there is not made again, unless a guard gave no verdict on a prompt: a service may be back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tsgb.data.characters import visible
from tsgb.data.check import DataScan
from tsgb.data.mapping import ColumnMap
from tsgb.data.selection import FileSelection, SelectedPrompt, select
from tsgb.envs.base import Environment
from tsgb.errors import StoreError, StoreUnreachable, UsageError
from tsgb.eval.calibrated import CalibratedGuard
from tsgb.eval.data_results import CELL, WITHOUT_VERDICT
from tsgb.eval.records import DataFileRecord, Item, ItemSource
from tsgb.eval.runner import Evaluation
from tsgb.guards.choice import GuardChoice
from tsgb.types import Split

MAX_TOKENS = 2048
"""Tokens of the longest prompt that guards score: nothing is cut, and no base reads less."""
_CHARACTERS = 64
"""Characters that a token may have: a prompt of more for each token is not tokenized at all."""
_PIECE = 64
"""Prompts that are scored between two reports."""


@dataclass(frozen=True, slots=True)
class OwnData:
    """Prompts of a user's files that the guards of an evaluation score."""

    files: Sequence[FileSelection]
    """The test split of each file."""

    @classmethod
    def read(cls, paths: Sequence[Path], mapping: Sequence[str], limit: int) -> Self:
        """Read files.

        Args:
            paths: the files.
            mapping: columns that the user names, see `ColumnMap.parse`.
            limit: prompts of each file at most; 0: all.

        Raises:
            UsageError: One cannot be read, or has no labelled prompt in the test split.
        """
        return cls(select(DataScan(paths, ColumnMap.parse(mapping)), Split.TEST, limit=limit))

    @property
    def records(self) -> list[DataFileRecord]:
        """What a report says of the files."""
        return [
            DataFileRecord(
                name=_name(file),
                format=file.format,
                sha256=file.sha256,
                available=file.available,
                drawn=len(file.prompts),
                groups=len({chosen.group for chosen in file.prompts}),
                split_sha256=file.split_sha256,
            )
            for file in self.files
        ]

    def sent_to(self, guards: Sequence[GuardChoice]) -> list[str]:
        """Return a line for each of the user's guards whose service will read these prompts."""
        num = sum(len(file.prompts) for file in self.files)
        names = ", ".join(map(_name, self.files))
        return [
            f"the guard {guard.name!r} is a service: up to {num} prompts of {names} are sent to "
            f"{guard.host}"
            for guard in guards
            if guard.host
        ]

    def check_world(self, env: Environment) -> None:
        """Refuse guards that cannot read the prompts.

        Raises:
            UsageError: The world's tokenizer is a closed list of words.
        """
        words = env.tokenizer().words
        if words:
            raise UsageError(
                f"--data: guards of the world {env.name!r} know {len(words)} words and cannot read "
                "prompts of a file: evaluate a guard of a world with chat models, such as canary"
            )


def fill_data(
    evaluation: Evaluation,
    data: OwnData,
    report: Callable[[int, int, str], None],
    check: Callable[[], None],
) -> None:
    """Make the cell of the user's files, unless it is there with every verdict.

    Args:
        evaluation: the evaluation whose guards score.
        data: the prompts.
        report: progress, called with (prompts scored, prompts in all, what is being done).
        check: called between pieces; raises to stop.

    Raises:
        UsageError: See `OwnData.check_world`.
    """
    data.check_world(evaluation.env)
    place, dtype = f"{evaluation.directory}/{CELL}", evaluation.registry.dtype
    if _is_whole(evaluation, place, dtype):
        return
    guards = [guard for guard in evaluation.guards() if guard.name not in WITHOUT_VERDICT]
    encode = evaluation.registry.tokenizer().encode

    def fits(chosen: SelectedPrompt) -> bool:
        text = chosen.prompt.text
        return len(text) <= MAX_TOKENS * _CHARACTERS and len(encode(text)) <= MAX_TOKENS

    total = sum(len(file.prompts) for file in data.files) * len(guards)
    done = 0

    def scored(num: int) -> None:
        nonlocal done
        done += num
        check()
        report(done, total, "data")

    items: list[Item] = []
    too_long: Counter[str] = Counter()
    for file in data.files:
        kept = [chosen for chosen in file.prompts if fits(chosen)]
        too_long[_name(file)] = len(file.prompts) - len(kept)
        items += data_items(_name(file), kept, guards, evaluation.config.seed, scored)
    content = {
        "items": [item.model_dump(mode="json", exclude_defaults=True) for item in items],
        "too_long": too_long,
        "missing": sum(len(guards) - len(item.blocked) for item in items),
        "dtype": dtype,
    }
    evaluation.run.write_text(place, json.dumps(content))


def data_items(
    file: str,
    prompts: Sequence[SelectedPrompt],
    guards: Sequence[CalibratedGuard],
    seed: int,
    scored: Callable[[int], None] = lambda _num: None,
) -> list[Item]:
    """Score prompts of a file with every guard.

    Args:
        file: name of the file.
        prompts: what is scored.
        guards: each at its threshold; a score that is NaN is no verdict.
        seed: training seed of the guards.
        scored: called with the number of prompts of each piece.
    """
    texts = [chosen.prompt.text for chosen in prompts]
    scores = {guard.name: _scores(guard, texts, scored) for guard in guards}
    return [
        Item(
            item_id=chosen.digest,
            scenario_id=chosen.group,
            source=ItemSource.DATA,
            file=file,
            slice=visible(chosen.prompt.slice)[:80],
            technique=visible(chosen.prompt.technique)[:80],
            seed=seed,
            harmful=bool(chosen.prompt.harmful),
            scores={name: round(z[place], 5) for name, z in scores.items() if z[place] == z[place]},
            blocked={
                guard.name: scores[guard.name][place] > guard.threshold
                for guard in guards
                if scores[guard.name][place] == scores[guard.name][place]
            },
        )
        for place, chosen in enumerate(prompts)
    ]


def _name(file: FileSelection) -> str:
    """Return the name of a file in tables."""
    return visible(file.name)[:255]


def _scores(
    guard: CalibratedGuard, texts: Sequence[str], scored: Callable[[int], None]
) -> list[float]:
    found: list[float] = []
    for start in range(0, len(texts), _PIECE):
        piece = texts[start : start + _PIECE]
        found += [float(value) for value in guard.score(piece)]
        scored(len(piece))
    return found


def _is_whole(evaluation: Evaluation, place: str, dtype: str) -> bool:
    """Tell whether the cell is there in a dtype, with the verdict of every guard."""
    try:
        content: Mapping[str, Any] = evaluation.run.read_json(place)
    except StoreUnreachable:
        raise
    except (FileNotFoundError, StoreError):
        return False  # half of one is none
    return content.get("dtype") == dtype and content.get("missing") == 0
