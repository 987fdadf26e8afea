"""Ends of memory: how they are recognised, and work that is done again with less of it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
_MESSAGES = (
    "can't allocate memory",  # the allocator of a CPU
    "out of memory",  # MPS, and libraries of CUDA
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ended; most of them are plain `RuntimeError`s."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES)


def retried(run: Callable[[], T], make_smaller: Callable[[str], None]) -> T:
    """Return `run()`, which is done again whenever memory ends.

    Args:
        run: Gives the same result each time; it draws no random numbers.
        make_smaller: Called with the error's message before the next try; raises if nothing is
            left to make smaller.
    """
    while True:
        try:
            return run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).strip().split("\n")[0]
        # The error is gone only here, and with it the tensors in the frames of its traceback.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        make_smaller(reason)
