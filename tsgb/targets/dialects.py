"""The interfaces that endpoints speak: what is sent, and what an answer means.

Whatever a service answers becomes an outcome here: answered, refused, truncated, or an error with
its class. It opens no connection and repeats nothing; it says whether repeating may help. Shapes
and codes are those of the services' own documentation. Requests are never streamed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from pydantic import SecretStr

from tsgb.checkpoint.documents import parse_json
from tsgb.services import may_heal
from tsgb.targets.endpoint import EndpointKind, EndpointSpec
from tsgb.targets.thoughts import without_thought
from tsgb.targets.transport import RawAnswer
from tsgb.types import Messages

_ANTHROPIC_VERSION = "2023-06-01"
_DETAIL_CHARACTERS = 200
_REFUSING = {
    *("content_filter", "content_policy_violation", "invalid_prompt", "content_blocked"),
    *("bio_policy", "cyber_policy", "moderation_blocked", "guardrails_violation"),
    *("responsibleaipolicyviolation", "data_inspection_failed", "datainspectionfailed"),
}
"""Codes and types of errors, in lower case, by which services refuse a prompt or its answer: of
OpenAI, Azure, NeMo Guardrails and DashScope."""
_REFUSING_ENDS = {
    *("content_filter", "refusal", "safety", "recitation", "blocklist", "prohibited_content"),
}
"""Reasons of an answer's end that are refusals; the last four are Gemini's."""
_CUT_ENDS = {"length", "max_tokens", "model_context_window_exceeded"}
_NO_MONEY = {"insufficient_quota", "billing_error", "billing_hard_limit_reached"}
_NO_PERMISSION = {
    *("permission_error", "authentication_error", "insufficient_permissions"),
    *("unsupported_country_region_territory", "invalid_api_key"),
}
"""Statuses below 500 after which the same request may succeed."""
_OVERLOADED = {429, 529}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerMeaning:
    """The meaning of one answer of an endpoint.

    Example: `AnswerMeaning(text="yes")`, or `AnswerMeaning(error="http_500", retry=True)`
    """

    text: str = ""
    """The answer, or the words of the refusal."""
    finish_reason: str = "stop"
    """Reason of its end: `stop`, `length`, `content_filter` or `error`."""
    refusal: bool = False
    """Whether the service refused."""
    error: str | None = None
    """Class of the error; None if there is an outcome."""
    detail: str = ""
    """The service's own words about an error, one line, without control characters."""
    thought: bool = False
    """Whether the model thought aloud first."""
    tokens_in: int | None = None
    """Tokens of the prompt, if the service says so."""
    tokens_out: int | None = None
    """Tokens of the answer, if the service says so."""
    retry: bool = False
    """Whether the same request may succeed later."""
    slower: bool = False
    """Whether the service asks for fewer requests."""
    hopeless: bool = False
    """Whether all other requests will fail likewise: the key or the money is at fault."""
    wait_seconds: float | None = None
    """Seconds to wait that the body asks for."""
    billed: bool = False
    """Whether the service counts it as an answer, whatever it holds."""


def post_url(spec: EndpointSpec) -> str:
    """Return the URL that requests are posted to.

    >>> post_url(EndpointSpec(name="a", kind="openai", model="m", url="https://host/v1"))
    'https://host/v1/chat/completions'
    """
    url, path = spec.address, urlsplit(spec.address).path
    match spec.kind:
        case EndpointKind.OPENAI:
            return url if path.endswith("/chat/completions") else f"{url}/chat/completions"
        case EndpointKind.ANTHROPIC:
            if path.endswith("/messages"):
                return url
            return f"{url}/messages" if path.endswith("/v1") else f"{url}/v1/messages"
        case EndpointKind.HUGGINGFACE:
            is_whole = path.endswith("/generate") or "/models/" in path
            return url if is_whole else f"{url}/generate"


