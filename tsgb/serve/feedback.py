"""Prompts that people labelled, and those that the guard would block, as a file of prompts.

`tsgb data check` reads it, and `--train-data` gives its labelled rows to a later run. It holds
texts, so it is written on request only. A verdict of the guard is no label: a row of shadow traffic
counts when a person has filled its label in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsgb.serve.batching import TextVerdict
from tsgb.serve.faults import RequestFault, invalid
from tsgb.serve.journal import Journal
from tsgb.serve.messages import text_in

LABELS = ("harmful", "benign")
"""Labels that a person may give."""
MAX_BYTES = 256 << 20
"""Size beyond which nothing is added, so that no labelled row is lost by a rotation."""


class FeedbackFile:
    """Rows with a prompt, the label of a person or none, and the guard's verdict."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        """Open the file, or make it.

        Args:
            path: The file; its name ends in `.jsonl`, as files of prompts do.
            max_bytes: Size beyond which nothing is added.

        Raises:
            UsageError: It cannot be written.
        """
        self._journal = Journal(path, max_bytes=max_bytes, kept=0)

    def add(self, prompt: str, label: str | None, verdict: TextVerdict, source: str) -> bool:
        """Add a row; tell whether there was room for it."""
        return self._journal.write(
            {
                "prompt": prompt,
                "label": label,
                "verdict": "unsafe" if verdict.unsafe else "safe",
                "score": round(verdict.score, 6),
                "source": source,
            }
        )

    def close(self) -> None:
        """Close the file."""
        self._journal.close()


def read_feedback(document: Mapping[str, Any]) -> tuple[str, str]:
    """Return the prompt and the label of a request to `/v1/feedback`.

    Raises:
        RequestFault: One is missing, or malformed.
    """
    prompt = text_in(document.get("input"), "input")
    if not prompt.strip():
        raise invalid("input", "a text that is not empty")
    label = document.get("label")
    if label not in LABELS:
        raise invalid("label", " or ".join(LABELS))
    return prompt, str(label)


def no_room() -> RequestFault:
    """Return the fault of a row that found no room."""
    return RequestFault(
        507, "feedback_full", "the feedback file is full", kind="server_error", retry=False
    )
