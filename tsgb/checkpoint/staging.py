"""A checkpoint's files in memory, laid out once and filled again at each save.

The bytes of a safetensors file are the staging buffer itself: filling it is one copy of the tensors
(of the device, where they live on one), and nothing is serialised afterwards, so that a background
thread can hash and upload while training goes on. The format is the one of safetensors: length of
the header (8 bytes, little endian), JSON header padded with spaces to a multiple of 8, tensors
ordered by falling alignment, then by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

METADATA_KEY = "tsgb"
"""The one metadata key: safetensors writes two or more of them in random order."""

# In the order in which safetensors declares its types, which is the one that it sorts by.
_TYPES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_ORDER = {dtype: number for number, dtype in enumerate(_TYPES)}


class TensorFile:
    """The bytes of one safetensors file.

    >>> file = TensorFile()
    >>> len(file.fill({"w": torch.zeros(3)}, {"step": 1})) == 8 + 88 + 12
    True
    """

    def __init__(self) -> None:
        self._content = bytearray()
        self._views: dict[str, Tensor] = {}
        self._layout: tuple[object, ...] = ()

    def fill(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> memoryview:
        """Copy the tensors in; what an earlier call returned holds the new content then.

        Args:
            tensors: By name, of any device and shape.
            metadata: Anything JSON can hold.

        Returns:
            The whole file, equal for equal content whatever the order of the names.

        Raises:
            ValueError: A type that the format or this writer does not know.
        """
        unknown = [name for name, tensor in tensors.items() if tensor.dtype not in _TYPES]
        if unknown:
            raise ValueError(f"{unknown[0]} is {tensors[unknown[0]].dtype}, which cannot be stored")
        names = sorted(tensors, key=lambda name: (-_ORDER[tensors[name].dtype], name))
        header = _header({name: tensors[name] for name in names}, metadata)
        layout = (len(header), *((n, tensors[n].dtype, tensors[n].shape) for n in names))
        if layout != self._layout:
            self._lay_out({name: tensors[name] for name in names}, len(header))
            self._layout = layout
        self._content[: len(header)] = header
        with torch.no_grad():
            for name, view in self._views.items():
                view.copy_(tensors[name])
        return memoryview(self._content)

    def _lay_out(self, tensors: Mapping[str, Tensor], start: int) -> None:
        size = start + sum(t.numel() * t.element_size() for t in tensors.values())
        self._content = bytearray(size)
        self._views = {}
        for name, tensor in tensors.items():
            if tensor.numel():
                flat = torch.frombuffer(
                    self._content, dtype=tensor.dtype, count=tensor.numel(), offset=start
                )
                self._views[name] = flat.view(tensor.shape)
            start += tensor.numel() * tensor.element_size()


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> bytes:
    text = json.dumps(metadata, sort_keys=True, separators=(",", ":"), allow_nan=False)
    content: dict[str, object] = {"__metadata__": {METADATA_KEY: text}}
    start = 0
    for name, tensor in tensors.items():
        stop = start + tensor.numel() * tensor.element_size()
        content[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    header = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header
