"""The functions of runtime/csrc/capi/capi.h: what they answer, and what they refuse."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiny.kernel_calls import matrix
from tiny.native import (
    BAD_ARGUMENT,
    FORMATS,
    KV_TYPES,
    NO_SUCH_ISA,
    Cache,
    Kernels,
    Matrix,
    NativeError,
    Norm,
    Scores,
    Step,
    isas,
    kv_head_bytes,
    library,
    move_rows,
    record_bytes,
)
from tiny.native_structs import STRUCTS

from quickdraft import hotpath_attention, weight_layout

pytestmark = pytest.mark.native


def test_version() -> None:
    assert library().qd_abi_version() == 3


def test_instruction_sets() -> None:
    found = isas()
    assert found[-1] == "portable"
    assert library().qd_isa().decode() in found
    compiled = [library().qd_isa_compiled(i) for i in range(20)]
    assert None in compiled
    assert set(compiled) >= {name.encode() for name in found}
    assert library().qd_isa_compiled(-1) is None
    assert not library().qd_isa_runnable(b"sse9")
    assert not library().qd_isa_runnable(None)


def test_sizes_of_structs() -> None:
    for name, struct in STRUCTS.items():
        assert library().qd_args_bytes(name.encode()) == ctypes.sizeof(struct)
    assert library().qd_args_bytes(b"other") == 0
    assert library().qd_args_bytes(None) == 0


def test_bytes_of_records() -> None:
    for name in FORMATS:
        for k in (1, 31, 32, 33, 96, 256, 288, 512):
            suits = k % weight_layout.LAYOUTS[name].divisor == 0
            assert record_bytes(name, k) == (weight_layout.record_bytes(name, k) if suits else 0)
    for number, k in ((-1, 256), (9, 256), (0, 0), (0, -5), (3, 2**62), (0, 2**63 - 1)):
        assert library().qd_record_bytes(number, k) == 0


def test_bytes_of_kv_heads() -> None:
    for number, name in enumerate(KV_TYPES):
        for dim in (1, 2, 31, 32, 33, 34, 64, 80, 128):
            assert kv_head_bytes(name, dim) == hotpath_attention.kv_head_bytes(number, dim)
    assert kv_head_bytes("int8", 32) == 2 * 32 + 4 * 2
    assert kv_head_bytes("int8", 33) == 2 * 33 + 4 * 3
    for number, dim in ((-1, 64), (3, 64), (0, 0), (1, -64), (0, 2**62)):
        assert library().qd_kv_head_bytes(number, dim) == 0


class TestMoveRows:
    def layers(self, kind: str = "f16") -> tuple[list[Cache], np.ndarray]:
        layers = [Cache(kind, 32, heads, 40) for heads in (1, 3, 2)]
        size = sum(layer.data.size for layer in layers)
        return layers, np.random.default_rng(0).integers(0, 256, size, np.uint8)

    @pytest.mark.parametrize("kind", range(3))
    def test_every_layer(self, kind: int) -> None:
        layers, data = self.layers(KV_TYPES[kind])
        expected, before = data.copy(), 0
        for layer in layers:
            how = hotpath_attention.Attention(1, layer.kv_heads, 40, 1.0, kv_heads_before=before)
            view = hotpath_attention.layer_cache(expected, how, np.array([0, kind, 32]))
            parts = [view.values, view.value_scales] if kind == 2 else [view.values]
            for part in parts:
                part[20], part[21] = part[21].copy(), part[31].copy()
            parts = [view.keys, view.key_scales] if kind == 2 else [view.keys]
            for part in parts:
                part[1, 4], part[1, 5] = part[1, 5].copy(), part[1, 15].copy()
            before += layer.kv_heads
        assert move_rows(data, layers, [21, 31], [20, 21]) == 0
        assert np.array_equal(data.view(np.uint8), expected)

    @pytest.mark.parametrize(
        ("source", "target"),
        [([1], [2]), ([32], [0]), ([0], [-1]), ([-1], [-1]), ([2, 9], [1, 10])],
    )
    def test_slots_out_of_range(self, source: list[int], target: list[int]) -> None:
        layers, data = self.layers()
        before = data.copy()
        assert move_rows(data, layers, source, target) == BAD_ARGUMENT
        assert np.array_equal(data, before)

    @pytest.mark.parametrize(
        "change",
        [
            lambda layers: layers.pop(),
            lambda layers: setattr(layers[1], "kv_heads", -3),
            lambda layers: setattr(layers[1], "kv_heads", 2**62),
            lambda layers: setattr(layers[0], "capacity", 31),
            lambda layers: setattr(layers[0], "capacity", 2**62),
            lambda layers: setattr(layers[0], "capacity", 0),
            lambda layers: setattr(layers[0], "head_dim", 0),
            lambda layers: setattr(layers[0], "kind", "int8"),
        ],
    )
    def test_a_cache_of_another_form(self, change: Callable[[list[Cache]], Any]) -> None:
        layers, data = self.layers()
        change(layers)
        assert move_rows(data, layers, [1], [0]) == BAD_ARGUMENT

    def test_nothing_to_move(self) -> None:
        layers, data = self.layers()
        before = data.copy()
        assert move_rows(data, layers, [], []) == 0
        assert move_rows(data, layers, [5], [5]) == 0
        assert np.array_equal(data, before)
        assert library().qd_move_rows(None, None, None, 0) == BAD_ARGUMENT


def stored() -> Matrix:
    return matrix(np.random.default_rng(1), "w8", 20, 32)


X = np.ones((2, 32), np.float32)
ROWS = np.array([1, 0], np.int64)


def kv_write(kernels: Kernels) -> Any:
    cache = Cache("f16", 16, 1, 16)
    kernels.kv_write(X[:, :16], X[:, 16:], 1, cache, X[:, None, :16].reshape(2, 2, 8))
    return [cache.data]


CALLS: dict[str, Callable[[Kernels], Any]] = {
    "linear": lambda kernels: kernels.linear(X, stored(), Norm("rms"), None, "gelu"),
    "head": lambda kernels: kernels.head(X, stored(), ROWS, 3),
    "embed": lambda kernels: kernels.embed(stored(), ROWS),
    "norm_rows": lambda kernels: kernels.norm_rows(X, Norm("layer"), heads=4),
    "rope_table": lambda kernels: kernels.rope_table(ROWS, X[0]),
    "kv_write": kv_write,
    "attention": lambda kernels: kernels.attention(
        X, X[:, :16], X[:, 16:], Step(np.arange(2), 0), Cache("f32", 16, 1, 16), Scores(0.2)
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_kernels_are_found_by_name(name: str) -> None:
    expected = CALLS[name](Kernels("portable"))
    for isa in (None, *isas()):
        for found, array in zip(CALLS[name](Kernels(isa)), expected, strict=True):
            assert np.array_equal(found, array)
            assert np.isfinite(found).all()
    with pytest.raises(NativeError, match=f"qd_{name} returned {NO_SUCH_ISA}"):
        CALLS[name](Kernels("sse9"))
    with pytest.raises(NativeError, match=f"returned {BAD_ARGUMENT}"):
        CALLS[name](Kernels("portable", threads=0))
    assert getattr(library(), f"qd_{name}")(None, None, 1) == BAD_ARGUMENT


def test_more_threads_than_pieces() -> None:
    assert np.array_equal(CALLS["linear"](Kernels(None, 64)), CALLS["linear"](Kernels()))


class Changed(Kernels):
    """The kernels, but one member of the arguments is another; `cache.type` is one of a member."""

    def __init__(self, member: str, value: Any) -> None:
        super().__init__()
        self._member, self._value = member, value

    def call(self, name: str, args: ctypes.Structure) -> None:
        *outer, last = self._member.split(".")
        setattr(functools.reduce(getattr, outer, args), last, self._value)
        super().call(name, args)


BAD: dict[str, dict[str, list[Any]]] = {
    "linear": {
        "x": [None],
        "weights": [None],
        "y": [None],
        "rows": [-1],
        "k": [33, 2**62],
        "n": [0],
        "format": [9, -1],
        "activation": [5, -1],
    },
    "head": {
        "rows": [None],
        "values": [None],
        "ids": [None],
        "log_sum": [None],
        "m": [-1],
        "top": [0, 21],
        "linear.format": [99],
    },
    "embed": {
        "ids": [None],
        "weights": [None],
        "y": [None],
        "rows": [-1],
        "n": [1, -1],
        "k": [16],
        "format": [77],
    },
    "norm_rows": {
        "x": [None],
        "y": [None],
        "rows": [-1],
        "stride": [31],
        "offset": [1, -1],
        "heads": [5, 2**62],
        "width": [0, 2**63 - 1],
    },
    "rope_table": {
        "positions": [None],
        "frequencies": [None],
        "table": [None],
        "rows": [-1],
        "pairs": [0],
    },
    "attention": {
        "q": [None],
        "kv.k": [None],
        "kv.v": [None],
        "positions": [None],
        "y": [None],
        "kv.rows": [-1, 17],
        "heads": [0],
        "kv.past": [-1, 1, 15, 2**63 - 1],
        "window": [-1],
        "kv.cache.type": [3],
        "kv.cache.capacity": [15, -16],
        "kv.cache.kv_heads": [0],
        "kv.cache.head_dim": [0],
    },
    "kv_write": {
        "k": [None],
        "v": [None],
        "rows": [-1, 16],
        "past": [-1, 15, 2**63 - 1],
        "pairs": [0, 9],
        "cache.type": [3, -1],
        "cache.capacity": [15, -16],
        "cache.kv_heads": [0],
        "cache.head_dim": [0],
    },
}


@pytest.mark.parametrize(
    ("name", "member", "value"),
    [
        (name, member, value)
        for name, members in BAD.items()
        for member, values in members.items()
        for value in values
    ],
)
def test_arguments_are_checked(name: str, member: str, value: Any) -> None:
    with pytest.raises(NativeError, match=f"qd_{name} returned {BAD_ARGUMENT}"):
        CALLS[name](Changed(member, value))


def test_ids_and_rows_out_of_range() -> None:
    for bad in (-1, 20, 2**63 - 1):
        with pytest.raises(NativeError, match=str(BAD_ARGUMENT)):
            Kernels().embed(stored(), np.array([0, bad]))
    with pytest.raises(NativeError, match=str(BAD_ARGUMENT)):
        Kernels().head(X, stored(), np.array([2]), 1)


@pytest.mark.parametrize(
    ("positions", "ancestors"),
    [
        ([0, 2], None),
        ([0, 0], [[0, -1], [0, 1]]),
        ([0, 1], [[0, -1], [0, 0]]),
        ([0, 1], [[0, -1], [1, 1]]),
        ([0, 1], [[0, -1], [-1, 1]]),
        ([0, 2], [[0, -1], [0, 1]]),
        ([-1, 1], [[0, -1], [0, 1]]),
    ],
)
def test_rows_that_are_no_tree(positions: list[int], ancestors: list[list[int]] | None) -> None:
    table = None if ancestors is None else np.array(ancestors, np.int32)
    step = Step(np.array(positions), 0, table)
    with pytest.raises(NativeError, match=str(BAD_ARGUMENT)):
        Kernels().attention(X, X, X, step, Cache("f32", 16, 1, 32))
