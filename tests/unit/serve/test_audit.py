"""The audit log tells verdicts apart by an HMAC and never holds a text."""

from __future__ import annotations

import hashlib
import hmac
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.fakes.sentinels import CORE, leaks
from tsgb.errors import UsageError
from tsgb.serve.audit import CURRENT, AuditLog, RequestContext, read_key
from tsgb.serve.batching import TextVerdict

UNSAFE = TextVerdict(1.23456789, 0.9, unsafe=True, windows=2, unknown=1)


def audit_log(path: Path) -> AuditLog:
    now = datetime(2026, 11, 29, tzinfo=UTC)
    return AuditLog(path, guard="tsgb-1", threshold=0.5, clock=lambda: now)


def test_a_line_has_everything_but_the_text(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = audit_log(path)
    token = CURRENT.set(RequestContext("chat", "r1"))
    log.write(f"a text {CORE} é", UNSAFE, "input")
    CURRENT.reset(token)
    log.close()
    again = audit_log(path)
    again.write(f"a text {CORE} é", UNSAFE, "output")
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    key = bytes.fromhex((tmp_path / "audit.jsonl.key").read_text())
    wanted = hmac.new(key, f"a text {CORE} é".encode(), hashlib.sha256).hexdigest()
    assert first == {
        "time": "2026-11-29T00:00:00.000+00:00",
        "request": "r1",
        "route": "chat",
        "stage": "input",
        "verdict": "unsafe",
        "score": 1.234568,
        "guard": "tsgb-1",
        "threshold": 0.5,
        "windows": 2,
        "unknown_words": 1,
        "hmac_sha256": wanted,
    }
    assert (second["request"], second["hmac_sha256"]) == (None, wanted)
    assert not leaks(path.read_text())
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o600}


def test_another_installation_has_another_key(tmp_path: Path) -> None:
    one, other = audit_log(tmp_path / "a"), audit_log(tmp_path / "b")
    assert one.fingerprint("x") != other.fingerprint("x")
    assert one.fingerprint("x") != hashlib.sha256(b"x").hexdigest()


def test_a_key_that_is_none(tmp_path: Path) -> None:
    key = tmp_path / "key"
    read_key(key)
    key.chmod(0o640)
    with pytest.raises(UsageError, match="others may read this key: chmod 600"):
        read_key(key)
    key.chmod(0o600)
    for found in ("no key", "", "00ff"):  # a process that is killed leaves an empty file
        key.write_text(found)
        with pytest.raises(UsageError, match="holds no key: remove it"):
            read_key(key)
    with pytest.raises(UsageError, match="the audit log needs its key"):
        read_key(tmp_path / "no" / "key")