def key_headers(spec: EndpointSpec, key: SecretStr | None) -> dict[str, str]:
    """Return the headers that every request has; with the key, so they are kept nowhere."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if spec.kind is EndpointKind.ANTHROPIC:
        headers["anthropic-version"] = _ANTHROPIC_VERSION
    if key is None:
        return headers
    value = key.get_secret_value()
    host = urlsplit(spec.address).hostname or ""
    if spec.kind is EndpointKind.ANTHROPIC:
        return {**headers, "x-api-key": value}
    if spec.kind is EndpointKind.OPENAI and host.endswith(".openai.azure.com"):
        return {**headers, "api-key": value}
    return {**headers, "Authorization": f"Bearer {value}"}


def request_body(
    spec: EndpointSpec, chat: Messages, schema: Mapping[str, Any] | None = None
) -> bytes:
    """Return the body of a request, in UTF-8; lone surrogates are sent as JSON escapes them.

    Args:
        spec: The endpoint.
        chat: What is asked.
        schema: JSON Schema of the answer, which OpenAI-compatible endpoints alone are sent.
    """
    match spec.kind:
        case EndpointKind.OPENAI:
            body = _openai_body(spec, chat)
            if schema is not None:
                named = {"name": "answer", "strict": True, "schema": dict(schema)}
                body["response_format"] = {"type": "json_schema", "json_schema": named}
        case EndpointKind.ANTHROPIC:
            body = _anthropic_body(spec, chat)
        case EndpointKind.HUGGINGFACE:
            body = _text_body(spec, chat)
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode(errors="backslashreplace")


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _openai_body(spec: EndpointSpec, chat: Messages) -> dict[str, Any]:
    # OpenAI's newer models refuse `max_tokens`, and servers like it know no other name.
    is_vendor = urlsplit(spec.address).hostname == "api.openai.com"
    limit = "max_completion_tokens" if is_vendor else "max_tokens"
    sampling = _without_none(temperature=spec.temperature, top_p=spec.top_p, seed=spec.seed)
    messages = [{"role": m["role"], "content": m["content"]} for m in chat]
    return {"model": spec.model, "messages": messages, limit: spec.max_tokens, **sampling}


def _anthropic_body(spec: EndpointSpec, chat: Messages) -> dict[str, Any]:
    system = "\n\n".join(m["content"] for m in chat if m["role"] == "system")
    spoken = [{"role": m["role"], "content": m["content"]} for m in chat if m["role"] != "system"]
    return {
        "model": spec.model,
        "max_tokens": spec.max_tokens,
        "messages": spoken,
        **({"system": system} if system else {}),
        **_without_none(temperature=spec.temperature, top_p=spec.top_p),
    }


def _text_body(spec: EndpointSpec, chat: Messages) -> dict[str, Any]:
    """Return the messages as one text, as a user's class gets it: the interface has no roles."""
    samples = spec.temperature is None or spec.temperature > 0  # TGI refuses a temperature of 0
    parameters = {
        "max_new_tokens": spec.max_tokens,
        "return_full_text": False,
        "details": True,
        **({"do_sample": samples} if spec.temperature is not None else {}),
        **_without_none(temperature=spec.temperature or None, top_p=spec.top_p, seed=spec.seed),
    }
    if spec.top_p is not None and spec.top_p >= 1:
        del parameters["top_p"]  # TGI refuses 1, which leaves nothing out
    return {"inputs": "\n\n".join(m["content"] for m in chat), "parameters": parameters}


# -- reading ---------------------------------------------------------------------------------


