"""The CUDA cards that the driver shows to a process, asked through its library.

It runs as a program of its own and imports nothing but the standard library: the driver may hang,
and it reads `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER` once in the life of a process.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable

LIBRARY = "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""Numbers of the attributes in `CUdevice_attribute`."""
_NAME_BYTES = 256


def driver_cards() -> list[tuple[str, int, tuple[int, int]]]:
    """Return name, bytes of memory and compute capability of each card, in torch's order.

    Raises:
        OSError: There is no driver, or it fails.
    """
    driver = ctypes.CDLL(LIBRARY)

    def ask(name: str, *arguments: object) -> None:
        function: Callable[..., int] = getattr(driver, name)
        if code := function(*arguments):
            raise OSError(f"{name} fails with {code}")

    def integer(name: str, *arguments: object) -> int:
        value = ctypes.c_int()
        ask(name, ctypes.byref(value), *arguments)
        return value.value

    ask("cuInit", 0)
    found: list[tuple[str, int, tuple[int, int]]] = []
    for number in range(integer("cuDeviceGetCount")):
        device = integer("cuDeviceGet", number)
        label, total = ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_size_t()
        ask("cuDeviceGetName", label, _NAME_BYTES, device)
        ask("cuDeviceTotalMem_v2", ctypes.byref(total), device)
        major, minor = (
            integer("cuDeviceGetAttribute", attribute, device)
            for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
        )
        found.append((label.value.decode("utf-8", "replace"), total.value, (major, minor)))
    return found


if __name__ == "__main__":
    print(json.dumps(driver_cards()))  # noqa: T201 - what the program is for
