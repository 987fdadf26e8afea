"""A streamed answer that is held back: nothing leaves that was not judged with all before it.

It keeps the chunks that wait and the text so far of each channel: a choice's content, its refusal,
the arguments of each tool call, and whatever else a delta has texts in. It does no judging.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from tsgb.serve.sse import StreamError

CHECK_CHARACTERS = 800
"""Characters that wait before a check at least, some 200 tokens."""
CHECK_SHARE = 0.25
"""Share of the text so far that waits before a check at least: so all checks together read an
answer about four times, however long it is."""
MAX_CHARACTERS = 10 << 20
"""Characters of the longest answer."""
_CHUNK_FIELDS = (
    "id",
    "object",
    "created",
    "model",
    "system_fingerprint",
    "service_tier",
    "usage",
)
"""Fields of a chunk that are passed on beside its choices."""
_NO_TEXT = frozenset({"role", "index", "id", "type", "finish_reason", "logprobs"})
"""Fields of a choice and of its delta that a client does not show as text."""
Channel = tuple[str | int, ...]
"""Path of a text within the choices of a stream."""


class Holdback:
    """The part of a stream that was not released."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._chunks: list[dict[str, Any]] = []
        self._texts: dict[Channel, list[str]] = {}
        self._changed: set[Channel] = set()
        self._waiting = 0
        self._total = 0
        self.indices: set[int] = set()
        """Choices that were begun and have not ended, as far as they were released."""
        self.released: dict[str, Any] = {}
        """The last chunk that was released, without its choices."""

    @property
    def is_waiting(self) -> bool:
        """Whether text waits to be judged."""
        return self._waiting > 0

    @property
    def is_due(self) -> bool:
        """Whether so much text waits that it should be judged now."""
        return self._waiting >= max(CHECK_CHARACTERS, CHECK_SHARE * self._total)

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Take a chunk of the stream.

        Raises:
            StreamError: It is malformed, or the answer is too long.
        """
        found: object = chunk.get("choices")
        if not isinstance(found, list):
            raise StreamError("a chunk has no choices")
        choices: list[dict[str, Any]] = []
        for choice in cast("list[Any]", found):
            one = cast("dict[str, Any]", choice) if isinstance(choice, dict) else {}
            index: object = one.get("index")
            if not isinstance(index, int):
                raise StreamError("a choice has no index")
            if one.get("logprobs") is not None:
                one = one | {"logprobs": None}  # they spell the text out, token by token
            choices.append(one)
            for channel, text in _texts_in(one, (index,)):
                self._texts.setdefault(channel, []).append(text)
                self._changed.add(channel)
                self._waiting += len(text)
                self._total += len(text)
        if self._total > MAX_CHARACTERS:
            raise StreamError("the answer is too long")
        known = {name: chunk[name] for name in _CHUNK_FIELDS if name in chunk}
        self._chunks.append(known | {"choices": choices})

    def texts(self) -> list[str]:
        """Return the whole text so far of each channel that has grown; judge these."""
        return ["".join(self._texts[channel]) for channel in sorted(self._changed, key=str)]

    def release(self) -> list[dict[str, Any]]:
        """Return the chunks that waited; call this when all of `texts` were judged safe."""
        chunks, self._chunks = self._chunks, []
        self._changed, self._waiting = set(), 0
        for chunk in chunks:
            for choice in chunk["choices"]:
                if choice.get("finish_reason") is None:
                    self.indices.add(choice["index"])
                else:
                    self.indices.discard(choice["index"])
            self.released = {name: chunk[name] for name in chunk if name != "choices"}
        return chunks

    def unfinished(self) -> list[int]:
        """Return the choices that a client still waits for: those that wait here included."""
        waiting = {choice["index"] for chunk in self._chunks for choice in chunk["choices"]}
        return sorted(self.indices | waiting) or [0]

    def about(self) -> dict[str, Any]:
        """Return the fields that all chunks of this stream have."""
        first: dict[str, Any] = self.released or (self._chunks[0] if self._chunks else {})
        return {n: first[n] for n in ("id", "object", "created", "model") if n in first}


def _texts_in(value: Mapping[str, Any], path: Channel) -> Iterator[tuple[Channel, str]]:
    """Yield every text in a choice with its channel; a list's objects are told by their index."""
    for name, inner in value.items():
        if name in _NO_TEXT:
            continue
        yield from _texts_at(inner, (*path, name))


def _texts_at(value: Any, path: Channel) -> Iterator[tuple[Channel, str]]:
    if isinstance(value, str):
        if value:
            yield path, value
    elif isinstance(value, dict):
        yield from _texts_in(cast("dict[str, Any]", value), path)
    elif isinstance(value, list):
        for place, one in enumerate(cast("list[Any]", value)):
            number: Any = (
                cast("dict[str, Any]", one).get("index") if isinstance(one, dict) else None
            )
            yield from _texts_at(one, (*path, number if isinstance(number, int) else place))
