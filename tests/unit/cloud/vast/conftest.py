"""A client on virtual time that talks to a script."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import SecretStr

from tests.fakes.scripted_http import Reply, Script, Seen, VirtualTime
from tests.fakes.sentinels import sentinel
from tsgb.cloud.vast.client import VastClient
from tsgb.cloud.vast.records import Rental

KEY = sentinel("vast")
NOW = datetime(2026, 11, 20, 18, 0, tzinfo=UTC)
OFFICIAL: dict[str, Any] = json.loads(Path(__file__).with_name("official.json").read_text())[
    "exchanges"
]
"""What the official command line sent, and what it was answered."""


def answered(name: str, **changes: Any) -> Reply:
    """An answer from there."""
    response = OFFICIAL[name]["response"]
    body = response["body"]
    if isinstance(body, dict):
        body = {**body, **changes}
    return Reply(response["status"], body, response["headers"])


def rental(**changes: Any) -> Rental:
    given: dict[str, Any] = {
        "image": "img",
        "label": "tsgb/home/run-abc/1",
        "price": 0.15,
        "disk_gb": 20.0,
    }
    return Rental.model_validate(given | changes)


class Scene(NamedTuple):
    vast: VastClient
    script: Script
    time: VirtualTime

    @property
    def seen(self) -> list[Seen]:
        return self.script.seen


Answers = Callable[..., Scene]


def scene(
    *replies: Reply,
    respond: Callable[[Seen], Reply] | None = None,
    url: str = "https://vast.example",
    on_loopback: bool = False,
    **options: Any,
) -> Scene:
    """A client, and what answers it: replies in order, or a function of the request."""
    script = Script(respond or replies)
    time = VirtualTime()
    vast = VastClient(
        SecretStr(KEY),
        url=url,
        transport=None if on_loopback else script.transport,
        clock=time.clock,
        sleep=time.sleep,
        now=lambda: NOW,
        **options,
    )
    return Scene(vast, script, time)
