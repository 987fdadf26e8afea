"""The three forms in which a verdict is asked for: OpenAI's, LiteLLM's and that of NeMo Guardrails.

Each form says which texts a request holds, and how verdicts on them are written. A text is judged
by itself, as the guard was trained; a request is as suspicious as its most suspicious text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tsgb.serve.batching import TextVerdict
from tsgb.serve.faults import invalid, unsupported
from tsgb.serve.messages import (
    list_in,
    object_in,
    text_in,
    texts_of_content,
    texts_of_messages,
)

CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
"""Categories of OpenAI's interface, of which this guard knows none."""
UNSAFE = "tsgb/unsafe"
"""The guard's own category."""
BLOCKED = "the guard judged this unsafe"
"""Reason of a block, for people; it repeats nothing of the text."""
RAIL = "tsgb guard"
"""Name of the rail that blocks."""


class Inquiry(NamedTuple):
    """Texts that a request wants judged."""

    groups: list[list[str]]
    """Texts in groups; each group is one input, as suspicious as its worst text."""
    answer: Callable[[Sequence[TextVerdict]], dict[str, Any]]
    """Makes the answer's body of one verdict a group."""


def moderation(document: Mapping[str, Any], name: str, request_id: str) -> Inquiry:
    """Read a request to `/v1/moderations`.

    Args:
        document: The request's body.
        name: Name of the guard, which is the answer's model.
        request_id: Id of the request.

    Raises:
        RequestFault: It is malformed, or holds what is no text.
    """
    given: Any = document.get("input")
    if isinstance(given, str):
        groups = [[given]]
    else:
        parts = list_in(given, "input")
        if not parts:
            raise invalid("input", "a text, or a list with texts in it")
        if isinstance(parts[0], str):
            groups = [[text_in(text, f"input[{i}]")] for i, text in enumerate(parts)]
        else:
            groups = [texts_of_content(parts, "input")]
    if "model" in document:
        text_in(document["model"], "model")

    def answer(verdicts: Sequence[TextVerdict]) -> dict[str, Any]:
        results = [_result(verdict) for verdict in verdicts]
        return {"id": f"modr-{request_id}", "model": name, "results": results}

    return Inquiry(groups, answer)


def _result(verdict: TextVerdict) -> dict[str, Any]:
    names = (*CATEGORIES, UNSAFE)
    return {
        "flagged": verdict.unsafe,
        "categories": dict.fromkeys(CATEGORIES, False) | {UNSAFE: verdict.unsafe},
        "category_scores": dict.fromkeys(CATEGORIES, 0.0) | {UNSAFE: verdict.probability},
        "category_applied_input_types": {name: ["text"] for name in names},
        "tsgb/score": verdict.score,
        "tsgb/windows": verdict.windows,
        "tsgb/unknown_words": verdict.unknown,
        "tsgb/out_of_domain": is_out_of_domain(verdict),
    }


def is_out_of_domain(verdict: TextVerdict) -> bool:
    """Tell whether a text is longer than the guard reads, or has words that it does not know."""
    return verdict.windows > 1 or verdict.unknown > 0


def litellm(document: Mapping[str, Any]) -> Inquiry:
    """Read a request to `/beta/litellm_basic_guardrail_api`.

    Every text is judged, and the name and the arguments of every tool call. Structured messages
    repeat the texts, and are read for what is no text.

    Raises:
        RequestFault: It is malformed, or holds what is no text.
    """
    if document.get("input_type", "request") not in {"request", "response"}:
        raise invalid("input_type", "request or response")
    given = document.get("texts")
    texts = [text_in(t, f"texts[{i}]") for i, t in enumerate(list_in(given or [], "texts"))]
    if document.get("images"):
        raise unsupported("images", "an image")
    known = set(texts)
    calls = document.get("tool_calls")
    if calls:
        message = {"role": "assistant", "tool_calls": calls}
        texts += texts_of_messages([message], "tool_calls")
    messages = document.get("structured_messages")
    if messages:
        texts += [t for t in texts_of_messages(messages, "structured_messages") if t not in known]

    def answer(verdicts: Sequence[TextVerdict]) -> dict[str, Any]:
        if any(verdict.unsafe for verdict in verdicts):
            return {"action": "BLOCKED", "blocked_reason": BLOCKED}
        return {"action": "NONE"}

    return Inquiry([texts], answer)


def check(document: Mapping[str, Any]) -> Inquiry:
    """Read a request to `/v1/checks`: the body of a chat, of which every message is judged.

    Raises:
        RequestFault: It is malformed, or holds what is no text.
    """
    messages = list_in(document.get("messages"), "messages")
    texts = texts_of_messages(messages)
    if document.get("guardrails") is not None:
        object_in(document["guardrails"], "guardrails")
    last: Any = messages[-1].get("content")

    def answer(verdicts: Sequence[TextVerdict]) -> dict[str, Any]:
        if any(verdict.unsafe for verdict in verdicts):
            return {"status": "blocked", "content": BLOCKED, "rail": RAIL}
        return {"status": "passed", "content": last if isinstance(last, str) else "", "rail": None}

    return Inquiry([texts], answer)
