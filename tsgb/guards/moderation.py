"""An endpoint of the form `POST /v1/moderations` as a guard.

The shape is that of OpenAI's moderation endpoint: a request with a list of texts, a result for each
with `flagged` and `category_scores`. Its score here is the highest of these, and where a service
gives none, 1 for what it flags and 0 for the rest. Nothing that it sends is trusted: an answer is
bounded, and a prompt without a well-formed result has no score.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import httpx
import numpy as np
from pydantic import SecretStr

from tsgb.checkpoint.documents import parse_json
from tsgb.errors import UsageError
from tsgb.logging import get_logger
from tsgb.protocols import Scores
from tsgb.services import RepeatRules, address_fault, asked_wait, may_heal

OPENAI_KEY = "OPENAI_API_KEY"
_OPENAI_HOST = "api.openai.com"
BATCH = 16
"""Texts of one request."""
MAX_BYTES = 4 << 20
"""Longest answer that is read."""
ATTEMPTS = 5
"""Most requests for one batch, with pauses of 7.5 seconds at most unless it asks for more."""
_OK = 200
_RULES = RepeatRules()
_PIECE_SECONDS = 1.0
"""Longest pause between two looks whether to stop."""


class ModerationGuard:
    """Asks the endpoint in batches; a batch that fails for good has no scores (NaN)."""

    def __init__(
        self,
        url: str,
        *,
        model: str = "",
        key: SecretStr | None = None,
        check: Callable[[], None] = lambda: None,
        sleep: Callable[[float], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        jitter: Callable[[float, float], float] = random.uniform,
        timeout_seconds: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Ask nothing yet.

        Args:
            url: Address of the endpoint, `/moderations` included.
            model: Name of the model, sent along; empty leaves it to the service.
            key: Key of the service.
            check: Called before each request; raises to stop.
            sleep: Waits between attempts, seconds.
            now: This moment, for a service that names the one from which to ask again.
            jitter: Draws a pause between two bounds.
            timeout_seconds: Longest wait for an answer.
            transport: Transport of the client, for tests.

        Raises:
            UsageError: The address cannot be used.
        """
        checked_url(url)
        self._url, self._model, self._check, self._sleep = url, model, check, sleep
        self._now, self._jitter = now, jitter
        headers = {} if key is None else {"authorization": f"Bearer {key.get_secret_value()}"}
        self._client = httpx.Client(
            headers=headers, timeout=timeout_seconds, transport=transport, trust_env=False
        )

    def score(self, prompts: Sequence[str]) -> Scores:
        """See `tsgb.protocols.Guard`; NaN where the endpoint gave no usable result."""
        parts = [
            self._scores(prompts[start : start + BATCH]) for start in range(0, len(prompts), BATCH)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _scores(self, texts: Sequence[str]) -> Scores:
        reason = ""
        for attempt in range(1, ATTEMPTS + 1):
            self._check()
            asked: float | None = None
            try:
                answer, body = self._post(texts)
            except httpx.HTTPError as error:
                reason = type(error).__name__
            else:
                if answer.status_code == _OK:
                    return _read(body, len(texts))
                reason = f"HTTP {answer.status_code}"
                asked = asked_wait(answer.headers, self._now())
                too_long = asked is not None and asked > _RULES.longest_wait_seconds
                if too_long or not may_heal(answer.status_code):
                    break
            if attempt < ATTEMPTS:
                self._pause(_RULES.pause_seconds(attempt, asked, self._jitter))
        get_logger().warning(f"the moderation endpoint gave no scores: {reason}", texts=len(texts))
        return np.full(len(texts), np.nan)

    def _pause(self, seconds: float) -> None:
        while seconds > 0:
            self._check()
            self._sleep(min(_PIECE_SECONDS, seconds))
            seconds -= _PIECE_SECONDS

    def _post(self, texts: Sequence[str]) -> tuple[httpx.Response, bytes]:
        inputs = [text.encode(errors="replace").decode() for text in texts]
        document: dict[str, Any] = {"input": inputs}
        if self._model:
            document["model"] = self._model
        with self._client.stream("POST", self._url, json=document) as answer:
            body = bytearray()
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > MAX_BYTES:
                    return answer, b""
            return answer, bytes(body)


def checked_url(url: str) -> str:
    """Return the host of an address that may be asked.

    Raises:
        UsageError: It is none, holds a name, a key or a query, or would send prompts over plain
            http to another machine.
    """
    fault = address_fault(url)
    if fault:
        raise UsageError(f"moderation: the address {fault}")
    try:
        return httpx.URL(url).host
    except (httpx.InvalidURL, ValueError):  # httpx lets errors of IDNA through
        raise UsageError("moderation: the address is none: write https://host/v1") from None


def key_variable(url: str) -> str:
    """Return the environment variable with the key of a service; empty for one that gets none.

    The key of OpenAI goes to OpenAI alone: moderation endpoints of others are many.
    """
    return OPENAI_KEY if checked_url(url) == _OPENAI_HOST else ""


def _read(body: bytes, num: int) -> Scores:
    """Return the scores of the results; NaN where one is malformed, or their number differs."""
    missing = np.full(num, np.nan)
    try:
        document = parse_json(body.decode("utf-8"))
    except ValueError:
        return missing
    results: Any = (
        cast("dict[str, Any]", document).get("results") if isinstance(document, dict) else None
    )
    if not isinstance(results, list) or len(cast("list[Any]", results)) != num:
        return missing
    return np.array([_score(result) for result in cast("list[Any]", results)], dtype=np.float64)


def _score(result: Any) -> float:
    if not isinstance(result, dict):
        return math.nan
    found = cast("dict[str, Any]", result)
    scores, flagged = found.get("category_scores"), found.get("flagged")
    if isinstance(scores, dict) and scores:
        values = list(cast("dict[str, Any]", scores).values())
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            highest = float(max(values))
            return highest if math.isfinite(highest) else math.nan
        return math.nan
    return float(flagged) if isinstance(flagged, bool) else math.nan
