"""A CUDA driver without cards: the library that a process would load, built from C in the test."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tsgb.models.cuda_driver import LIBRARY

GIB = 2**30
T4 = ("Tesla T4", 15 * GIB, 75)
RTX_3060 = ("NVIDIA GeForce RTX 3060, 12 GB", 12 * GIB, 86)
RTX_3090 = ("NVIDIA GeForce RTX 3090", 24 * GIB, 86)

_SOURCE = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct card { const char *name; size_t total; int capability; };
static const struct card cards[] = { %s { "", 0, 0 } };

/* The driver hides all cards but those that the variable names, and shows them in its order. */
static const struct card *card(int number) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    return &cards[visible ? visible[2 * number] - '0' : number];
}
int cuInit(unsigned flags) { return %d; }
int cuDriverGetVersion(int *version) { *version = %d; return 0; }
int cuDeviceGetCount(int *count) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    *count = visible ? (strlen(visible) + 1) / 2 : sizeof cards / sizeof *cards - 1;
    return 0;
}
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, length, "%%s", card(device)->name);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = card(device)->total; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int capability = card(device)->capability;
    *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability %% 10 : -1;
    return 0;
}
"""


def install_driver(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    *cards: tuple[str, int, int],
    fails_with: int = 0,
    cuda: int = 13000,
) -> None:
    """Let processes that start from now on find these cards.

    Args:
        directory: Gets the library.
        monkeypatch: Sets the path on which libraries are looked for.
        cards: Name, bytes of memory, and ten times the compute capability of each.
        fails_with: What `cuInit` returns; 100 is a driver without cards.
        cuda: A thousand times the major CUDA version that it carries, and ten times the minor one.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: the driver's library cannot be built")
    rows = "".join(f'{{ "{name}", {total}UL, {capability} }},' for name, total, capability in cards)
    _build(compiler, directory / LIBRARY, _SOURCE % (rows, fails_with, cuda))
    paths: Sequence[str] = [str(directory), os.environ.get("LD_LIBRARY_PATH", "")]
    monkeypatch.setenv("LD_LIBRARY_PATH", ":".join(filter(None, paths)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def _build(compiler: str, library: Path, source: str) -> None:
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-w", "-x", "c", "-o", str(library), "-"],
        input=source,
        text=True,
        check=True,
    )
