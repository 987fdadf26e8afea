"""The probe of a card where there is none: its program, its end, and the product on a CPU."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes.cuda_driver import RTX_3090, install_driver
from tests.fakes.scripts import command_lines_with
from tests.fakes.vast.driver import until
from tests.unit.cloud.test_card import FOUND
from tsgb.cloud.card import CardProbe
from tsgb.worker.card_probe import CardFault, probe_card, time_product, unusable

CPU = torch.device("cpu")


def probe(code: str, *, card_gb: float = 8.0, seconds: float = 60.0) -> CardProbe:
    return probe_card(
        [sys.executable, "-c", code], dict(os.environ), card_gb=card_gb, seconds=seconds
    )


def saying(**changes: Any) -> str:
    warning = "print('a warning', file=sys.stderr, flush=True)"
    return f"import sys; {warning}; print({json.dumps(FOUND | changes)!r})"


def test_what_the_program_tells_is_returned() -> None:
    assert probe(saying()) == CardProbe.model_validate(FOUND)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; print('no \\x1b[2Jcard\\tat all'); sys.exit(1)", "no ?[2Jcard at all"),
        ("raise SystemExit('too old')", "too old"),
        ("import os; os.kill(os.getpid(), 11)", "the probe ends with -11 and says nothing"),
        ("print('hello')", "the probe says nothing that can be read: hello"),
        ("print('{}')", "the probe says nothing that can be read: {}"),
        ("pass", "the probe says nothing that can be read:"),
        (saying(memory_gb=4.0), "has 4.0 GB, and 8 GB were promised"),
        (saying(tflops=float("nan")), "nothing that can be read"),
        ("print('x' * 10**6)", "the probe says nothing that can be read: xxx"),
    ],
)
def test_a_card_that_cannot_be_used_has_its_reason_in_a_line(code: str, reason: str) -> None:
    with pytest.raises(CardFault) as raised:
        probe(code)
    assert reason in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) <= 300


def test_a_probe_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    code = (
        "import pathlib, signal, subprocess, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"child = subprocess.Popen(['sleep', '300'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "time.sleep(300)\n"
    )
    pid = tmp_path / "pid"

    def sleep(seconds: float) -> None:
        until(lambda: pid.exists() and pid.read_text())  # on a busy machine a start takes seconds
        time.sleep(seconds)

    with pytest.raises(CardFault, match=r"does not answer: the probe has not ended in 0\.1 s"):
        probe_card(
            [sys.executable, "-c", code], dict(os.environ), card_gb=8, seconds=0.1, sleep=sleep
        )
    until(lambda: is_over(int(pid.read_text())))


def is_over(pid: int) -> bool:
    """Whether a process is gone, or has ended and waits for whoever asks."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rsplit(")", 1)[1].split()[0] == "Z"


def test_a_watcher_that_ends_meanwhile_leaves_no_probe(tmp_path: Path) -> None:
    (name := tmp_path / "probe").symlink_to(sys.executable)

    def sleep(_seconds: float) -> None:
        raise KeyboardInterrupt

    code = "import time; time.sleep(300)"
    with pytest.raises(KeyboardInterrupt):
        probe_card([str(name), "-c", code], dict(os.environ), card_gb=8, sleep=sleep)
    assert command_lines_with(str(name)) == []


def test_without_the_program_there_is_no_probe() -> None:
    with pytest.raises(CardFault, match="cannot be started"):
        probe_card(["/no/such/program"], {}, card_gb=8)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (("550.54.15", "12.4", "13.0"), "driver 550.54.15 is too old: it carries CUDA 12.4"),
        (("", "", "13.0"), "the driver does not answer, or there is none"),
        (("580.65.06", "13.0", "13.2"), "torch finds no card that it can use"),
        (("580.65.06", "13.0", ""), "torch was built without CUDA"),
    ],
)
def test_a_card_that_torch_does_not_find_has_a_reason(
    facts: tuple[str, str, str], reason: str
) -> None:
    driver, cuda, torch_cuda = facts
    assert reason in unusable(driver=driver, cuda=cuda, torch_cuda=torch_cuda)


def test_the_program_says_that_a_driver_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real program, the real torch, and a driver that carries CUDA 12.4."""
    install_driver(tmp_path, monkeypatch, RTX_3090, cuda=12040)
    command = [sys.executable, "-m", "tsgb.worker.card_probe"]
    with pytest.raises(CardFault, match=r"too old: it carries CUDA 12\.4") as raised:
        probe_card(command, dict(os.environ), card_gb=8)
    assert f"torch was built for {torch.version.cuda}" in str(raised.value)


def test_the_product_is_timed() -> None:
    seconds, tflops = time_product(CPU, torch.bfloat16, 256, seconds=0.01)
    assert seconds >= 0.01
    assert 0 < tflops < 1000


@pytest.mark.parametrize("what", ["one number", "nan", "nothing"])
def test_a_product_that_is_wrong_is_found(what: str) -> None:
    def multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        product = a @ b
        match what:
            case "one number":
                product[7, 3] += 1
            case "nan":
                product[5, 5] = torch.nan
            case _:
                product = torch.zeros_like(product)
        return product

    with pytest.raises(CardFault, match="computes wrongly"):
        time_product(CPU, torch.float32, 64, multiply=multiply, seconds=0)


def test_numbers_of_the_product_are_exact_in_both_types() -> None:
    """Else a card that rounds would be taken for one that errs."""
    for dtype in (torch.bfloat16, torch.float16):
        time_product(CPU, dtype, 512, seconds=0)
