"""A small GGUF writer that also writes what no honest writer would."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = {
    U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q",
    I64: "q", F64: "d",
}  # fmt: skip


def text(value: str | bytes) -> bytes:
    """Length and bytes."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: int, value: Any) -> bytes:
    """One value without its type."""
    return text(value) if kind == STRING else struct.pack("<" + _CODES[kind], value)


def pair(key: str, kind: int, value: Any) -> bytes:
    """A key with one value."""
    return text(key) + struct.pack("<I", kind) + scalar(kind, value)


def array(key: str, kind: int, values: Sequence[Any], count: int | None = None) -> bytes:
    """A key with an array; `count` is what it claims to hold."""
    claimed = len(values) if count is None else count
    head = text(key) + struct.pack("<IIQ", ARRAY, kind, claimed)
    return head + b"".join(scalar(kind, value) for value in values)


@dataclass
class Tensor:
    """sizes: columns first, as in the file. The rest can be overridden with lies."""

    name: str
    sizes: Sequence[int]
    data: bytes
    kind: int = 0
    offset: int | None = None
    dimensions: int | None = None


def tensor(name: str, values: np.ndarray) -> Tensor:
    """A float32 tensor."""
    return Tensor(name, values.shape[::-1], values.astype("<f4").tobytes())


@dataclass
class GgufFile:
    """Parts of a file; `None` counts are the true ones."""

    pairs: list[bytes] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    tensor_count: int | None = None
    pair_count: int | None = None
    alignment: int = 32
    cut: int = 0

    def to_bytes(self) -> bytes:
        """The file; `cut` bytes are missing at its end."""
        tensors = len(self.tensors) if self.tensor_count is None else self.tensor_count
        pairs = len(self.pairs) if self.pair_count is None else self.pair_count
        head = self.magic + struct.pack("<IQQ", self.version, tensors, pairs)
        head += b"".join(self.pairs)
        data = b""
        for item in self.tensors:
            offset = len(data) if item.offset is None else item.offset
            head += text(item.name)
            head += struct.pack(
                "<I", len(item.sizes) if item.dimensions is None else item.dimensions
            )
            head += b"".join(struct.pack("<Q", size & (2**64 - 1)) for size in item.sizes)
            head += struct.pack("<IQ", item.kind, offset & (2**64 - 1))
            data += item.data + b"\0" * (-len(item.data) % self.alignment)
        whole = head + b"\0" * (-len(head) % self.alignment) + data if self.tensors else head
        return whole[: len(whole) - self.cut]
