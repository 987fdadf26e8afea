"""All that a chat holds which a model reads, as texts that the guard judges."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from tsgb.serve.faults import RequestFault, invalid, unsupported

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""Roles of messages."""
_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Kinds of parts that hold a text, and the field that it is in."""
_NO_TEXT = ("cache_control",)
"""Fields that a service reads and no model."""


def object_in(value: Any, param: str) -> dict[str, Any]:
    """Return a value that must be an object.

    Raises:
        RequestFault: It is something else.
    """
    if not isinstance(value, dict):
        raise invalid(param, "an object")
    return cast("dict[str, Any]", value)


def list_in(value: Any, param: str) -> list[Any]:
    """Return a value that must be a list.

    Raises:
        RequestFault: It is something else.
    """
    if not isinstance(value, list):
        raise invalid(param, "a list")
    return cast("list[Any]", value)


def text_in(value: Any, param: str) -> str:
    """Return a value that must be a text.

    Raises:
        RequestFault: It is something else.
    """
    if not isinstance(value, str):
        raise invalid(param, "a text")
    return value


Passed = list[RequestFault] | None
"""Takes the faults of what is no text and is passed over; None where they are raised."""


def texts_of_messages(found: Any, param: str = "messages", passed: Passed = None) -> list[str]:
    """Return the texts of all messages: contents, refusals, names and arguments of tool calls.

    Args:
        found: The messages.
        param: Their place in the request.
        passed: Takes the faults of what is no text; without it the first one is raised.

    Raises:
        RequestFault: A message is malformed, or holds what is no text.
    """
    messages = list_in(found, param)
    if not messages:
        raise invalid(param, "a list with a message in it")
    texts: list[str] = []
    for number, one in enumerate(messages):
        texts += texts_of_message(
            object_in(one, f"{param}[{number}]"), f"{param}[{number}]", passed
        )
    return texts


def texts_of_message(message: Mapping[str, Any], param: str, passed: Passed = None) -> list[str]:
    """Return the texts of one message; see `texts_of_messages`.

    Raises:
        RequestFault: It is malformed, or holds what is no text.
    """
    if message.get("role") not in _ROLES:
        raise invalid(f"{param}.role", f"one of {', '.join(_ROLES)}")
    texts: list[str] = []
    for name, value in message.items():
        place = f"{param}.{name}"
        if value is None or name in {"role", "tool_call_id"}:
            continue
        match name:
            case "content":
                texts += texts_of_content(value, place, passed)
            case "refusal" | "reasoning_content" | "reasoning" | "name":
                texts.append(text_in(value, place))
            case "tool_calls":
                for number, call in enumerate(list_in(value, place)):
                    inner = f"{place}[{number}]"
                    texts += _texts_of_call(object_in(call, inner), inner, passed)
            case "function_call":
                texts += _texts_of_function(value, place)
            case "audio":
                _refuse(unsupported(place, "sound"), passed)
            case _:  # another vendor's: whatever it means, its texts are judged
                texts += texts_within({name: value})
    return [text for text in texts if text]


def texts_of_content(content: Any, param: str, passed: Passed = None) -> list[str]:
    """Return the texts of a content: one text, or parts, which are judged apart and together.

    A model reads the parts of a message one after the other, so what is harmless in each of them
    may be an attack in all.

    Raises:
        RequestFault: It is malformed, or a part is no text.
    """
    if isinstance(content, str):
        return [content]
    parts: list[str] = []
    for number, part in enumerate(list_in(content, param)):
        place = f"{param}[{number}]"
        name = _PARTS.get(str(object_in(part, place).get("type")))
        if name is None:
            _refuse(unsupported(place, "a part that is no text"), passed)
        else:
            parts.append(text_in(part.get(name), f"{place}.{name}"))
    others = [text for part in content for text in texts_within(part, ("type", *_PARTS.values()))]
    return [*parts, *others, *(["\n".join(parts)] if len(parts) > 1 else [])]


def _refuse(fault: RequestFault, passed: Passed) -> None:
    """Raise a fault, or note it where it is passed over."""
    if passed is None:
        raise fault
    passed.append(fault)


def texts_within(found: Mapping[str, Any], known: Collection[str] = ()) -> list[str]:
    """Return all texts in the values of fields that are not known, however deep they lie."""
    left: list[Any] = [
        value for name, value in found.items() if name not in known and name not in _NO_TEXT
    ]
    texts: list[str] = []
    while left:
        one = left.pop()
        if isinstance(one, str):
            texts.append(one)
        elif isinstance(one, dict):
            left += cast("dict[str, Any]", one).values()
        elif isinstance(one, list):
            left += cast("list[Any]", one)
    return texts


def _texts_of_call(call: Mapping[str, Any], place: str, passed: Passed) -> list[str]:
    if call.get("type", "function") == "custom":
        custom = object_in(call.get("custom"), f"{place}.custom")
        return [text_in(custom.get(name), f"{place}.custom.{name}") for name in ("name", "input")]
    if call.get("type", "function") != "function":
        _refuse(unsupported(place, "a call that is no function's"), passed)
        return []
    return _texts_of_function(call.get("function"), f"{place}.function")


def _texts_of_function(function: Any, param: str) -> list[str]:
    found = object_in(function, param)
    names: Sequence[str] = ("name", "arguments")
    return [text_in(found.get(name, ""), f"{param}.{name}") for name in names]
