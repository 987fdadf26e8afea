"""`tsgb serve` refuses what it should not serve, in one line, before it listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.fakes.command_line import Run
from tests.fakes.families import save_family
from tests.fakes.served_guard import export_tiny


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--host", "0.0.0.0"), "set TSGB_SERVE_TOKEN"),  # noqa: S104
        (("--host", "192.0.2.1"), "set TSGB_SERVE_TOKEN"),
        (("--host", "::"), "set TSGB_SERVE_TOKEN"),
        (("--mode", "loud"), "--mode 'loud': choose of enforce, shadow, off"),
        (("--on-block", "x"), "--on-block 'x': choose of refusal, error"),
        (("--fail-open", "all"), "--fail-open 'all': choose of guard_timeout, guard_error"),
        (("--upstream", "http://example.org/v1"), "--upstream: the address sends to example.org"),
        (("--deadline", "0"), "--deadline 0: name seconds above 0"),
        (("--port", "0"), "name a directory that `tsgb export-guard` wrote"),
    ],
)
def test_what_is_refused(tsgb: Run, words: tuple[str, ...], reason: str) -> None:
    ended = tsgb("serve", "nowhere", *words)
    assert (ended.code, ended.out) == (2, "")
    [line] = ended.err.splitlines()
    assert reason in line


def test_a_port_that_is_taken(tsgb: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        ended = tsgb("serve", "nowhere", "--port", port)
    assert ended.code == 2
    assert f"cannot listen on http://127.0.0.1:{port}: Address already in use: name" in ended.err


def test_a_short_token(tsgb: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSGB_SERVE_TOKEN", "short")
    ended = tsgb("serve", "nowhere", "--host", "0.0.0.0")  # noqa: S104
    assert ended.code == 2
    assert "TSGB_SERVE_TOKEN: " in ended.err


def test_a_base_or_an_adapter_that_was_swapped(tsgb: Run, tmp_path: Path) -> None:
    out = export_tiny(tmp_path / "export")
    adapter = out / "adapter_model.safetensors"
    weights = load_file(adapter)
    save_file({name: tensor + 0.1 for name, tensor in weights.items()}, adapter)
    ended = tsgb("serve", str(out), "--port", "0")
    assert ended.code == 2
    assert "a prompt of its self-test scores" in ended.err
    save_file(weights, adapter)
    other = save_family(tmp_path / "other", "llama3", seed=1)
    ended = tsgb("serve", str(out), "--port", "0", "--base", str(other))
    assert ended.code == 2
    assert "neither scores nor thresholds hold" in ended.err
