"""Recorded kernel calls: run here by ctypes, and elsewhere by runtime/csrc/tests/replay.cpp."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping
from ctypes import Structure, byref, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tiny.native import FORMATS, KV_TYPES, Kernels, kv_head_bytes, library, record_bytes
from tiny.native_structs import (
    AttentionArgs,
    CacheArgs,
    EmbedArgs,
    HeadArgs,
    Int64s,
    KvLayer,
    KvWriteArgs,
    LinearArgs,
    NormRowsArgs,
    RopeTableArgs,
)


class MoveArgs(Structure):
    """What qd_move_rows takes, in one struct."""

    _fields_ = [("cache", CacheArgs), ("from_", Int64s), ("to", Int64s), ("count", c_int64)]


def _linear(a: LinearArgs) -> dict[str, int]:
    parts = 2 if a.gated else 1
    return {
        "x": 4 * a.rows * a.k,
        "norm.weight": 4 * a.k,
        "norm.bias": 4 * a.k,
        "weights": parts * -(-a.n // 16) * record_bytes(FORMATS[a.format], a.k),
        "bias": 4 * parts * a.n,
        "residual": 4 * a.rows * a.n,
        "y": 4 * a.rows * a.n,
    }


def _head(a: HeadArgs) -> dict[str, int]:
    return {
        **{f"linear.{path}": size for path, size in _linear(a.linear).items()},
        "rows": 8 * a.m,
        "values": 4 * a.m * a.top,
        "ids": 8 * a.m * a.top,
        "log_sum": 4 * a.m,
        "logits": 4 * a.m * a.linear.n,
    }


def _embed(a: EmbedArgs) -> dict[str, int]:
    weights = -(-a.n // 16) * record_bytes(FORMATS[a.format], a.k)
    return {"weights": weights, "ids": 8 * a.rows, "y": 4 * a.rows * a.k}


def _norm_rows(a: NormRowsArgs) -> dict[str, int]:
    width = a.width * (a.heads if a.per_head else 1)
    rows = 4 * a.rows * a.heads * a.width
    sizes = {"x": 4 * a.rows * a.stride, "norm.weight": 4 * width, "norm.bias": 4 * width}
    return {**sizes, "residual": rows, "y": rows}


def _rope_table(a: RopeTableArgs) -> dict[str, int]:
    return {"positions": 8 * a.rows, "frequencies": 4 * a.pairs, "table": 8 * a.rows * a.pairs}


def _kv_write(a: KvWriteArgs) -> dict[str, int]:
    cache: KvLayer = a.cache
    width = cache.kv_heads * cache.head_dim
    head_bytes = kv_head_bytes(KV_TYPES[cache.type], cache.head_dim)
    return {
        "k": 4 * ((a.rows - 1) * a.k_stride + width),
        "v": 4 * ((a.rows - 1) * a.v_stride + width),
        "cache.base": cache.capacity * cache.kv_heads * head_bytes,
        "rope": 8 * a.rows * a.pairs,
    }


def _attention(a: AttentionArgs) -> dict[str, int]:
    """A null pointer has no bytes, whatever is said here."""
    rows, width = a.kv.rows, a.heads * a.kv.cache.head_dim
    return {
        **{f"kv.{path}": size for path, size in _kv_write(a.kv).items()},
        "q": 4 * ((rows - 1) * a.q_stride + width),
        "positions": 8 * rows,
        "ancestors": 4 * rows * a.depths,
        "sinks": 4 * a.heads,
        "relative": 4 * a.heads * (2 * a.reach + 1),
        "y": 4 * rows * width,
    }


def _move_rows(a: MoveArgs) -> dict[str, int]:
    sizes = {"cache.data": a.cache.bytes, "cache.kv_heads": 8 * a.cache.layers}
    return {**sizes, "from_": 8 * a.count, "to": 8 * a.count}


BUFFERS: Mapping[str, Callable[[Any], dict[str, int]]] = {
    "linear": _linear,
    "head": _head,
    "embed": _embed,
    "norm_rows": _norm_rows,
    "rope_table": _rope_table,
    "kv_write": _kv_write,
    "attention": _attention,
    "move_rows": _move_rows,
}
"""Bytes behind each pointer of a struct, by the pointer's path; a null pointer has none."""
WRITTEN: Mapping[str, set[str]] = {
    "linear": {"y"},
    "head": {"values", "ids", "log_sum", "logits"},
    "embed": {"y"},
    "norm_rows": {"y"},
    "rope_table": {"table"},
    "kv_write": {"cache.base"},
    "attention": {"kv.cache.base", "y"},
    "move_rows": {"cache.data"},
}


