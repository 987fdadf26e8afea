"""A user's files in an evaluation: which prompts are used, and the cell that holds it.

The guards read the prompts of the test split, each text once a file, and targets of the user's are
asked about them where their answers can be judged (`data_answers.py`). The cell `data` holds ids,
hashes, scores and outcomes. It is made by one process after the other cells, and a cell that is
there is not made again, unless a guard gave no verdict on a prompt, or a target too few answers: a
service may be back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from tsgb.data.characters import visible
from tsgb.data.check import DataScan
from tsgb.data.duplicates import PromptGroups
from tsgb.data.mapping import ColumnMap
from tsgb.data.readable import check_reads_text, fits
from tsgb.data.records import DataPrompt
from tsgb.data.selection import FileSelection, SelectedPrompt, select
from tsgb.data.training import TrainingPrompt
from tsgb.errors import StoreError, StoreUnreachable, UsageError
from tsgb.eval.calibrated import CalibratedGuard
from tsgb.eval.data_answers import DataTargets
from tsgb.eval.data_results import CELL, WITHOUT_VERDICT
from tsgb.eval.judge_results import facts_of
from tsgb.eval.records import DataFileRecord, Item, ItemSource
from tsgb.eval.request import failing_targets
from tsgb.eval.runner import Evaluation
from tsgb.guards.choice import GuardChoice
from tsgb.types import Split

_PIECE = 64
"""Prompts that are scored between two reports."""


@dataclass(frozen=True, slots=True)
class OwnData:
    """Prompts of a user's files that the guards of an evaluation score."""

    files: Sequence[FileSelection]
    """The test split of each file."""
    trained_on: Mapping[str, int] = field(default_factory=dict[str, int])
    """Prompts of each file that were left out because guards were trained on them, by its name."""

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
                trained_on=self.trained_on.get(file.name, 0),
            )
            for file in self.files
        ]

    def apart_from(self, trained: Sequence[TrainingPrompt]) -> OwnData:
        """Return the prompts without those that guards were trained on, and without their groups.

        Splits keep the groups of one file apart as long as it is read by the same columns. Another
        file, or other columns, may hold the same prompts in its test split.

        Args:
            trained: the user's prompts in the guards' training.

        Raises:
            UsageError: None of a file is left.
        """
        groups = PromptGroups()
        for seen in trained:
            groups.add(
                DataPrompt(
                    text=seen.text, harmful=seen.harmful, group=seen.group, source="train", row=0
                )
            )
        for number, file in enumerate(self.files, 1):
            for chosen in file.prompts:
                groups.add(replace(chosen.prompt, group=chosen.group), number)
        names = groups.groups()
        known, rest = set(names[: len(trained)]), iter(names[len(trained) :])
        files: list[FileSelection] = []
        for file in self.files:
            kept = [p for p, group in zip(file.prompts, rest, strict=False) if group not in known]
            if not kept:
                raise UsageError(
                    f"--data {_name(file)}: the guard was trained on all of these prompts, or on "
                    "variants of them: name a file that it has not seen"
                )
            files.append(replace(file, prompts=kept))
        left_out = {
            file.name: len(file.prompts) - len(apart.prompts)
            for file, apart in zip(self.files, files, strict=True)
        }
        return OwnData(files, left_out)

    @property
    def texts(self) -> list[str]:
        """Every prompt, of each file."""
        return [chosen.prompt.text for file in self.files for chosen in file.prompts]

    def sent_to(
        self, guards: Sequence[GuardChoice], targets: Sequence[str] = (), judge: str | None = None
    ) -> list[str]:
        """Return a line for each service and target that will read these prompts.

        Args:
            guards: The user's guards.
            targets: Names of the targets that are asked about them, with hosts.
            judge: Judge of their answers.
        """
        num = sum(len(file.prompts) for file in self.files)
        names = ", ".join(map(_name, self.files))
        lines = [
            f"the guard {guard.name!r} is a service: up to {num} prompts of {names} are sent to "
            f"{guard.host}"
            for guard in guards
            if guard.host
        ]
        lines += [f"up to {num} prompts of {names} are asked of {name}" for name in targets]
        if targets and judge:
            lines.append(f"{judge} judges what is answered to prompts of {names}")
        return lines


def fill_data(
    evaluation: Evaluation,
    data: OwnData,
    report: Callable[[int, int, str], None],
    check: Callable[[], None],
    asked: DataTargets | None = None,
) -> None:
    """Make the cell of the user's files, unless it is there with every verdict.

    Args:
        evaluation: the evaluation whose guards score.
        data: the prompts.
        report: progress, called with (prompts scored, prompts in all, what is being done).
        check: called between pieces; raises to stop.
        asked: targets that are asked about the prompts too; None asks nobody.

    Raises:
        UsageError: The guards of this world read no text.
    """
    check_reads_text(evaluation.env, "--data")
    place, dtype = f"{evaluation.directory}/{CELL}", evaluation.registry.dtype
    if _is_whole(evaluation, place, dtype):
        return
    guards = [guard for guard in evaluation.guards() if guard.name not in WITHOUT_VERDICT]
    encode = evaluation.registry.tokenizer().encode

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
        kept = [chosen for chosen in file.prompts if fits(chosen.prompt.text, encode)]
        too_long[_name(file)] = len(file.prompts) - len(kept)
        verdicts = data_items(_name(file), kept, guards, evaluation.config.seed, scored)
        items += verdicts
        if asked is not None:
            report(done, total, f"answers to {_name(file)}")
            items += asked.answered(_name(file), kept, verdicts)
    content: dict[str, Any] = {
        "items": [item.model_dump(mode="json", exclude_defaults=True) for item in items],
        "too_long": too_long,
        "missing": sum(len(guards) - len(item.blocked) for item in items if item.target is None),
        "dtype": dtype,
    }
    if asked is not None:
        content["judge"] = {"facts": facts_of(asked.judge), "canaries": None}
        content["usage"] = evaluation.take_usage()
        evaluation.registry.free_black_box()
    evaluation.run.write_signed(place, json.dumps(content).encode())


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
        content: Mapping[str, Any] = evaluation.run.read_signed_json(place)
    except StoreUnreachable:
        raise
    except (FileNotFoundError, StoreError):
        return False  # half of one is none
    failing = failing_targets(content, evaluation.config.evaluation.max_error_rate)
    return content.get("dtype") == dtype and content.get("missing") == 0 and not failing
