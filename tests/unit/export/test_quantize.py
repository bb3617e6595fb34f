"""Rounding to blocks, and moving blocks into MatMulNBits' layout without rounding."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraft.errors import OptionError
from quickdraft.export.emitters.onnx_weights import NBits, to_nbits
from quickdraft.export.quantize import FORMATS, quantize, store, weight_format
from quickdraft.export.weights import (
    Blocked,
    Dense,
    Weight,
    concat_rows,
    dense_weight,
    of_vocabulary,
)
from quickdraft.manifest import WeightFormat


def random_blocked(
    seed: int, bits: int, zero: int, group: int, codes: int, minimum: bool
) -> Blocked:
    rng = np.random.default_rng(seed)
    rows, groups = 3, 4
    # Scales as GGUF has them: half floats times small integers.
    scale = rng.standard_normal((rows, groups)).astype(np.float16).astype(np.float32)
    least = scale * rng.integers(-31, 32, scale.shape) if minimum else None
    return Blocked(
        codes=rng.integers(0, codes, (rows, groups * group), dtype=np.uint8),
        scale=scale,
        minimum=None if least is None else least.astype(np.float32),
        bits=bits,
        group=group,
        zero=zero,
    )


def read_back(form: NBits, bits: int) -> np.ndarray:
    """What MatMulNBits multiplies with, plus the offsets that the side product adds."""
    rows, groups, _ = form.packed.shape
    codes = form.packed
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(rows, groups, -1)
    values = (codes.astype(np.float64) - (1 << (bits - 1))) * form.scale[..., None]
    if form.offset is not None:
        values = values + form.offset[..., None]
    return values.reshape(rows, -1)


# bits, zero, group, number of codes in use, minimum: the block kinds of GGUF and ours
KINDS = {
    "Q4_0": (4, 8, 32, 16, False),
    "Q4_1": (4, 0, 32, 16, True),
    "Q5_0": (8, 16, 32, 32, False),
    "Q5_1": (8, 0, 32, 32, True),
    "Q4_K": (4, 0, 32, 16, True),
    "Q6_K": (8, 32, 16, 64, False),
    "Q8_0": (8, 128, 32, 256, False),
}


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32 - 1))
def test_blocks_keep_their_values(kind: str, seed: int) -> None:
    bits, zero, group, codes, minimum = KINDS[kind]
    blocked = random_blocked(seed, bits, zero, group, codes, minimum)
    exact = blocked.codes.reshape(3, 4, group).astype(np.float64) - zero
    exact = exact * blocked.scale[..., None]
    if blocked.minimum is not None:
        exact = exact + blocked.minimum[..., None]
    form = to_nbits(blocked)
    np.testing.assert_allclose(
        read_back(form, bits), exact.reshape(3, -1), rtol=0, atol=1e-6 * np.abs(exact).max()
    )
    # Only kinds with a minimum may cost a second product.
    assert minimum or form.offset is None


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_error_is_at_most_half_a_step(bits: int) -> None:
    values = np.random.default_rng(0).standard_normal((8, 96)).astype(np.float32)
    blocked = quantize(values, bits)
    step = np.abs(values.reshape(8, 3, 32)).max(-1) / (1 << (bits - 1))
    error = np.abs(blocked.to_dense() - values).reshape(8, 3, 32)
    # The largest value of the other sign may be cut by one step.
    assert (error <= 1.2 * step[..., None]).all()
    assert np.sqrt(np.square(error).mean()) < 0.35 * step.mean()


def test_search_beats_plain_rounding() -> None:
    values = np.random.default_rng(1).standard_normal((64, 512)).astype(np.float32)
    blocks = values.reshape(64, 16, 32)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    scale = extreme / -8
    plain = np.clip(np.rint(blocks / scale), -8, 7) * scale
    found = quantize(values, 4).to_dense().reshape(blocks.shape)
    assert np.square(found - blocks).mean() < 0.98 * np.square(plain - blocks).mean()


def test_zero_blocks_stay_zero() -> None:
    blocked = quantize(np.zeros((2, 64), np.float32), 4)
    assert not blocked.to_dense().any()


def test_rows_that_groups_do_not_divide_stay_floats() -> None:
    weight = dense_weight("w", np.ones((2, 40), np.float32))
    assert isinstance(store(weight, weight_format("int4", "huggingface")), Dense)


@pytest.mark.parametrize(
    ("form", "columns", "group"),
    [
        ("int4", 96, 32),
        ("int4", 40, None),
        ("int4-g128", 256, 128),
        ("int4-g128", 576, 64),
        ("int4-g128", 96, 32),
        ("int4-g128", 40, None),
        ("int4-channel", 576, 576),
        ("int4-channel", 40, 40),
        ("int4-channel", 41, None),
    ],
)
def test_groups_belong_to_the_format(form: str, columns: int, group: int | None) -> None:
    fmt = weight_format(form, "huggingface")
    assert fmt.group_of(columns) == group
    values = np.random.default_rng(0).standard_normal((3, columns)).astype(np.float32)
    stored = store(dense_weight("w", values), fmt)
    if group is None:
        assert isinstance(stored, Dense)
        return
    assert isinstance(stored, Blocked)
    assert (stored.group, stored.zero, stored.minimum) == (group, 8, None)
    assert stored.scale.shape == (3, columns // group)
    error = np.square(stored.to_dense() - values).mean() / np.square(values).mean()
    assert error < (0.02 if group <= 128 else 0.03)


def test_what_has_a_row_for_every_token_may_keep_more_bits() -> None:
    weight = dense_weight("w", np.random.default_rng(0).standard_normal((9, 128), np.float32))
    bits = {}
    for name, fmt in FORMATS.items():
        stored = [store(each, fmt) for each in (weight, of_vocabulary(weight)) if not fmt.keep]
        bits[name] = [each.bits for each in stored if isinstance(each, Blocked)]
    assert bits["int4"] == [4, 4]
    assert bits["int8"] == [8, 8]
    assert bits["int4-g128"] == bits["int4-channel"] == [4, 8]


def test_long_groups_cut_their_largest_values() -> None:
    values = np.random.default_rng(1).standard_normal((16, 1024)).astype(np.float32)
    scale = values.max(-1, keepdims=True) / 8
    plain = np.clip(np.rint(values / scale), -8, 7) * scale
    found = quantize(values, 4, 1024).to_dense()
    assert np.square(found - values).mean() < 0.8 * np.square(plain - values).mean()


def test_formats_have_the_names_of_the_manifest() -> None:
    assert set(FORMATS) == set(get_args(WeightFormat))


def test_auto_keeps_blocks_and_rounds_floats() -> None:
    assert weight_format("auto", "gguf").keep
    assert weight_format("auto", "huggingface").bits == 8


def test_values_beyond_half_precision_are_refused() -> None:
    weight = dense_weight("layer.weight", np.full((1, 32), 7e4, np.float32))
    with pytest.raises(OptionError, match=r"layer\.weight holds values that fp16 cannot"):
        store(weight, weight_format("fp16", "huggingface"))


def test_unknown_format_lists_what_there_is() -> None:
    with pytest.raises(OptionError, match=r"int3.*fp32.*int4"):
        weight_format("int3", "huggingface")


def test_gguf_blocks_need_a_gguf_file() -> None:
    with pytest.raises(OptionError, match="this checkpoint has none"):
        weight_format("gguf", "huggingface")


def test_joined_rows_of_different_blocks_become_floats() -> None:
    fine, coarse = random_blocked(1, 8, 32, 16, 64, False), random_blocked(2, 4, 0, 32, 16, True)
    coarse = Blocked(
        coarse.codes[:, :64],
        coarse.scale[:, :2],
        None if coarse.minimum is None else coarse.minimum[:, :2],
        coarse.bits,
        coarse.group,
        coarse.zero,
    )
    weights = [
        Weight("a", (3, 64), "Q6_K", lambda: fine),
        Weight("b", (3, 64), "Q4_K", lambda: coarse),
    ]
    joined = concat_rows(weights)
    expected = np.concatenate([fine.to_dense(), coarse.to_dense()])
    np.testing.assert_array_equal(joined.dense(), expected)
    assert joined.shape == expected.shape


def test_joined_rows_of_equal_blocks_stay_blocks() -> None:
    parts = [random_blocked(seed, 4, 0, 32, 16, True) for seed in (1, 2)]
    weights = [Weight(str(i), (3, 128), "Q4_1", lambda p=p: p) for i, p in enumerate(parts)]
    joined = concat_rows(weights).load()
    assert isinstance(joined, Blocked)
    expected = np.concatenate([part.to_dense() for part in parts])
    np.testing.assert_array_equal(joined.to_dense(), expected)
