"""Labels that people gave to answers, from a file, and the items that they belong to.

    {"item_id": "3f9c0d1e2a4b5c6d", "target": "Bot", "answer": "9a…", "label": "harmful"}

One object a line, or the same columns as CSV. `item_id` is that of `results.jsonl`;
`prompt_sha256`, the hash of the whole prompt, may stand in its place. `label` says whether the
answer is a violation. `answer`, the digest of the answer, keeps a label from another answer to the
same prompt, and `target` from that of another target: without them a label counts only where just
one answer can be meant. `sample` is `verdict` where the answers were drawn by the judge's verdict,
as `tsgb.eval.to_label` draws them. A row with an empty label is an answer that nobody has labelled
yet. It reads no text of a prompt or an answer: further columns are ignored.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast

from tsgb.checkpoint.documents import parse_json_object, printable
from tsgb.data.characters import visible_in_cell
from tsgb.errors import StoreError, UsageError
from tsgb.eval.records import Item, ItemSource

OPTION = "--human-labels"
MOST_BYTES = 32 << 20
MOST_LABELS = 20_000
VIOLATIONS = frozenset({"harmful", "violation", "unsafe", "true", "yes", "1"})
"""Labels of a violation, in lower case."""
OTHERS = frozenset({"safe", "refusal", "harmless", "false", "no", "0"})
"""Labels of any other answer, in lower case."""
BY_VERDICT = "verdict"
_ID = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanLabel:
    """One label.

    Example: `HumanLabel(item_id="3f9c0d1e2a4b5c6d", violates=True, target="Bot")`
    """

    item_id: str
    """Digest of the prompt, as items have it."""
    violates: bool
    """Whether the answer is a violation."""
    target: str = ""
    """Target that answered; empty if the file does not say."""
    answer: str = ""
    """Digest of the answer; empty if the file does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanLabels:
    """All labels of a file.

    Example: `HumanLabels.read(Path("labels.jsonl"))`
    """

    sha256: str
    """Hash of the file."""
    labels: Sequence[HumanLabel]
    """One a line."""
    by_verdict: bool = False
    """Whether the answers were drawn by the judge's verdict."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file of labels.

        Raises:
            UsageError: It cannot be read, or a line breaks a rule; the message names the line.
        """
        where = f"{OPTION} {path}"
        try:
            with path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
            text = data.decode("utf-8-sig")
        except OSError as error:
            raise UsageError(f"{where} cannot be read ({error.strerror}): name a file") from None
        except UnicodeDecodeError:
            raise UsageError(f"{where} is not UTF-8: save it as UTF-8") from None
        if len(data) > MOST_BYTES:
            raise UsageError(f"{where} has more than {MOST_BYTES} bytes: label fewer answers")
        rows = _json_rows(where, text) if text.lstrip()[:1] == "{" else _csv_rows(where, text)
        found: list[HumanLabel] = []
        samples: set[str] = set()
        for place, row in rows:
            if _is_blank(row.get("label")):  # nobody has labelled it yet
                continue
            if len(found) == MOST_LABELS:
                raise UsageError(f"{where} has more than {MOST_LABELS} labels: give fewer")
            found.append(_label(place, row))
            samples.add(_text(row, "sample"))
        if not found:
            raise UsageError(
                f"{where} holds no label: write item_id, target and label, and fill in the last one"
            )
        if BY_VERDICT in samples and len(samples) > 1:
            raise UsageError(
                f"{where} mixes answers that were drawn by the judge's verdict with others: put "
                "them into two files and give one"
            )
        digest = hashlib.sha256(data).hexdigest()
        return cls(sha256=digest, labels=found, by_verdict=BY_VERDICT in samples)

    def are_in(self, judge: object) -> bool:
        """Return whether a report's record of its judge is made with this file."""
        human = _fields(_fields(judge).get("human"))
        return human.get("file_sha256") == self.sha256

    def document(self) -> dict[str, Any]:
        """Return what a request keeps, which `of` reads."""
        rows = [[one.item_id, one.target, one.answer, one.violates] for one in self.labels]
        return {"sha256": self.sha256, "by_verdict": self.by_verdict, "labels": rows}

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Self | None:
        """Return the labels of a request; None without any.

        Raises:
            StoreError: They are not of this form.
        """
        document: object = request.get("human_labels")
        if document is None:
            return None
        try:
            fields: Mapping[str, Any] = _fields(document)
            rows: list[tuple[str, str, str, bool]] = fields["labels"]
            labels = [
                HumanLabel(
                    item_id=str(item),
                    target=str(target),
                    answer=str(answer),
                    violates=violates is True,
                )
                for item, target, answer, violates in rows
            ]
            return cls(
                sha256=str(fields["sha256"]),
                labels=labels,
                by_verdict=fields["by_verdict"] is True,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"the evaluation's request has human labels of another form "
                f"({type(error).__name__}): give {OPTION} again"
            ) from None

    def attach(self, items: Sequence[Item]) -> tuple[list[Item], int]:
        """Return the items with their labels, and the number of labels that belong to none.

        Only answers to scripted harmful prompts take one. Two labels of one answer that contradict
        each other both count as belonging to none.
        """
        places: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for number, item in enumerate(items):
            if item.source is ItemSource.SCRIPTED and item.target is not None and not item.error:
                places[item.item_id, item.target, item.answer].append(number)
        by_item: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
        for key in places:
            by_item[key[0]].append(key)
        said: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
        unused = 0
        for label in self.labels:
            meant = [
                key
                for key in by_item.get(label.item_id, ())
                if label.target in {"", key[1], visible_in_cell(key[1])}
                and label.answer in {"", key[2]}
            ]
            if len(meant) == 1:
                said[meant[0]].append(label.violates)
            else:
                unused += 1
        out = list(items)
        for key, answers in said.items():
            if len(set(answers)) > 1:
                unused += len(answers)
                continue
            for number in places[key]:
                out[number] = items[number].model_copy(update={"human": answers[0]})
        return out, unused


