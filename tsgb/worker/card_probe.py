"""The probe of a rented machine's card: uses it for some seconds, before any training.

A host may have an old driver, another card than it says, one that others use, or a broken one. A
bad driver can hang whoever asks it, so the probe is a program of its own, which is ended after a
time whatever happens: `probe_card` starts it, and `python -m tsgb.worker.card_probe` is it.

The product is of matrices whose entries are -1, 0 and 1, so that every number in it is exact also
in bfloat16, and a card that computes wrongly is told from one that rounds.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsgb.checkpoint.documents import parse_json_object, printable
from tsgb.cloud.card import CardProbe

if TYPE_CHECKING:
    import torch

PROBE_SECONDS = 180.0
"""Seconds that the whole probe may take: importing torch from a cold disk takes a minute."""
_PRODUCT_SECONDS = 2.0
"""Seconds of products; one that takes longer is the last one."""
_SIZE = 4096
"""Rows and columns of the matrices: 0.1 GB, and enough to keep any card busy."""
_POLL_SECONDS = 0.2
_KILL_SECONDS = 2.0
_MAX_OUTPUT_BYTES = 16 << 10
_MAX_REASON = 300
_DRIVER_LIBRARY = "libcuda.so.1"
_DRIVER_VERSION = Path("/proc/driver/nvidia/version")


class CardFault(Exception):  # noqa: N818 - a fault of the machine, not of the program
    """The card cannot be used; the message is one printable line."""


# In the watcher


def probe_card(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    card_gb: float,
    seconds: float = PROBE_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> CardProbe:
    """Run the probe as a program and return what it found.

    Args:
        command: The program and its arguments.
        environment: Its environment.
        card_gb: Memory that was promised, GB.
        seconds: Seconds after which it is given up.
        sleep: Waits between two looks; the watcher shows there that it is alive.

    Raises:
        CardFault: The card is not there, not usable, not the size that was promised, or wrong.
    """
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(  # noqa: S603 - the machine's own command
                list(command),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise _fault(f"the probe cannot be started: {error.strerror}") from error
        ended = _wait(process, seconds, sleep)
        output.seek(max(0, output.seek(0, os.SEEK_END) - _MAX_OUTPUT_BYTES))
        lines = output.read(_MAX_OUTPUT_BYTES).decode(errors="replace").strip().splitlines()
    if not ended:
        raise _fault(f"the card does not answer: the probe has not ended in {seconds:g} s")
    last = lines[-1] if lines else ""
    if process.returncode != 0:
        raise _fault(last or f"the probe ends with {process.returncode} and says nothing")
    try:
        found = parse_json_object(last)
    except ValueError:
        found = {}
    probe = CardProbe.read({"probe": found})
    if probe is None:
        raise _fault(f"the probe says nothing that can be read: {last}")
    if lack := probe.lacking(card_gb):
        raise _fault(lack)
    return probe


def _wait(process: subprocess.Popen[bytes], seconds: float, sleep: Callable[[float], None]) -> bool:
    """Wait for the end; kill the process after a time. Return whether it ended by itself."""
    ends_at = time.monotonic() + seconds
    try:
        while process.poll() is None:
            if time.monotonic() > ends_at:
                return False
            sleep(_POLL_SECONDS)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # One that hangs in the driver cannot be killed, and is left.
            with suppress(subprocess.TimeoutExpired):
                process.wait(_KILL_SECONDS)
    return True


def _fault(reason: str) -> CardFault:
    return CardFault(printable(" ".join(reason.split()))[:_MAX_REASON])


# In the program


def measure_card() -> dict[str, Any]:
    """Use the first card for some seconds, and return the fields of `CardProbe`.

    Raises:
        CardFault: torch cannot use it, or it computes wrongly.
    """
    import torch

    driver, cuda = _driver_version(), _driver_cuda()
    built = str(torch.version.cuda or "")
    if not torch.cuda.is_available():
        raise CardFault(unusable(driver=driver, cuda=cuda, torch_cuda=built))
    device = torch.device("cuda", 0)
    gpu: Any = torch.cuda  # torch types its properties in part only
    properties = gpu.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    dtype = torch.bfloat16 if properties.major >= 8 else torch.float16
    seconds, tflops = time_product(
        device, dtype, _SIZE, synchronize=lambda: torch.cuda.synchronize(device)
    )
    return {
        "gpu_name": str(properties.name),
        "driver": driver,
        "cuda": cuda,
        "torch_cuda": built,
        "memory_gb": round(total / 1e9, 3),
        "free_gb": round(free / 1e9, 3),
        "seconds": round(seconds, 3),
        "tflops": round(tflops, 3),
    }


def unusable(*, driver: str, cuda: str, torch_cuda: str) -> str:
    """Return why torch finds no card, in one line.

    Args:
        driver: Version of the driver; empty without one.
        cuda: Highest CUDA version that the driver carries; empty if it does not answer.
        torch_cuda: CUDA version that torch was built for; empty for a torch without CUDA.
    """
    name = f"driver {driver}" if driver else "the driver"
    if not torch_cuda:
        return "torch was built without CUDA"
    if not cuda:
        return f"torch finds no card: {name} does not answer, or there is none"
    # A driver runs what was built for any minor version of its own major one.
    if _major(cuda) < _major(torch_cuda):
        return f"{name} is too old: it carries CUDA {cuda}, and torch was built for {torch_cuda}"
    return f"torch finds no card that it can use, although {name} carries CUDA {cuda}"


def time_product(
    device: torch.device,
    dtype: torch.dtype,
    size: int,
    *,
    synchronize: Callable[[], object] = lambda: None,
    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    seconds: float = _PRODUCT_SECONDS,
) -> tuple[float, float]:
    """Multiply two matrices again and again; return the seconds, and 10^12 operations a second.

    The product is checked by Freivalds' method (1977): C v = A (B v) for a random v, on the CPU.
    One wrong number is found always, several with odds of at least 7 in 8.

    Args:
        device: Where to multiply.
        dtype: Type of the matrices; the numbers of the product are exact in it.
        size: Rows and columns.
        synchronize: Waits until the device has computed what it was told.
        multiply: Multiplies two matrices; `torch.matmul` by default.
        seconds: Seconds after which the products end.

    Raises:
        CardFault: The product is wrong.
    """
    import torch

    multiply = multiply or torch.matmul
    generator = torch.Generator(device="cpu").manual_seed(0)

    def draw() -> torch.Tensor:
        """Entries of -1, 0 and 1, most of them 0: sums of thousands stay below 256."""
        drawn = torch.randint(0, 8, (size, size), generator=generator, device="cpu")
        return (drawn == 0).float() - (drawn == 1).float()

    a, b = draw(), draw()
    on_a, on_b = a.to(device, dtype), b.to(device, dtype)
    product = multiply(on_a, on_b)
    vector = torch.randint(1, 9, (size,), generator=generator, device="cpu").float()
    if not torch.equal(product.float().cpu() @ vector, a @ (b @ vector)):
        raise CardFault("the card computes wrongly: a product of matrices is not what it must be")
    synchronize()
    number, begin = 0, time.monotonic()
    while (taken := time.monotonic() - begin) < seconds or not number:
        multiply(on_a, on_b)
        synchronize()
        number += 1
    return taken, 2.0 * size**3 * number / taken / 1e12


def _major(version: str) -> int:
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0


def _driver_cuda() -> str:
    """Return the highest CUDA version that the driver carries; empty if there is no driver."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL(_DRIVER_LIBRARY).cuDriverGetVersion(ctypes.byref(version)):
            return ""
    except (OSError, AttributeError):
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _driver_version() -> str:
    try:
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", _DRIVER_VERSION.read_text())
    except OSError:
        return ""
    return found[0] if found else ""


def main() -> int:
    """Probe the card; print one line, a JSON object or the reason why there is none."""
    try:
        found = measure_card()
    except CardFault as fault:
        print(fault)  # noqa: T201 - what the program is for
        return 1
    except Exception as error:  # noqa: BLE001 - whatever torch raises is the reason
        print(f"torch cannot use the card: {type(error).__name__}: {' '.join(str(error).split())}")  # noqa: T201
        return 1
    print(json.dumps(found))  # noqa: T201 - what the program is for
    return 0


if __name__ == "__main__":
    sys.exit(main())