@dataclass(frozen=True)
class Buffer:
    """Memory behind a pointer: where the pointer lies in the struct, what was there before."""

    path: str
    offset: int
    content: bytes
    written: bool


@dataclass(frozen=True)
class Call:
    """A kernel call: its struct, its memory before, and what it wrote, buffer by buffer."""

    label: str
    name: str
    args: bytes
    buffers: tuple[Buffer, ...]
    results: tuple[bytes, ...]


class Recorder(Kernels):
    """Kernels that note every call, under the label given last."""

    def __init__(self, isa: str, threads: int = 1) -> None:
        super().__init__(isa, threads)
        self.label = ""
        self.calls: list[Call] = []

    def call(self, name: str, args: Structure) -> None:
        """As `Kernels.call`; also takes "move_rows"."""
        found = list(_buffers(name, args))
        if name == "move_rows":
            assert isinstance(args, MoveArgs)
            status = library().qd_move_rows(byref(args.cache), args.from_, args.to, args.count)
            assert status == 0
        else:
            super().call(name, args)
        results = tuple(ctypes.string_at(at, len(b.content)) for b, at in found if b.written)
        buffers = tuple(buffer for buffer, _ in found)
        self.calls.append(Call(f"{name}: {self.label}", name, bytes(args), buffers, results))


def _buffers(name: str, args: Structure) -> Any:
    """The buffers of a call, each with its address."""
    for path, size in BUFFERS[name](args).items():
        at, kind, offset = args, type(args), 0
        for part in path.split("."):
            offset += getattr(kind, part).offset
            at, kind = getattr(at, part), type(getattr(at, part))
        address = ctypes.cast(at, c_void_p).value
        if address is not None:
            yield (
                Buffer(path, offset, ctypes.string_at(address, size), path in WRITTEN[name]),
                address,
            )


def write_calls(path: Path, calls: list[Call]) -> None:
    """The file of cases that replay.cpp reads."""
    with path.open("wb") as file:
        file.write(struct.pack("<q", len(calls)))
        for call in calls:
            sizes = (call.name.encode(), len(call.args), len(call.buffers))
            file.write(struct.pack("<16sqq", *sizes) + call.args)
            for buffer in call.buffers:
                facts = (buffer.offset, len(buffer.content), buffer.written)
                file.write(struct.pack("<qqq", *facts) + buffer.content)


def read_results(path: Path, calls: list[Call]) -> list[tuple[bytes, ...]]:
    """What each call wrote elsewhere."""
    with path.open("rb") as file:
        found = [tuple(file.read(len(result)) for result in call.results) for call in calls]
        assert not file.read(1), "the results are longer than the calls have room for"
    return found


def differences(calls: list[Call], others: list[tuple[bytes, ...]]) -> list[str]:
    """The calls whose results differ in any bit, and where first."""
    assert len(calls) == len(others)
    found = []
    for call, other in zip(calls, others, strict=True):
        paths = [buffer.path for buffer in call.buffers if buffer.written]
        for path, ours, theirs in zip(paths, call.results, other, strict=True):
            if ours != theirs:
                found.append(f"{call.label}: {path} {_first_difference(ours, theirs)}")
    return found


def _first_difference(ours: bytes, theirs: bytes) -> str:
    if len(ours) != len(theirs):
        return f"has {len(ours)} bytes and {len(theirs)}"
    a, b = (np.frombuffer(result, np.uint32) for result in (ours, theirs))
    at = np.flatnonzero(a != b)
    values = (float(words[at[:1]].view(np.float32)[0]) for words in (a, b))
    return (
        f"differs in {len(at)} words of {len(a)}, first in {at[0]}: {' '.join(map(repr, values))}"
    )
