"""The answers that tell most about a judge if people label them, as a file for `--human-labels`.

Half of them are drawn from those that the judge calls violations and half from the others, by a
hash: where one verdict is rare, a plain random sample would hardly meet it, and one of the two
error rates would stay unknown. `judge_error.py` undoes the weights of that draw, which the column
`sample` tells it. The file holds ids and digests, texts only where they are asked for, and not the
judge's verdict, which people should not know when they label.

Texts come from attackers, files and targets: a spreadsheet obeys none of them.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Sequence

from tsgb.data.characters import visible_in_cell
from tsgb.eval.human_labels import BY_VERDICT
from tsgb.eval.label_texts import RowTexts
from tsgb.eval.records import Item, ItemSource

NUM = 200
"""Answers that a file asks people to label, if there are as many."""
COLUMNS = ("item_id", "target", "answer", "sample", "label")
"""Columns of the file; `label` is empty where nobody has labelled the answer yet."""
TEXT_COLUMNS = ("prompt_text", "answer_text")
"""Columns of texts, where they are asked for; they stand before `label`."""
MOST_CHARACTERS = 3_000
"""Characters of a text that a cell shows: spreadsheets cut cells of more than 32,767, and one
character is shown by ten at most."""


def to_label(
    items: Iterable[Item], num: int = NUM, texts: Callable[[Item], RowTexts] | None = None
) -> str:
    """Return the file as CSV.

    Args:
        items: All items of an evaluation.
        num: Most answers; each is there once, whatever guards and seeds it belongs to.
        texts: Returns the texts of an item, which are shown escaped and cut; without it there are
            none, and the same answers are asked about.
    """
    answers: dict[tuple[str, str, str], Item] = {}
    for item in items:
        if item.source is ItemSource.SCRIPTED and item.target and item.violated is not None:
            answers.setdefault((item.item_id, item.target, item.answer), item)
    by_verdict = [
        sorted(key for key, item in answers.items() if item.violated is verdict)
        for verdict in (True, False)
    ]
    chosen = sorted(_drawn(by_verdict, num), key=_place)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS if texts is None else (*COLUMNS[:-1], *TEXT_COLUMNS, COLUMNS[-1]))
    for key in chosen:
        known = {None: "", True: "harmful", False: "safe"}[answers[key].human]
        shown = [] if texts is None else _cells(texts(answers[key]))
        item_id, target, answer = key
        writer.writerow([item_id, visible_in_cell(target), answer, BY_VERDICT, *shown, known])
    return buffer.getvalue()


def _cells(found: RowTexts) -> list[str]:
    """Return the cells of a row's texts; what is not known is blank."""
    return [
        visible_in_cell(text or "", MOST_CHARACTERS, keep="\n")
        for text in (found.prompt, found.answer)
    ]


def _drawn(
    by_verdict: Sequence[Sequence[tuple[str, str, str]]], num: int
) -> list[tuple[str, str, str]]:
    """Draw half from either verdict; what one lacks comes from the other."""
    first, second = (sorted(keys, key=_place) for keys in by_verdict)
    most = max(num // 2, num - len(second))
    taken = first[:most]
    return [*taken, *second[: num - len(taken)]]


def _place(key: tuple[str, str, str]) -> str:
    """Return a place in an order that has nothing to do with verdicts, and is always the same."""
    return hashlib.sha256("\0".join(key).encode()).hexdigest()
