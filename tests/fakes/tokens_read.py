"""How many tokens a model reads, seen where torch looks up their embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class TokensRead(TorchDispatchMode):
    """Counts ids that are looked up while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.embedding.default:
            self.num += args[1].numel()
        return func(*args, **(kwargs or {}))
