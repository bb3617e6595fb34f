"""The kernels of the native library by themselves, called from NumPy arrays through ctypes.

    kernels = Kernels("avx2", threads=2)
    y = kernels.linear(x, Matrix("w4", packed, n=64, k=256), norm=Norm("rms", 1e-6, weight))

`library` compares the size of each struct with that of the library.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_int32, c_int64
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from tiny.native_structs import (
    STRUCTS,
    AttentionArgs,
    Bytes,
    CacheArgs,
    EmbedArgs,
    Floats,
    HeadArgs,
    Int32s,
    Int64s,
    KvLayer,
    KvWriteArgs,
    LinearArgs,
    NormArgs,
    NormRowsArgs,
    RopeTableArgs,
)

from quickdraft.runtime.native import library_path

FORMATS = ("f32", "f16", "w4", "w4m", "w4k", "w6k", "w8", "w8m", "w8k")
ACTIVATIONS = ("none", "silu", "gelu", "gelu_tanh", "relu")
NORMS = ("none", "rms", "layer")
KV_TYPES = ("f32", "f16", "int8")
BLOCK = 16
NO_SUCH_ISA, BAD_ARGUMENT = -1, -2


needs_native = pytest.mark.native


@functools.cache
def library() -> ctypes.CDLL:
    """The library, its functions declared, its structs as large as ours."""
    loaded = ctypes.CDLL(str(library_path()))
    loaded.qd_isa.restype = loaded.qd_isa_compiled.restype = c_char_p
    loaded.qd_isa_runnable.argtypes = [c_char_p]
    loaded.qd_args_bytes.argtypes, loaded.qd_args_bytes.restype = [c_char_p], c_int64
    for name in ("qd_record_bytes", "qd_kv_head_bytes"):
        getattr(loaded, name).argtypes = [c_int32, c_int64]
        getattr(loaded, name).restype = c_int64
    loaded.qd_move_rows.argtypes = [POINTER(CacheArgs), Int64s, Int64s, c_int64]
    for name, struct in STRUCTS.items():
        if name != "cache":
            getattr(loaded, f"qd_{name}").argtypes = [c_char_p, POINTER(struct), c_int]
        found = loaded.qd_args_bytes(name.encode())
        assert found == ctypes.sizeof(struct), f"{name}: {found} bytes in the library"
    return loaded


def isas() -> list[str]:
    """The instruction sets that are compiled in and run here, best first."""
    if library_path() is None:
        return []
    found = []
    while (name := library().qd_isa_compiled(len(found))) is not None:
        found.append(name)
    return [name.decode() for name in found if library().qd_isa_runnable(name)]


def record_bytes(format: str, k: int) -> int:
    """Bytes of the record of 16 outputs; 0 where `k` does not suit `format`."""
    return int(library().qd_record_bytes(FORMATS.index(format), k))


def kv_head_bytes(kind: str, head_dim: int) -> int:
    """Bytes of one slot of one KV head pair."""
    return int(library().qd_kv_head_bytes(KV_TYPES.index(kind), head_dim))


@dataclass
class Norm:
    """A norm; weight and bias float32."""

    kind: str = "none"
    eps: float = 1e-6
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None


@dataclass
class Matrix:
    """A stored matrix `[n, k]` (gated: gate and up, n of each): uint8 [blocks, record]."""

    format: str
    data: np.ndarray
    n: int
    k: int
    bias: np.ndarray | None = None
    gated: bool = False

    def __post_init__(self) -> None:
        blocks = -(-self.n // BLOCK) * (2 if self.gated else 1)
        expected = (blocks, record_bytes(self.format, self.k))
        assert self.data.shape == expected, f"data {self.data.shape}, expected {expected}"


@dataclass
class Cache:
    """One layer of a KV cache: flat uint8 bytes."""

    kind: str
    capacity: int
    kv_heads: int
    head_dim: int
    data: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))

    def __post_init__(self) -> None:
        size = self.capacity * self.kv_heads * kv_head_bytes(self.kind, self.head_dim)
        if self.data.size == 0:
            self.data = np.zeros(size, np.uint8)
        assert self.data.shape == (size,)


@dataclass
class Step:
    """Where the rows stand: positions int64 [rows], ancestors int32 [rows, depths] or a chain.
    staged: rows of the tree that the cache has already."""

    positions: np.ndarray
    past: int
    ancestors: np.ndarray | None = None
    staged: int = 0


@dataclass
class Scores:
    """What attention does with its scores; `rope` is the table float32 [rows, 2, pairs]."""

    scale: float = 1.0
    window: int = 0
    softcap: float = 0.0
    sinks: np.ndarray | None = None
    rope: np.ndarray | None = None
    relative: np.ndarray | None = None


def _pointer(array: np.ndarray | None, kind: Any, dtype: type) -> Any:
    if array is None:
        return None
    assert array.dtype == dtype, f"{array.dtype}, expected {np.dtype(dtype)}"
    assert array.flags.c_contiguous or array.strides[-1] == array.itemsize
    return array.ctypes.data_as(kind)


def _floats(array: np.ndarray | None) -> Any:
    return _pointer(array, Floats, np.float32)


def _int64s(array: np.ndarray) -> Any:
    return _pointer(array, Int64s, np.int64)


def _norm(norm: Norm) -> NormArgs:
    kind = NORMS.index(norm.kind)
    return NormArgs(kind, norm.eps, _floats(norm.weight), _floats(norm.bias))


class NativeError(Exception):
    """A function of the library returned a status below 0."""


class Kernels:
    """The kernels of one instruction set (None: the one in use) with a number of threads."""

    def __init__(self, isa: str | None = None, threads: int = 1) -> None:
        self._isa = isa.encode() if isa else None
        self._threads = threads

    def call(self, name: str, args: Structure) -> None:
        """Call `qd_{name}`; raise NativeError with its status."""
        status = getattr(library(), f"qd_{name}")(self._isa, byref(args), self._threads)
        if status:
            raise NativeError(f"qd_{name} returned {status}")

    def linear(
        self,
        x: np.ndarray,
        matrix: Matrix,
        norm: Norm | None = None,
        residual: np.ndarray | None = None,
        activation: str = "none",
    ) -> np.ndarray:
        """y float32 [rows, n] of x float32 [rows, k]."""
        y = np.full((len(x), matrix.n), np.nan, np.float32)
        args = _linear_args(x, matrix, norm)
        args.residual = _floats(residual)
        args.activation = ACTIVATIONS.index(activation)
        args.y = _floats(y)
        self.call("linear", args)
        return y

    def head(
        self,
        x: np.ndarray,
        matrix: Matrix,
        rows: np.ndarray,
        top: int,
        norm: Norm | None = None,
        softcap: float = 0.0,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """values and ids [m, top], log_sum [m] and logits [m, n] of the chosen rows of x."""
        m = len(rows)
        values, ids = np.full((m, top), np.nan, np.float32), np.full((m, top), -1, np.int64)
        log_sum, logits = (np.full(s, np.nan, np.float32) for s in ((m,), (m, matrix.n)))
        linear = _linear_args(x, matrix, norm)
        outputs = (_floats(values), _int64s(ids), _floats(log_sum), _floats(logits))
        self.call("head", HeadArgs(linear, _int64s(rows), m, top, softcap, *outputs))
        return values, ids, log_sum, logits

    def embed(self, matrix: Matrix, ids: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """Rows `ids` of the matrix, float32 [rows, k]."""
        y = np.full((len(ids), matrix.k), np.nan, np.float32)
        weights = _pointer(matrix.data, Bytes, np.uint8)
        stored = (FORMATS.index(matrix.format), weights, matrix.n, matrix.k)
        self.call("embed", EmbedArgs(*stored, _int64s(ids), len(ids), scale, _floats(y)))
        return y

    def norm_rows(
        self,
        x: np.ndarray,
        norm: Norm,
        heads: int = 1,
        offset: int = 0,
        per_head: bool = False,
        width: int | None = None,
        residual: np.ndarray | None = None,
    ) -> np.ndarray:
        """The norm of `heads` parts of each row from column `offset` on, [rows, heads * width]."""
        width = width or (x.shape[1] - offset) // heads
        y = np.full((len(x), heads * width), np.nan, np.float32)
        shape = (len(x), x.shape[1], offset, heads, width, per_head)
        args = NormRowsArgs(_floats(x), *shape, _norm(norm), _floats(residual), _floats(y))
        self.call("norm_rows", args)
        return y

    def rope_table(
        self, positions: np.ndarray, frequencies: np.ndarray, factor: float = 1.0
    ) -> np.ndarray:
        """Cosines and sines, float32 [rows, 2, pairs]."""
        rows, pairs = len(positions), len(frequencies)
        table = np.full((rows, 2, pairs), np.nan, np.float32)
        inputs = (_int64s(positions), rows, _floats(frequencies), pairs)
        self.call("rope_table", RopeTableArgs(*inputs, factor, _floats(table)))
        return table

    def attention(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        step: Step,
        cache: Cache,
        scores: Scores | None = None,
    ) -> np.ndarray:
        """Writes k and v into the cache and attends: [rows, heads * head_dim].

        q, k and v are float32 [rows, heads * head_dim], contiguous or columns of a joined array.
        """
        scores = scores or Scores()
        first = step.past + step.staged
        args = AttentionArgs(_kv_write_args(k, v, first, cache, scores.rope), _floats(q))
        args.positions, args.staged = _int64s(step.positions), step.staged
        args.ancestors = _pointer(step.ancestors, Int32s, np.int32)
        args.depths = 0 if step.ancestors is None else step.ancestors.shape[1]
        return self._attend(args, q, scores)

    def encode(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, cache: Cache, scores: Scores
    ) -> np.ndarray:
        """Writes k and v into the cache, from its start on; every row attends to all of them."""
        args = AttentionArgs(_kv_write_args(k, v, 0, cache, scores.rope), _floats(q))
        args.seen = len(q)
        return self._attend(args, q, scores)

    def cross(self, q: np.ndarray, memory: Cache, seen: int, scores: Scores) -> np.ndarray:
        """Every row attends to the first `seen` slots of a memory, which is only read."""
        args = AttentionArgs(q=_floats(q), seen=seen)
        args.kv.cache, args.kv.rows = _layer(memory), len(q)
        return self._attend(args, q, scores)

    def _attend(self, args: AttentionArgs, q: np.ndarray, scores: Scores) -> np.ndarray:
        y = np.full(q.shape, np.nan, np.float32)
        args.q_stride, args.heads = q.strides[0] // 4, q.shape[1] // args.kv.cache.head_dim
        args.scale, args.window, args.softcap = scores.scale, scores.window, scores.softcap
        args.sinks, args.y = _floats(scores.sinks), _floats(y)
        if scores.relative is not None:
            args.relative, args.reach = _floats(scores.relative), scores.relative.shape[1] // 2
        self.call("attention", args)
        return y

    def kv_write(
        self, k: np.ndarray, v: np.ndarray, past: int, cache: Cache, rope: np.ndarray | None = None
    ) -> None:
        """Writes k and v into slots from `past` on; arrays as in `attention`."""
        self.call("kv_write", _kv_write_args(k, v, past, cache, rope))


def _kv_write_args(
    k: np.ndarray, v: np.ndarray, past: int, cache: Cache, rope: np.ndarray | None
) -> KvWriteArgs:
    args = KvWriteArgs(_floats(k), _floats(v), k.strides[0] // 4, v.strides[0] // 4, len(k), past)
    args.cache = _layer(cache)
    args.rope, args.pairs = _floats(rope), 0 if rope is None else rope.shape[2]
    return args


def _layer(cache: Cache) -> KvLayer:
    base = _pointer(cache.data, Bytes, np.uint8)
    kind = KV_TYPES.index(cache.kind)
    return KvLayer(kind, cache.capacity, cache.kv_heads, cache.head_dim, base)


def _linear_args(x: np.ndarray, matrix: Matrix, norm: Norm | None) -> LinearArgs:
    assert x.shape[1:] == (matrix.k,)
    assert x.flags.c_contiguous
    args = LinearArgs(_floats(x), len(x), matrix.k, _norm(norm or Norm()))
    args.format = FORMATS.index(matrix.format)
    args.weights = _pointer(matrix.data, Bytes, np.uint8)
    args.n, args.bias = matrix.n, _floats(matrix.bias)
    args.gated = matrix.gated
    return args


def move_rows(
    data: np.ndarray, layers: list[Cache], from_slots: list[int], to_slots: list[int]
) -> int:
    """Move slots of a buffer that holds `layers` one after the other; the status."""
    heads = np.array([layer.kv_heads for layer in layers], np.int64)
    first = layers[0]
    args = CacheArgs(_pointer(data, Bytes, np.uint8), data.size, KV_TYPES.index(first.kind))
    args.capacity, args.head_dim = first.capacity, first.head_dim
    args.layers, args.kv_heads = len(layers), _int64s(heads)
    source, target = (np.array(slots, np.int64) for slots in (from_slots, to_slots))
    status = library().qd_move_rows(byref(args), _int64s(source), _int64s(target), len(source))
    return int(status)