Row = Mapping[str, object]


def _fields(value: object) -> Row:
    """Return an object of JSON, and an empty one for anything else."""
    return cast("Row", value) if isinstance(value, Mapping) else {}


def _json_rows(where: str, text: str) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{where}, line {number}"
        try:
            yield place, parse_json_object(line)
        except ValueError as error:
            raise UsageError(f"{place}: {error}: write one JSON object a line") from None


def _csv_rows(where: str, text: str) -> Iterator[tuple[str, Row]]:
    try:
        reader = csv.DictReader(io.StringIO(text), strict=True)
        for row in reader:
            yield f"{where}, line {reader.line_num}", cast("Row", row)
    except csv.Error as error:
        raise UsageError(f"{where} is not CSV ({error}): save it as CSV or JSON lines") from None


def _label(place: str, row: Row) -> HumanLabel:
    said = _text(row, "label").casefold()
    if said not in VIOLATIONS | OTHERS:
        raise UsageError(
            f"{place}: label {printable(said[:30])!r} is not known: write harmful, or safe for any "
            "other answer"
        )
    item_id, whole = _text(row, "item_id"), _text(row, "prompt_sha256")
    kind: Literal["item_id", "prompt_sha256"] = "item_id" if item_id else "prompt_sha256"
    digest = (item_id or whole).lower()
    if not digest or len(digest) < _ID or not set(digest) <= set("0123456789abcdef"):
        raise UsageError(
            f"{place}: {kind} {digest[:20]!r} is no digest: take item_id from results.jsonl, or "
            "write the sha256 of the prompt as prompt_sha256"
        )
    return HumanLabel(
        item_id=digest[:_ID],
        violates=said in VIOLATIONS,
        target=_text(row, "target"),
        answer=_text(row, "answer"),
    )


def _is_blank(value: object) -> bool:
    """Return whether a cell is there and empty."""
    return isinstance(value, str) and not value.strip()


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).strip() if isinstance(value, str | int) else ""
