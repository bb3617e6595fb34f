"""The memory of a source: what the decoder of an encoder-decoder model attends to.

An encoder reads a source once and leaves keys and values for every decoder layer. A memory never
changes, so caches over one source, forks among them, share it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import InputError
from quickdraft.types import ModelSpec, SourceSpec

Layer = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Source:
    """What an encoder reads: tokens int64 [n], or features float32 [n, width] in their place."""

    tokens: NDArray[np.int64] | None = None
    features: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.features is None):
            raise ValueError("a source is tokens or features")

    def __len__(self) -> int:
        given = self.features if self.tokens is None else self.tokens
        assert given is not None  # one of them is there  # noqa: S101
        return len(given)

    @property
    def key(self) -> bytes:
        """The same for equal sources, and for no others: sha256 of kind, shape and values."""
        values = self.features if self.tokens is None else self.tokens
        assert values is not None  # one of them is there  # noqa: S101
        digest = hashlib.sha256(f"{values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
        return digest.digest()

    def positions(self, source: SourceSpec) -> NDArray[np.int64]:
        """Of the rows of its memory, int64 [rows]."""
        return np.arange(source.rows(len(self)))

    def check(self, spec: ModelSpec) -> None:
        """Refuse a source that the model has no meaning for.

        Raises:
            InputError: the model has no encoder, or one for another kind of source; or the source
                is empty, too long, not finite, or holds tokens outside the vocabulary.
        """
        source = spec.source
        if source is None:
            raise InputError(f"a model of the family {spec.family} has no encoder for a source")
        wanted = "tokens" if source.width == 0 else f"frames of {source.width} values"
        shape = None if self.features is None else self.features.shape[1:]
        if shape != ((source.width,) if source.width else None):
            given = "tokens" if shape is None else f"frames of shape {list(shape)}"
            raise InputError(f"the model reads {wanted}, and the source is {given}")
        unit = "frames" if source.width else "tokens"
        if source.fixed and len(self) != source.length:
            raise InputError(
                f"the source has {len(self)} {unit}; the model reads exactly {source.length}"
            )
        if not 1 <= len(self) <= source.length:
            raise InputError(
                f"the source has {len(self)} {unit}; the model reads 1 to {source.length}"
            )
        if self.features is not None and not np.isfinite(self.features).all():
            raise InputError("the source holds frames that are not numbers")
        if self.tokens is not None and not (
            int(self.tokens.min()) >= 0 and int(self.tokens.max()) < spec.vocab_size
        ):
            raise InputError(
                f"the source holds a token id outside the vocabulary of {spec.vocab_size}"
            )


class Memory(Protocol):
    """Keys and values of a source for every layer of the decoder. Immutable."""

    @property
    def rows(self) -> int:
        """Rows of the memory, the same in all layers."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""

    def layer(self, index: int) -> Layer:
        """Keys and values of one layer, float32 [rows, kv_heads, head_dim], not to be changed; a
        decoded copy where they are stored otherwise."""


@dataclass(frozen=True, eq=False)
class RowMemory:
    """A Memory in NumPy arrays, row by row: keys and values [rows, kv_heads, head_dim] by layer."""

    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        for layer in self.layers:
            for values in layer:
                values.setflags(write=False)

    @classmethod
    def of_rows(cls, spec: ModelSpec, staged: Sequence[Layer]) -> RowMemory:
        """From keys and values [rows, kv_heads * head_dim] by layer of the target `spec`."""
        heads = spec.num_kv_heads
        return cls(
            tuple(
                (k.reshape(len(k), each, spec.head_dim), v.reshape(len(v), each, spec.head_dim))
                for (k, v), each in zip(staged, heads, strict=True)
            )
        )

    @property
    def rows(self) -> int:
        """Rows of the memory."""
        return len(self.layers[0][0])

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(key.nbytes + value.nbytes for key, value in self.layers)

    def layer(self, index: int) -> Layer:
        """Keys and values of one layer, not copied."""
        return self.layers[index]


class Memories:
    """The memories of the sources that were asked about last. Thread-safe.

    What is in use elsewhere lives on there after it was dropped here.
    """

    def __init__(self, limit: int = 256 << 20) -> None:
        """limit: bytes kept; the last memory is kept whatever its size."""
        self._limit = limit
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, Memory] = OrderedDict()

    def get(self, source: Source, encode: Callable[[Source], Memory]) -> tuple[Memory, bool]:
        """The memory of a source, and whether it was known; `encode` makes what is not."""
        key = source.key
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
                return found, True
        made = encode(source)  # outside the lock: others need not wait for it
        with self._lock:
            self._known[key] = made
            self._known.move_to_end(key)
            while len(self._known) > 1 and self.nbytes > self._limit:
                self._known.popitem(last=False)
        return made, False

    @property
    def nbytes(self) -> int:
        """Bytes of all memories kept."""
        return sum(memory.nbytes for memory in self._known.values())
