"""Weights in kernel layout: every value equal to the last bit, every byte where the docs say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny.native import Kernels, Matrix, isas, needs_native, record_bytes
from tiny.random_blocks import KINDS, random_tensor

from quickdraft import weight_layout
from quickdraft.errors import OptionError
from quickdraft.export import packing
from quickdraft.export.checkpoints.gguf_blocks import read_tensor
from quickdraft.export.packing import Packed, kernel_format, pack, pack_gated
from quickdraft.export.quantize import FORMATS, quantize, store
from quickdraft.export.weights import (
    Blocked,
    Dense,
    Levels,
    Weight,
    concat_rows,
    dense_weight,
    product,
)
from quickdraft.weight_layout import LAYOUTS, unpack

FORMAT_OF = {
    "F32": "f32", "F16": "f16", "BF16": "f32", "Q4_0": "w4", "Q4_1": "w4m", "Q5_0": "w8",
    "Q5_1": "w8m", "Q8_0": "w8", "Q4_K": "w4k", "Q5_K": "w8k", "Q6_K": "w6k",
}  # fmt: skip
QUANTISED = [name for name, layout in LAYOUTS.items() if layout.dense is None]


def loaded(name: str, rows: int = 21, seed: int = 0) -> Dense | Blocked:
    data, info = random_tensor(name, rows, seed)
    return read_tensor(data, "f", info)


def dense(data: Dense | Blocked) -> np.ndarray:
    return data.to_dense() if isinstance(data, Blocked) else data.values.astype(np.float32)


def assert_same_bits(packed: Packed, want: np.ndarray) -> None:
    got = unpack(packed.data, packed.format, packed.n, packed.k)
    assert got.shape == want.shape
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


def random_blocked(name: str, rows: int, columns: int, seed: int) -> Blocked:
    """Blocks that the format `name` holds."""
    layout, rng = LAYOUTS[name], np.random.default_rng(seed)
    codes = rng.integers(0, layout.codes, (rows, columns), np.uint8)
    shape = (rows, columns // layout.group)
    minimum = levels = None
    if layout.inner is None:
        scale = rng.standard_normal(shape).astype(np.float16).astype(np.float32)
        if layout.has_minimum:
            minimum = rng.standard_normal(shape).astype(np.float16).astype(np.float32)
    else:
        low, high = np.iinfo(layout.inner).min, np.iinfo(layout.inner).max
        outer = rng.standard_normal((2, rows, columns // 256)).astype(np.float16)
        inner = rng.integers(low, high, (2, *shape), layout.inner, endpoint=True)
        levels = Levels(outer[0], inner[0])
        scale = product(outer[0], inner[0])
        if layout.has_minimum:
            levels = Levels(outer[0], inner[0], outer[1], inner[1])
            minimum = -product(outer[1], inner[1])
    bits = 8 if layout.bits == 6 else layout.bits
    return Blocked(codes, scale, minimum, bits, layout.group, layout.zero, levels)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("rows", [1, 16, 37])
def test_every_value_of_a_gguf_tensor_is_kept(name: str, rows: int) -> None:
    data = loaded(name, rows, seed=rows)
    packed = pack(data)
    assert packed.format == FORMAT_OF[name]
    assert_same_bits(packed, dense(data))


@pytest.mark.parametrize("name", QUANTISED)
@given(rows=st.integers(1, 40), columns=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_packing_and_unpacking_are_inverse(name: str, rows: int, columns: int, seed: int) -> None:
    blocked = random_blocked(name, rows, columns * LAYOUTS[name].divisor, seed)
    packed = pack(blocked)
    assert packed.format == name
    assert_same_bits(packed, blocked.to_dense())


def code_at(record: np.ndarray, bits: int, column: int, output: int) -> int:
    """One code, as docs/weight-layout.md places it."""
    if bits == 8:
        group, c = divmod(column, 32)
        return int(record[512 * group + 64 * (c // 4) + 4 * output + c % 4])
    if bits == 4:
        group, c = divmod(column, 32)
        byte = record[256 * group + 64 * (c // 8) + 4 * output + c % 4]
        return int(byte >> 4 if c % 8 >= 4 else byte & 15)
    group, c = divmod(column, 16)
    byte = record[192 * group + 64 * (c // 8) + 4 * output + c % 4]
    high = record[192 * group + 128 + 4 * output + c % 4] >> 2 * (c // 4) & 3
    return int(byte >> 4 if c % 8 >= 4 else byte & 15) | int(high) << 4


@pytest.mark.parametrize("name", QUANTISED)
def test_bytes_lie_where_the_documentation_says(name: str) -> None:
    layout, columns, rows = LAYOUTS[name], 512, 20
    blocked = random_blocked(name, rows, columns, 3)
    packed = pack(blocked)
    codes = [
        [code_at(packed.data[row // 16], layout.bits, c, row % 16) for c in range(columns)]
        for row in range(rows)
    ]
    assert np.array_equal(codes, blocked.codes)
    # The sections after the codes: a table of (values, type, columns per value).
    levels = blocked.levels
    if levels is None:
        tables = [(blocked.scale, "<f2", layout.group), (blocked.minimum, "<f2", layout.group)]
    else:
        tables = [
            (levels.inner, layout.inner, layout.group),
            (levels.inner_minimum, layout.inner, layout.group),
            (levels.outer, "<f2", 256),
            (levels.outer_minimum, "<f2", 256),
        ]
    at = columns * 16 * layout.bits // 8
    for values, kind, width in tables:
        if values is None:
            continue
        size = 16 * columns // width * np.dtype(kind).itemsize
        for row in range(rows):
            section = packed.data[row // 16, at : at + size].view(kind).reshape(-1, 16)
            assert np.array_equal(section[:, row % 16], values[row])
        at += size
    assert packed.data.shape[1] == -(-at // 64) * 64
    assert not packed.data[:, at:].any()


@pytest.mark.parametrize("name", LAYOUTS)
def test_missing_outputs_are_zero(name: str) -> None:
    if name in QUANTISED:
        data: Dense | Blocked = random_blocked(name, 18, 256, 0)
    else:
        data = Dense(np.ones((18, 256), LAYOUTS[name].dense))
    packed = pack(data)
    whole = unpack(packed.data, name, 32, 256)
    assert not whole[18:].any()
    assert whole[:18].any()


def test_a_gated_pair_alternates() -> None:
    gate, up = (random_blocked("w4k", 40, 256, seed) for seed in (1, 2))
    packed = pack_gated(gate, up)
    assert packed.n == 40
    for start, part in enumerate((gate, up)):
        half = Packed(packed.format, packed.n, packed.k, packed.data[start::2])
        assert_same_bits(half, part.to_dense())


def test_unequal_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gate is w4 \[16, 256\], up w8"):
        pack_gated(random_blocked("w4", 16, 256, 0), random_blocked("w8", 16, 256, 0))


def test_chunks_join(monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = random_blocked("w6k", 101, 256, 5)
    whole = pack(blocked).data
    monkeypatch.setattr(packing, "_CHUNK_VALUES", 2 * 16 * 256)
    assert np.array_equal(pack(blocked).data, whole)


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q6_K"])
def test_both_levels_survive_being_cut_and_joined(name: str) -> None:
    data = loaded(name)
    assert isinstance(data, Blocked)
    weight = Weight("w", data.codes.shape, name, lambda: data)
    order = np.random.default_rng(0).permutation(len(data.codes))
    parts = [weight.take_rows(order[:7], "a"), weight.take_rows(order[7:], "b")]
    joined = concat_rows(parts).load()
    packed = pack(joined)
    assert packed.format == FORMAT_OF[name]
    assert_same_bits(packed, data.to_dense()[order])


def test_values_without_a_format_become_floats() -> None:
    blocked = random_blocked("w4m", 5, 64, 0)
    third = replace(blocked, scale=blocked.scale / np.float32(3))
    large = replace(random_blocked("w8m", 5, 64, 0), codes=np.full((5, 64), 64, np.uint8))
    for data in (third, large, replace(blocked, zero=7)):
        packed = pack(data)
        assert packed.format == "f32"
        assert_same_bits(packed, data.to_dense())
    assert pack(Dense(np.ones((3, 7), np.float32))).data.shape == (1, 448)


@pytest.mark.parametrize(("form", "name"), [("int4", "w4"), ("int8", "w8")])
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-30, 12))
@example(seed=85585759, exponent=-22)
def test_own_blocks_have_scales_that_kernels_hold(
    form: str, name: str, seed: int, exponent: int
) -> None:
    """At any magnitude; so both flavours hold the same values."""
    values = np.random.default_rng(seed).standard_normal((3, 64)) * 2.0**exponent
    blocked = store(dense_weight("w", values.astype(np.float32)), FORMATS[form])
    assert isinstance(blocked, Blocked)
    assert kernel_format(blocked) == name
    largest = np.abs(values).reshape(3, 2, 32).max(-1)
    # The largest value may be cut by 15 % of 8 steps; float16 knows no step below 2**-24, and near
    # that rounds a step by up to 2**-25, which the largest code multiplies.
    codes = 1 << (blocked.bits - 1)
    steps = np.maximum(largest / codes, 2.0**-24)
    error = np.abs(blocked.to_dense() - values).reshape(3, 2, 32).max(-1)
    assert (error <= 1.8 * steps + codes * 2.0**-25).all()


@pytest.mark.parametrize("form", ["int4", "int8"])
def test_values_beyond_the_scales_are_refused(form: str) -> None:
    weight = dense_weight("layer.weight", np.full((1, 32), -1e7, np.float32))
    with pytest.raises(OptionError, match=rf"layer\.weight holds values that {form} cannot"):
        store(weight, FORMATS[form])


@pytest.mark.parametrize("name", LAYOUTS)
def test_columns_that_do_not_suit_are_refused(name: str) -> None:
    if LAYOUTS[name].divisor > 1:
        with pytest.raises(ValueError, match=f"33 columns do not suit {name}"):
            weight_layout.record_bytes(name, 33)


@needs_native
@pytest.mark.parametrize("name", LAYOUTS)
def test_records_are_as_long_as_in_the_library(name: str) -> None:
    for columns in (1, 16, 31, 32, 96, 256, 1536, 8960):
        suits = columns % LAYOUTS[name].divisor == 0
        ours = weight_layout.record_bytes(name, columns) if suits else 0
        assert record_bytes(name, columns) == ours


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("name", LAYOUTS)
def test_kernels_read_the_same_values(name: str, isa: str) -> None:
    if name in QUANTISED:
        data: Dense | Blocked = random_blocked(name, 37, 512, 1)
    else:
        values = np.random.default_rng(0).standard_normal((37, 512))
        data = Dense(values.astype(LAYOUTS[name].dense))
    packed = pack(data)
    matrix = Matrix(name, packed.data, packed.n, packed.k)
    read = Kernels(isa).embed(matrix, np.arange(37))
    assert np.array_equal(read.view(np.uint32), dense(data).view(np.uint32))


def test_quantising_zero_gives_zero_records() -> None:
    packed = pack(quantize(np.zeros((16, 32), np.float32), 8))
    assert not unpack(packed.data, packed.format, 16, 32).any()


@pytest.mark.parametrize(("zero", "name"), [(128, "w8"), (100, "f32"), (138, "f32")])
def test_codes_are_moved_only_where_they_fit(zero: int, name: str) -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    blocked = Blocked(codes, np.full((2, 4), 0.5, np.float32), None, 8, 32, zero)
    packed = pack(blocked)
    assert packed.format == name
    found = unpack(packed.data, packed.format, packed.n, packed.k)
    np.testing.assert_array_equal(found, blocked.to_dense())