def read_answer(kind: EndpointKind, answer: RawAnswer) -> AnswerMeaning:
    """Return the meaning of an answer; nothing that a service sends makes it raise."""
    if not 200 <= answer.status < 300:
        return _read_failure(answer)
    try:
        document: object = parse_json(answer.body.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return _unusable("bad_utf8", "the answer is not UTF-8")
    except ValueError as error:
        is_page = "text/html" in answer.headers.get("content-type", "")
        if is_page or answer.body.lstrip()[:1] == b"<":
            return _unusable("html", "a page came in place of an answer")
        return _unusable("bad_json", str(error))
    readers = {
        EndpointKind.OPENAI: _read_openai,
        EndpointKind.ANTHROPIC: _read_anthropic,
        EndpointKind.HUGGINGFACE: _read_text,
    }
    return _refusal_in(_error_of(document)) or readers[kind](document)


def _unusable(error: str, detail: str) -> AnswerMeaning:
    """Return the error of an answer that says it is one; asked again it would be billed again."""
    return AnswerMeaning(finish_reason="error", error=error, detail=_line(detail), billed=True)


def _made(
    text: str, finish: str, usage: Any, names: tuple[str, str], *, thought: bool = False
) -> AnswerMeaning:
    """Return the outcome of an answer that came to its end."""
    answer, thought_aloud = without_thought(text)
    refusal, is_cut = finish in _REFUSING_ENDS, finish in _CUT_ENDS
    return AnswerMeaning(
        text=readable(answer),
        finish_reason="content_filter" if refusal else "length" if is_cut else "stop",
        refusal=refusal,
        thought=thought or thought_aloud,
        tokens_in=_count(_member(usage, names[0])),
        tokens_out=_count(_member(usage, names[1])),
        billed=True,
    )


def _refused(words: object, usage: Any = None, names: tuple[str, str] = ("", "")) -> AnswerMeaning:
    text = words if isinstance(words, str) else ""
    return _made(text, "content_filter", usage, names)


_OPENAI_USAGE = ("prompt_tokens", "completion_tokens")
_ANTHROPIC_USAGE = ("input_tokens", "output_tokens")


def _read_openai(document: object) -> AnswerMeaning:
    choices = _member(document, "choices")
    if not isinstance(choices, list):
        return _failed_with_200(document, "no choices")
    if not choices:
        return _unusable("empty_choices", "the list of choices is empty")
    choice = cast("list[object]", choices)[0]
    usage = _member(document, "usage")
    message = _member(choice, "message")
    finish = str(_member(choice, "finish_reason") or "stop").lower()
    content = _member(message, "content")
    parts = list(_parts(content))
    refusal = _member(message, "refusal") or "".join(p.text for p in parts if p.kind == "refusal")
    if refusal:
        return _refused(refusal, usage, _OPENAI_USAGE)
    text = content if isinstance(content, str) else "".join(p.text for p in parts)
    has_text = isinstance(content, str) or bool(parts)
    if finish == "error":
        return _unusable("finish_error", "the model stopped with an error")
    if not has_text and finish not in _REFUSING_ENDS | _CUT_ENDS:
        return _unusable("no_content", "the message has no content")
    thought = bool(_member(message, "reasoning_content") or _member(message, "reasoning"))
    return _made(text, finish, usage, _OPENAI_USAGE, thought=thought)


def _read_anthropic(document: object) -> AnswerMeaning:
    content = _member(document, "content")
    if not isinstance(content, list):
        return _failed_with_200(document, "no content")
    parts = list(_parts(cast("list[object]", content)))
    text = "".join(part.text for part in parts if part.kind == "text")
    finish = str(_member(document, "stop_reason") or "stop").lower()
    if finish == "refusal":
        text = text or str(_member(_member(document, "stop_details"), "explanation") or "")
    thought = any(part.kind in {"thinking", "redacted_thinking"} for part in parts)
    if not parts and finish == "stop":  # an empty answer says why it ended
        return _unusable("empty_choices", "the list of content is empty")
    return _made(text, finish, _member(document, "usage"), _ANTHROPIC_USAGE, thought=thought)


def _read_text(document: object) -> AnswerMeaning:
    found = document
    if isinstance(document, list):
        if not document:
            return _unusable("empty_choices", "the list of texts is empty")
        found = cast("list[object]", document)[0]
    text = _member(found, "generated_text")
    if not isinstance(text, str):
        return _failed_with_200(found, "no generated_text")
    details = _member(found, "details")
    usage = {"out": _member(details, "generated_tokens")}
    return _made(text, str(_member(details, "finish_reason") or "stop"), usage, ("in", "out"))


def _failed_with_200(document: object, missing: str) -> AnswerMeaning:
    """Return the error in a body whose status says that all is well."""
    error = _error_of(document)
    if error.message or error.codes:
        return _unusable("error_in_body", error.message or ", ".join(sorted(error.codes)))
    return _unusable("wrong_form", f"the answer has {missing}")


def _read_failure(answer: RawAnswer) -> AnswerMeaning:
    """Return the meaning of an answer whose status is not 200 to 299."""
    status = answer.status
    try:
        document: object = parse_json(answer.body.decode(errors="replace"))
    except ValueError:
        document = None
    error = _error_of(document)
    if 400 <= status < 500 and status not in {401, 404, 408, 429}:
        refused = _refusal_in(error)
        if refused is not None:
            return refused
    name = f"http_{status}"
    no_money = status == 402 or bool(error.codes & _NO_MONEY) or _lacks_credit(error)
    no_key = status == 401 or (status == 403 and bool(error.codes & _NO_PERMISSION))
    if status in _OVERLOADED:
        name = "rate_limited" if status == 429 else "overloaded"
    elif 300 <= status < 400:
        name = "redirect"
    name = "quota" if no_money else "auth" if no_key else name
    hopeless = no_money or no_key
    retry = not hopeless and may_heal(status)
    said = answer.headers.get("x-should-retry", "").strip().lower()
    if said in {"true", "false"} and not hopeless:
        retry = said == "true"
    return AnswerMeaning(
        finish_reason="error",
        error=name,
        # A service may quote the key that it was sent.
        detail="" if no_key else _line(error.message),
        retry=retry,
        slower=not hopeless and status in _OVERLOADED,
        hopeless=hopeless,
        wait_seconds=error.wait_seconds,
    )


class _ServiceError(NamedTuple):
    """The error object of an answer, in any of the shapes that services use."""

    codes: frozenset[str] = frozenset()
    """Codes and types, in lower case."""
    message: str = ""
    """The service's words."""
    flagged: bool = False
    """Whether it tells that moderation flagged the input."""
    wait_seconds: float | None = None
    """Seconds after which it may work, as servers say that load a model."""


def _error_of(document: object) -> _ServiceError:
    """Find `{"error": {...}}`, `{"error": "..."}`, `{"detail": ...}`, or the error at the top."""
    if not isinstance(document, dict):
        return _ServiceError()
    top = cast("dict[str, object]", document)
    found = top.get("error", top.get("detail"))
    if found is None:
        found = top if top.get("object") == "error" or {"code", "message"} <= top.keys() else None
    if found is None:
        return _ServiceError()
    inner = _member(found, "innererror")
    metadata = _member(found, "metadata")
    named = [_member(found, "code"), _member(found, "type"), _member(inner, "code")]
    named += [top.get("error_type")]
    message = found if isinstance(found, str) else _member(found, "message")
    wait = top.get("estimated_time")
    return _ServiceError(
        frozenset(name.lower() for name in named if isinstance(name, str)),
        message if isinstance(message, str) else "",
        bool(_member(metadata, "reasons") or _member(metadata, "flagged_input")),
        float(wait) if isinstance(wait, int | float) and 0 <= wait < 1e9 else None,
    )


def _refusal_in(error: _ServiceError) -> AnswerMeaning | None:
    """Return the refusal that an error object tells of, if it does."""
    blocked = "invalid_request_error" in error.codes and "blocked" in error.message.lower()
    if error.codes & _REFUSING or error.flagged or blocked:
        return _refused(error.message)
    return None


def _lacks_credit(error: _ServiceError) -> bool:
    """Return whether it is Anthropic's way to say that the account has no money."""
    return "invalid_request_error" in error.codes and "credit balance" in error.message.lower()


class _Part(NamedTuple):
    """One part of a message."""

    kind: str
    """Its type."""
    text: str
    """Its text; empty for what is no text."""


def _parts(content: object) -> Iterator[_Part]:
    """Yield the parts of a message whose content is a list, with their texts."""
    if not isinstance(content, list):
        return
    for part in cast("list[object]", content):
        kind = _member(part, "type")
        text = _member(part, "refusal" if kind == "refusal" else "text")
        yield _Part(str(kind), text if isinstance(text, str) else "")


def _member(value: object, name: str) -> Any:
    return cast("Mapping[str, object]", value).get(name) if isinstance(value, dict) else None


def _count(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40:
        return value
    return None


def readable(text: str) -> str:
    """Return text that UTF-8 can hold: lone surrogates are escaped, as in a user's own class."""
    return text.encode(errors="backslashreplace").decode()


def _line(text: str) -> str:
    """Return foreign text as one short line without control characters."""
    printable = "".join(c if c.isprintable() else " " for c in text[: 4 * _DETAIL_CHARACTERS])
    return readable(" ".join(printable.split())[:_DETAIL_CHARACTERS])


def prompt_bytes(chats: Sequence[Messages]) -> list[int]:
    """Return the bytes of each chat's texts: more than its tokens, of which each has a byte."""
    return [
        sum(len(m["content"].encode(errors="replace")) + _TOKENS_A_MESSAGE for m in chat)
        for chat in chats
    ]


_TOKENS_A_MESSAGE = 16
"""Tokens that an interface puts around a message, at most."""
