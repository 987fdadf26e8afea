"""A file of prompts as a file of scores: one line each, in order, and the same after any kill.

Lines are scored in blocks whose bounds depend on line numbers alone, so a file that was finished in
several goes has the bytes of one that was not interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tsgb.checkpoint.documents import parse_json_object
from tsgb.errors import UsageError
from tsgb.export.loading import LoadedGuard
from tsgb.export.record import Dtype

BLOCK = 16
"""Lines that are scored and written at once."""
MAX_LINE_BYTES = 1 << 20
"""Longest line that is read; the rest of a longer one is dropped, and the line gets an error."""
_FIRST = b'{"line": 1'
"""Bytes by which every output begins."""
_SAME_SCORE: Mapping[Dtype, float] = {"float32": 1e-3, "bfloat16": 0.25}
"""Largest difference between two scores of one prompt by the same guard, which another machine, or
another number of threads, adds up in another order. In bfloat16 each sum is rounded to 8 bits: the
scores of SmolLM2-135M differ by up to .16 between two ways to batch the same prompts."""


class InputLine(NamedTuple):
    """One line of the input."""

    prompt: str
    """The prompt; empty with an error."""
    id: Any
    """The JSON object's `id`; None without one."""
    error: str
    """Why the line has no prompt; empty if it has one."""


class Done(NamedTuple):
    """How far the scoring is."""

    lines: int
    """Lines that the output has."""
    errors: int
    """Lines of this go that got an error in place of a score."""


def read_items(stream: BinaryIO, field: str | None) -> Iterator[InputLine]:
    """Read prompts, one a line, in bounded memory.

    Args:
        stream: UTF-8 text.
        field: name of the prompt in a JSON object; None where the whole line is the prompt.
    """
    while line := stream.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield InputLine("", None, f"the line is longer than {MAX_LINE_BYTES} bytes: split it")
            continue
        yield _item(line.removesuffix(b"\n").removesuffix(b"\r"), field)


def _item(line: bytes, field: str | None) -> InputLine:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return InputLine("", None, f"not UTF-8 at byte {error.start}: convert the file")
    if not text.strip():
        return InputLine("", None, "the line is empty")
    return InputLine(text, None, "") if field is None else _item_of_object(text, field)


def _item_of_object(text: str, field: str) -> InputLine:
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        return InputLine("", None, f"not JSON: {str(error)[:200]}")
    if not isinstance(content, dict):
        return InputLine("", None, "not a JSON object")
    found: dict[str, Any] = content  # pyright: ignore[reportUnknownVariableType]
    name, prompt = found.get("id"), found.get(field)
    name = name if isinstance(name, str | int) else None
    error = ""
    if not isinstance(prompt, str):
        error = f"field {field!r} holds no text"
    elif any("\ud800" <= letter <= "\udfff" for letter in prompt):
        error = f"field {field!r} holds half a surrogate pair"
    return (
        InputLine("", name, error)
        if error or not isinstance(prompt, str)
        else InputLine(prompt, name, "")
    )


def score_stream(
    guard: LoadedGuard, items: Iterator[InputLine], write: Callable[[bytes], object], first: int = 0
) -> Iterator[Done]:
    """Write one JSON object a line of the input, block after block.

    Args:
        guard: gives scores.
        items: lines from number `first` on.
        write: takes the bytes of a whole block.
        first: lines that came before, a multiple of `BLOCK`.
    """
    lines, errors = first, 0
    while block := list(islice(items, BLOCK)):
        records = [_record(item, lines + place + 1) for place, item in enumerate(block)]
        asked = [place for place, record in enumerate(records) if "error" not in record]
        for place, found in zip(
            asked, _assess(guard, [block[i].prompt for i in asked]), strict=True
        ):
            records[place] |= found
        lines += len(block)
        errors += sum("error" in record for record in records)
        write(b"".join(_line(record) for record in records))
        yield Done(lines, errors)


def _record(item: InputLine, number: int) -> dict[str, Any]:
    record: dict[str, Any] = {"line": number}
    if item.id is not None:
        record["id"] = item.id
    return record | ({"error": item.error} if item.error else {})


def _assess(guard: LoadedGuard, prompts: list[str]) -> list[dict[str, Any]]:
    """Return the figures of prompts; a prompt that cannot be scored does not stop the others."""
    try:
        return [found._asdict() for found in guard.assess(prompts, batch_size=BLOCK)]
    except UsageError as error:
        if len(prompts) == 1:
            return [{"error": str(error)}]
    return [_assess(guard, [prompt])[0] for prompt in prompts]


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n"


def score_file(guard: LoadedGuard, items: Iterator[InputLine], output: Path) -> Iterator[Done]:
    """Append scores to a file, after whole blocks that it already has.

    Raises:
        UsageError: The file cannot be written, or holds something else than this guard's scores of
            these lines.
    """
    try:
        descriptor = os.open(output, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UsageError(f"{output}: {error.strerror}: name another file") from error
    with os.fdopen(descriptor, "r+b") as file:
        first = _resume(guard, items, file, output)

        def write(data: bytes) -> None:
            file.write(data)
            file.flush()

        yield Done(first, 0)
        yield from score_stream(guard, items, write, first)


def _resume(guard: LoadedGuard, items: Iterator[InputLine], file: BinaryIO, output: Path) -> int:
    """Cut the file after its last whole block, pass over the lines that it has, and count them."""
    start = file.read(len(_FIRST))
    if not _FIRST.startswith(start):
        raise UsageError(f"{output} holds something else than scores: name another file")
    file.seek(0)
    at, end, block, last = 0, 0, list[bytes](), list[bytes]()
    lines = 0
    for line in file:
        at += len(line)
        block.append(line)
        if len(block) == BLOCK and line.endswith(b"\n"):
            lines, end, last, block = lines + BLOCK, at, block, []
    passed = list(islice(items, max(0, lines - BLOCK), lines))
    if last and not _agree(guard, passed, lines - BLOCK, last):
        raise UsageError(
            f"{output} holds scores of other lines or by another guard (line {lines - BLOCK + 1} "
            f"to {lines} differ): name another file"
        )
    file.seek(end)
    file.truncate()
    return lines


def _agree(guard: LoadedGuard, items: list[InputLine], first: int, said: list[bytes]) -> bool:
    """Return whether the lines of a block are what is scored now, but for rounding."""
    written: list[bytes] = []
    for _ in score_stream(guard, iter(items), written.append, first):
        pass
    found = b"".join(written).splitlines()
    if len(found) != len(said):
        return False
    try:
        pairs = [(json.loads(a), parse_json_object(b)) for a, b in zip(found, said, strict=True)]
        return all(
            a.keys() == b.keys()
            and a["line"] == b["line"]
            and abs(a.get("score", 0.0) - b.get("score", 0.0)) < _SAME_SCORE[guard.dtype]
            for a, b in pairs
        )
    except (ValueError, TypeError, AttributeError):
        return False
